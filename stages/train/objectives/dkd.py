"""The objective `dkd`: distillation split into a part for the target class and a part for the other classes.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import (
    Objective,
    Setting,
    require_at_least,
    require_temperature,
    require_weights,
    warm_up,
)
from torch import Tensor


def decoupled_kd(student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the scalars TCKD and NCKD, each τ²/N · Σ_i KL(teacher ‖ student) of probabilities at temperature τ.

    The sum is over the N samples i of the batch. TCKD (target-class KD) compares the two probabilities of the target
    class and of all other classes together. NCKD (non-target-class KD) compares the probabilities of the other classes,
    normalised to sum to 1. Zhao et al., equation 7: KD of sample i is TCKD + (1 − p_target)·NCKD with the teacher's
    probability p_target of the target class. `labels_B` is int64.
    """
    student_BK, teacher_BK = losses.widened(student_BK) / temperature, losses.widened(teacher_BK) / temperature
    target_B1 = labels_B[:, None]
    of_target = F.kl_div(
        _target_and_others(student_BK, target_B1),
        _target_and_others(teacher_BK, target_B1),
        reduction="batchmean",
        log_target=True,
    )
    # After the softmax over the other classes, the student's and the teacher's log-probabilities are set to 0 at the
    # target, so that the target adds nothing.
    student_others, teacher_others = (
        F.log_softmax(logits.scatter(1, target_B1, -float("inf")), dim=1).scatter(1, target_B1, 0.0)
        for logits in (student_BK, teacher_BK)
    )
    of_others = F.kl_div(student_others, teacher_others, reduction="batchmean", log_target=True)
    return temperature**2 * of_target, temperature**2 * of_others


def _target_and_others(logits_BK: Tensor, target_B1: Tensor) -> Tensor:
    """Return log p and log(1 − p), (B, 2), where p is the target's probability; p is never rounded to 0 or 1."""
    target = logits_BK.gather(1, target_B1)
    others = logits_BK.scatter(1, target_B1, -float("inf")).logsumexp(dim=1, keepdim=True)
    lead = target - others
    return F.logsigmoid(lead.new_tensor([1.0, -1.0]) * lead)


@dataclass(frozen=True)
class DKD(Objective):
    """ce_weight · CE + alpha · TCKD + beta · NCKD (see `decoupled_kd`), all on the task head.

    The published beta differs between teacher–student pairs. Over the first `warmup_epochs` epochs, alpha and beta grow
    linearly to their values. With `standardize`, the logits of both networks are standardised first
    (`losses.standardized`).
    """

    temperature: float = 4.0
    ce_weight: float = 1.0
    alpha: float = 1.0
    beta: float = 8.0
    warmup_epochs: int = 20
    standardize: bool = False

    of_labels = ("ce", "tckd", "nckd")
    of_one_class = ("dkd",)  # the target class is one

    def __post_init__(self) -> None:
        require_temperature("dkd", self.temperature)
        require_weights("dkd", ce_weight=self.ce_weight, alpha=self.alpha, beta=self.beta)
        require_at_least("dkd", 0, warmup_epochs=self.warmup_epochs)

    @property
    def needs_labels(self) -> Sequence[str]:
        """All terms: without labels, the target class is unknown."""
        return self.of_labels

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's probabilities, or its raw logits if they are to be standardised."""
        return {"logits": None if self.standardize else self.temperature}

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 with `standardize`; the first definition divided by the population standard deviation."""
        return {"dkd": 2} if self.standardize else {}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce`, `tckd` and `nckd`."""
        prepared = losses.standardized if self.standardize else losses.widened
        target_B = labels.one_class_each("dkd")
        tckd, nckd = decoupled_kd(prepared(student.task), prepared(teacher["logits"]), target_B, self.temperature)
        return {"ce": losses.cross_entropy(student.task, labels), "tckd": tckd, "nckd": nckd}

    def weights(self, epoch: int) -> dict[str, float]:
        """Return alpha and beta, multiplied by the warm-up factor, and the constant weight of cross-entropy."""
        factor = warm_up(epoch, self.warmup_epochs)
        return {"ce": self.ce_weight, "tckd": factor * self.alpha, "nckd": factor * self.beta}
