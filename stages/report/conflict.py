"""What cross-entropy and BinaryKL do to a classifier and to the features below it: Propositions 1 and 2 of the paper.

For a loss of the logits s = W h + b that is a mean over N samples, minus the gradient is

    1/N · Σ_i r_ik h_i  for the classifier's row w_k,        1/N · Σ_k r_ik w_k  for the feature h_i.

The *residual* r is minus N times the gradient with respect to s. The part of each sum that comes from a sample's own
class is its pull, the rest is its push (Yang et al., KDD 2025, arXiv 2411.08937). Two losses conflict where their sums
point away from each other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot


@dataclass(frozen=True)
class Forces:
    """Minus a loss's gradient in its two parts, (K, D) on the classifier's rows or (N, D) on features."""

    pull: Tensor
    push: Tensor

    @property
    def total(self) -> Tensor:
        """Minus the gradient, of both parts."""
        return self.pull + self.push


@dataclass(frozen=True)
class Agreement:
    """How two losses' forces on the same rows agree: the mean cosine, and the share of rows with a negative one.

    Both are NaN if there is no row on which both losses act.
    """

    cosine: float
    conflicting: float


def cross_entropy_residual(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """1 − p for a sample's own class and −p for the others, where p are the softmax probabilities; (N, K)."""
    return one_hot(labels_N, logits_NK.shape[1]) - logits_NK.softmax(dim=1)


def binary_kl_residual(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """τ · (q(t) − q(s)) with q(x) = σ(x / τ), for BinaryKL = τ²/N · Σ KL(q(t) ‖ q(s)); (N, K)."""
    return temperature * (torch.sigmoid(teacher_NK / temperature) - torch.sigmoid(logits_NK / temperature))


def binary_kl_norm_residual(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """τ · (½ − σ((s − t) / τ)), for BinaryKL-Norm = τ²/N · Σ log cosh((s − t) / 2τ); (N, K)."""
    return temperature * (0.5 - torch.sigmoid((logits_NK - teacher_NK) / temperature))


def on_classifier(residual_NK: Tensor, features_ND: Tensor, labels_N: Tensor) -> Forces:
    """Proposition 1: the pull of class k's samples on the row w_k, and the push of all others; (K, D) each."""
    of_class_NK, others_NK = _by_class(residual_NK, labels_N)
    return Forces(of_class_NK.T @ features_ND, others_NK.T @ features_ND)


def on_features(residual_NK: Tensor, classifier_KD: Tensor, labels_N: Tensor) -> Forces:
    """Proposition 2: the pull on the feature h_i of its own class's row, and the push of the others; (N, D) each."""
    of_class_NK, others_NK = _by_class(residual_NK, labels_N)
    return Forces(of_class_NK @ classifier_KD, others_NK @ classifier_KD)


def _by_class(residual_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """The residual over N, split into the entries of each sample's own class and the others; 0 elsewhere."""
    is_class_NK = one_hot(labels_N, residual_NK.shape[1]).bool()
    mean_NK = residual_NK / len(labels_N)
    return mean_NK.where(is_class_NK, 0.0), mean_NK.where(~is_class_NK, 0.0)


def conflict(first: Forces, second: Forces) -> Agreement:
    """How two losses' forces agree, leaving out rows on which either of them does not act."""
    both_act = (first.total.norm(dim=1) > 0) & (second.total.norm(dim=1) > 0)
    cosines = cosine_similarity(first.total[both_act], second.total[both_act], dim=1)
    if not len(cosines):
        return Agreement(float("nan"), float("nan"))
    return Agreement(float(cosines.mean()), float((cosines < 0).double().mean()))
