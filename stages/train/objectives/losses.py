"""The losses as pure functions of tensors, independent of model, epoch, weight and configuration.

Each loss computes in float32, whatever the dtype of its inputs and the state of autocast; float64 stays float64. Inputs
are widened first, because even the difference of two fp16 logits may overflow. Values and gradients are finite for
logits with |student − teacher| up to 1e4. Published code clamps probabilities instead. In float32, a clamp at 1 − 1e-8
does nothing, because it rounds to 1; so such a loss becomes infinite if |student − teacher| exceeds about 33 at
temperature 2.

B is the batch dimension, K the class dimension and N the batch size; s and t are the student's and the teacher's
logits, τ is the temperature and σ the logistic function.
"""

import torch
import torch.nn.functional as F
from dhkd.data.stream.labels import Labels
from torch import Tensor

# Above this bound, log cosh x = |x| − log 2 to the last digit of a float64: exp(−2·20) is 4e-18.
LOG_COSH_IS_LINEAR = 20.0


def cross_entropy(logits_BK: Tensor, labels: Labels) -> Tensor:
    """Compute cross-entropy with the labels, mean over the batch: −1/N · Σ_i log softmax(s_i)[label_i].

    s_i are the logits of row i of the N rows. The loss of a mixed image is w · CE(first) + (1 − w) · CE(second), where
    w is the share of the first class. Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization",
    ICLR 2018, arXiv 1710.09412, section 2. Labels with a `smoothing` are smoothed as in `smoothed_cross_entropy`.
    """
    return smoothed_cross_entropy(logits_BK, labels, labels.smoothing)


def task_loss(logits_BK: Tensor, labels: Labels) -> Tensor:
    """Compute the term `ce`: cross-entropy with the labels or, for images without labels, 0 with a gradient of 0.

    For images without labels, the training loop refuses a weight of this term above 0 before it begins
    (`Objective.of_labels`). The 0 depends on the logits, because DDP expects a gradient for every parameter.
    """
    return 0 * widened(logits_BK).sum() if labels.are_absent else cross_entropy(logits_BK, labels)


def smoothed_cross_entropy(logits_BK: Tensor, labels: Labels, smoothing: float) -> Tensor:
    """Compute cross-entropy with the targets (1 − ε) · one-hot + ε/K, ε = `smoothing` in [0, 1]; mean over the batch.

    K is the number of classes. For a mixed image, the losses of both labels are weighted as in `cross_entropy`. Szegedy
    et al., "Rethinking the Inception Architecture", CVPR 2016, arXiv 1512.00567, section 7.
    """
    logits_BK = widened(logits_BK)
    if labels.second_B is None or labels.weight_B is None:
        return F.cross_entropy(logits_BK, labels.classes_B, label_smoothing=smoothing)
    first_B, second_B = (
        F.cross_entropy(logits_BK, classes_B, label_smoothing=smoothing, reduction="none")
        for classes_B in (labels.classes_B, labels.second_B)
    )
    return (labels.weight_B * first_B + (1 - labels.weight_B) * second_B).mean()


