"""The geometry of a network's outputs and features: how logits correlate, and how far classes have collapsed."""

from dataclasses import dataclass

import numpy as np
from dhkd.stages.report.figures import Float
from numpy.typing import NDArray


@dataclass(frozen=True)
class NeuralCollapse:
    """How far features and classifier are from a simplex equiangular tight frame (ETF).

    Every measure is 0 for a perfect ETF. All norms are Frobenius norms. The rows of M are the class means minus the
    mean of the class means; W is the classifier, and `classifier_etf` is the formula of `features_etf` with W in place
    of M. K is the number of classes with samples, I the identity matrix, 1 the vector of ones, and cos the cosine
    between two rows. Σ_W and Σ_B are the covariances within and between classes, and ⁺ marks the pseudo-inverse.
    """

    within_class: float
    """tr(Σ_W Σ_B⁺) / K, with the covariances within and between classes."""
    features_etf: float
    """‖M Mᵀ/‖M Mᵀ‖ − (I − 1 1ᵀ/K)/√(K − 1)‖."""
    classifier_etf: float
    """The same of W."""
    norms: float
    """The standard deviation of the norms of M's rows, over their mean."""
    angles: float
    """The mean of |cos + 1/(K − 1)| over every two rows of M."""
    duality: float
    """‖W/‖W‖ − M/‖M‖‖."""


def logit_correlation(logits_NK: Float) -> Float:
    """Compute Pearson's correlation, over samples, between the logits of all pairs of classes, (K, K).

    The correlation of a constant logit is 0.
    """
    centred_NK = logits_NK - logits_NK.mean(axis=0)
    norms_K = np.linalg.norm(centred_NK, axis=0)
    scaled_NK = np.divide(centred_NK, norms_K, out=np.zeros_like(centred_NK), where=norms_K > 0)
    correlation: Float = scaled_NK.T @ scaled_NK
    return correlation


def embedded(features_ND: Float, seed: int) -> Float:
    """Embed features in the plane by t-SNE, (N, 2); the same seed gives the same points.

    The perplexity is 30, or (N − 1) / 3 if that is lower. Source: van der Maaten, Hinton, "Visualizing data using
    t-SNE", JMLR 2008.
    """
    from sklearn.manifold import TSNE  # takes seconds to import

    perplexity = min(30.0, (len(features_ND) - 1) / 3)
    points_N2 = TSNE(random_state=seed, perplexity=perplexity).fit_transform(features_ND)
    return np.asarray(points_N2, dtype=np.float64)


def neural_collapse(features_ND: Float, labels_N: NDArray[np.int64], classifier_KD: Float) -> NeuralCollapse:
    """Measure the collapse of features and classifier.

    Classes without samples are left out; at least two classes must have samples.

    Papyan, Han, Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training", PNAS 2020,
    arXiv 2008.08186.
    """
    present = np.unique(labels_N)
    means_KD = np.stack([features_ND[labels_N == label].mean(axis=0) for label in present])
    centred_KD = means_KD - means_KD.mean(axis=0)
    rest_ND = features_ND - means_KD[np.searchsorted(present, labels_N)]
    within_DD, between_DD = rest_ND.T @ rest_ND / len(rest_ND), centred_KD.T @ centred_KD / len(present)
    norms_K = np.linalg.norm(centred_KD, axis=1)
    unit_KD = centred_KD / np.maximum(norms_K, np.finfo(np.float64).tiny)[:, None]
    cosines = (unit_KD @ unit_KD.T)[~np.eye(len(present), dtype=bool)]
    rows_KD = classifier_KD[present]
    return NeuralCollapse(
        within_class=float(np.trace(within_DD @ np.linalg.pinv(between_DD)) / len(present)),
        features_etf=_from_etf(centred_KD),
        classifier_etf=_from_etf(rows_KD),
        norms=float(norms_K.std() / norms_K.mean()),
        angles=float(np.abs(cosines + 1 / (len(present) - 1)).mean()),
        duality=float(np.linalg.norm(rows_KD / np.linalg.norm(rows_KD) - centred_KD / np.linalg.norm(centred_KD))),
    )


def _from_etf(rows_KD: Float) -> float:
    products_KK = rows_KD @ rows_KD.T
    count = len(rows_KD)
    etf_KK = (np.eye(count) - 1 / count) / np.sqrt(count - 1)
    return float(np.linalg.norm(products_KK / np.linalg.norm(products_KK) - etf_KK))
