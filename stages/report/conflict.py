"""How cross-entropy and BinaryKL act on a classifier and on the features below it: Propositions 1 and 2 of the paper.

W is the classifier, with a row w_k for each class k, b its bias, and h_i the feature of sample i. For a loss of the
logits s = W h + b that is a mean over N samples, the negative gradient is

    1/N · Σ_i r_ik h_i  for the classifier's row w_k,        1/N · Σ_k r_ik w_k  for the feature h_i.

The *residual* r is −N times the gradient with respect to s. A loss's *force* is its negative gradient. The part of each
sum in which k is the class of sample i is the *pull*, the rest is the *push* (Yang et al., KDD 2025, arXiv 2411.08937).
Two losses *conflict* where the cosine of their forces is negative.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot


@dataclass(frozen=True)
class Forces:
    """A loss's negative gradient, split into pull and push; (K, D) each on the classifier, (N, D) each on features."""

    pull: Tensor
    push: Tensor

    @property
    def total(self) -> Tensor:
        """The whole negative gradient."""
        return self.pull + self.push


@dataclass(frozen=True)
class Agreement:
    """How two losses' forces agree on the same rows: the mean cosine, and the share of rows with a negative cosine.

    A row is the force on one class's row of the classifier, or on one sample's feature. Both numbers are NaN if there
    is no row on which both losses act.
    """

    cosine: float
    conflicting: float


def cross_entropy_residual(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Compute cross-entropy's residual, (N, K): 1 − p for a sample's class, −p for other classes; p is the softmax."""
    return one_hot(labels_N, logits_NK.shape[1]) - logits_NK.softmax(dim=1)


def binary_kl_residual(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """Compute τ · (q(t) − q(s)), (N, K): the residual of BinaryKL = τ²/N · Σ KL(q(t) ‖ q(s)), with q(x) = σ(x / τ).

    s are the student's logits, t the teacher's; τ is the temperature and σ the sigmoid.
    """
    return temperature * (torch.sigmoid(teacher_NK / temperature) - torch.sigmoid(logits_NK / temperature))


def binary_kl_norm_residual(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """Compute τ · (½ − σ((s − t) / τ)), (N, K): the residual of BinaryKL-Norm = τ²/N · Σ log cosh((s − t) / 2τ).

    s are the student's logits, t the teacher's; τ is the temperature and σ the sigmoid.
    """
    return temperature * (0.5 - torch.sigmoid((logits_NK - teacher_NK) / temperature))


def on_classifier(residual_NK: Tensor, features_ND: Tensor, labels_N: Tensor) -> Forces:
    """Compute the pull of each class k's samples on the row w_k, and the push of the other samples (Proposition 1)."""
    of_class_NK, others_NK = _by_class(residual_NK, labels_N)
    return Forces(of_class_NK.T @ features_ND, others_NK.T @ features_ND)


def on_features(residual_NK: Tensor, classifier_KD: Tensor, labels_N: Tensor) -> Forces:
    """Compute the pull on each feature h_i by its class's row, and the push by the other rows (Proposition 2)."""
    of_class_NK, others_NK = _by_class(residual_NK, labels_N)
    return Forces(of_class_NK @ classifier_KD, others_NK @ classifier_KD)


def _by_class(residual_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Divide the residual by N and split it: the first part is 0 outside each sample's class, the second inside it."""
    is_class_NK = one_hot(labels_N, residual_NK.shape[1]).bool()
    mean_NK = residual_NK / len(labels_N)
    return mean_NK.where(is_class_NK, 0.0), mean_NK.where(~is_class_NK, 0.0)


def conflict(first: Forces, second: Forces) -> Agreement:
    """Compute how two losses' forces agree, over the rows on which both losses act."""
    both_act = (first.total.norm(dim=1) > 0) & (second.total.norm(dim=1) > 0)
    cosines = cosine_similarity(first.total[both_act], second.total[both_act], dim=1)
    if not len(cosines):
        return Agreement(float("nan"), float("nan"))
    return Agreement(float(cosines.mean()), float((cosines < 0).double().mean()))