def logit_mse(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Compute the squared error of raw logits, 1/(N·K) · Σ (s − t)²: the mean over batch and classes.

    s and t are the student's and the teacher's logits, for N samples and K classes. Ba, Caruana, "Do Deep Nets Really
    Need to be Deep?", NeurIPS 2014, arXiv 1312.6184; their equation 1 takes half the sum instead of the mean.
    """
    return F.mse_loss(widened(student_BK), widened(teacher_BK))


def standardized(logits_BK: Tensor) -> Tensor:
    """Standardize each row x: (x − mean) / (deviation + 1e-7), with the sample standard deviation of all K values.

    The deviation is √(Σ (x − mean)² / (K − 1)), as in the authors' code. Apart from the 1e-7, shifting a row or scaling
    it by a positive factor changes nothing. Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024,
    arXiv 2403.01427, algorithm 1, which also divides the result by the temperature.
    """
    logits_BK = widened(logits_BK)
    centred_BK = logits_BK - logits_BK.mean(dim=1, keepdim=True)
    # Computed as the norm of the centred values, because the gradient of std() is NaN if all values are equal.
    degrees = max(centred_BK.shape[1] - 1, 1)
    deviation_B1 = torch.linalg.vector_norm(centred_BK, dim=1, keepdim=True) / degrees**0.5
    result: Tensor = centred_BK / (deviation_B1 + 1e-7)
    return result


def kd(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Compute classical KD, τ²/N · Σ KL( softmax(t/τ) ‖ softmax(s/τ) ): sum over classes, mean over the batch.

    s and t are the student's and the teacher's logits, τ is the temperature and N the batch size. The gradient in s is
    τ/N · (softmax(s/τ) − softmax(t/τ)). Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv 1503.02531, section 2; the factor τ² keeps the gradient's size independent of τ.
    """
    log_student_BK = F.log_softmax(widened(student_BK) / temperature, dim=1)
    log_teacher_BK = F.log_softmax(widened(teacher_BK) / temperature, dim=1)
    divergence = F.kl_div(log_student_BK, log_teacher_BK, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def binary_kl(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Compute BinaryKL, τ²/N · Σ KL( Bernoulli(σ(t/τ)) ‖ Bernoulli(σ(s/τ)) ): sum over classes, mean over the batch.

    s and t are the student's and the teacher's logits, τ is the temperature, N the batch size and σ the logistic
    function. The gradient in s is τ/N · (σ(s/τ) − σ(t/τ)). Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge
    Distillation", KDD 2025, arXiv 2411.08937. The paper's equation sums over the batch; the published code divides by
    N, as this function does. In float32, each summand τ² · KL, before the division by N, is exact to about 1e-7 · τ²
    and may therefore be slightly below 0; each entry of the gradient is exact to 1e-7 · τ/N.
    """
    student_BK, teacher_BK = widened(student_BK) / temperature, widened(teacher_BK) / temperature
    # log σ(x) = −softplus(−x), and 1 − σ(x) = σ(−x): the log is never taken of a probability that rounded to 0 or 1.
    yes_BK = teacher_BK.sigmoid() * (F.logsigmoid(teacher_BK) - F.logsigmoid(student_BK))
    no_BK = (-teacher_BK).sigmoid() * (F.logsigmoid(-teacher_BK) - F.logsigmoid(-student_BK))
    return temperature**2 * _summed_over_classes(yes_BK + no_BK)


def binary_kl_norm(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Compute BinaryKL-Norm, τ²/N · Σ KL( [½, ½] ‖ [σ(d), 1 − σ(d)] ) with d = (s − t)/τ.

    s and t are the student's and the teacher's logits, τ is the temperature, N the batch size and σ the logistic
    function. The loss is summed over classes and averaged over the batch. It equals τ²/N · Σ log cosh((s − t)/(2τ));
    the gradient in s is τ/N · (σ((s − t)/τ) − ½). Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation", KDD
    2025, arXiv 2411.08937; the paper's results were obtained with this loss.
    """
    difference_BK = widened(student_BK) - widened(teacher_BK)
    return temperature**2 * _summed_over_classes(_log_cosh(difference_BK / (2 * temperature)))


def widened(logits: Tensor) -> Tensor:
    """Convert to float32; float64 stays float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _summed_over_classes(loss_BK: Tensor) -> Tensor:
    return loss_BK.sum(dim=1).mean()


def _log_cosh(x: Tensor) -> Tensor:
    # Near 0, log1p(2 sinh²(x/2)) keeps all digits, in value and gradient, while |x| + softplus(−2|x|) − log 2 would
    # subtract two numbers close to log 2. The bound keeps sinh from overflowing.
    bounded = x.clamp(-LOG_COSH_IS_LINEAR, LOG_COSH_IS_LINEAR)
    return torch.log1p(2 * torch.sinh(bounded / 2).square()) + F.relu(x.abs() - LOG_COSH_IS_LINEAR)
