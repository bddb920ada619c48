"""What cross-entropy and BinaryKL do to a classifier and to the features below it: Propositions 1 and 2 of the paper.

Minus the gradient of a loss of logits s = W h + b, a mean over N samples, is for the row w_k and for the feature h_i

    1/N · Σ_i r_ik h_i        and        1/N · Σ_k r_ik w_k,

where r, here the *residual*, is N times minus the gradient in s. Of each sum, what comes from a sample's own class is
its pull, the rest its push (Yang et al., KDD 2025, arXiv 2411.08937). Where two losses' sums point away from each
other, they conflict.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot


@dataclass(frozen=True)
class Forces:
    """Minus a loss's gradient, (K, D) on the classifier's rows or (N, D) on features, in its two parts."""

    pull: Tensor
    push: Tensor

    @property
    def total(self) -> Tensor:
        """Minus the gradient."""
        return self.pull + self.push


def cross_entropy_residual(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """1 − p for a sample's own class, − p for the others; p are the softmax probabilities. (N, K)."""
    return one_hot(labels_N, logits_NK.shape[1]) - logits_NK.softmax(dim=1)


def binary_kl_residual(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """τ · (q(t) − q(s)) with q(x) = σ(x / τ), of BinaryKL = τ²/N · Σ KL(q(t) ‖ q(s)). (N, K)."""
    return temperature * (torch.sigmoid(teacher_NK / temperature) - torch.sigmoid(logits_NK / temperature))


def binary_kl_norm_residual(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """τ · (½ − σ((s − t) / τ)), of BinaryKL-Norm = τ²/N · Σ log cosh((s − t) / 2τ). (N, K)."""
    return temperature * (0.5 - torch.sigmoid((logits_NK - teacher_NK) / temperature))


def on_classifier(residual_NK: Tensor, features_ND: Tensor, labels_N: Tensor) -> Forces:
    """Proposition 1: on each row w_k, the pull of samples of class k and the push of the others. (K, D) each."""
    own_NK, others_NK = _by_class(residual_NK, labels_N)
    return Forces(own_NK.T @ features_ND, others_NK.T @ features_ND)


def on_features(residual_NK: Tensor, classifier_KD: Tensor, labels_N: Tensor) -> Forces:
    """Proposition 2: on each feature h_i, the pull of its own class's row and the push of the others'. (N, D) each."""
    own_NK, others_NK = _by_class(residual_NK, labels_N)
    return Forces(own_NK @ classifier_KD, others_NK @ classifier_KD)


def _by_class(residual_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Of the residual over N what is of each sample's own class, and the rest; 0 elsewhere."""
    own_NK = one_hot(labels_N, residual_NK.shape[1]).bool()
    mean_NK = residual_NK / len(labels_N)
    return mean_NK.where(own_NK, 0.0), mean_NK.where(~own_NK, 0.0)


def conflict(one: Forces, other: Forces) -> dict[str, float]:
    """How two losses' forces on the same rows agree: the rows' mean cosine, and the share of rows where it is negative.

    Rows on which either does not act are left out.
    """
    acted = (one.total.norm(dim=1) > 0) & (other.total.norm(dim=1) > 0)
    cosines = cosine_similarity(one.total[acted], other.total[acted], dim=1)
    if not len(cosines):
        return {"cosine": float("nan"), "conflicting": float("nan")}
    return {"cosine": float(cosines.mean()), "conflicting": float((cosines < 0).double().mean())}
