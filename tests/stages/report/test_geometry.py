"""Correlation and neural collapse: every measure of a simplex equiangular tight frame is 0, and sees its own fault."""

import numpy as np
import pytest
from dhkd.stages.report.figures import Float
from dhkd.stages.report.geometry import logit_correlation, neural_collapse
from hypothesis import given, settings
from hypothesis import strategies as st


def collapsed(classes: int, width: int, each: int, seed: int) -> tuple[Float, np.ndarray, Float]:
    """Collapsed features: each class is one point, the points form a simplex, and the classifier has the same shape."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.standard_normal((width, classes)))
    simplex_KD = (np.eye(classes) - 1 / classes) @ basis.T
    labels_N = generator.permutation(np.repeat(np.arange(classes), each))
    return 3 * simplex_KD[labels_N] + generator.standard_normal(width), labels_N, 0.5 * simplex_KD


@settings(max_examples=25, deadline=None)
@given(classes=st.integers(2, 9), more=st.integers(0, 6), each=st.integers(1, 5), seed=st.integers(0, 999))
def test_a_simplex_measures_nothing(classes: int, more: int, each: int, seed: int) -> None:
    features_ND, labels_N, classifier_KD = collapsed(classes, classes + more, each, seed)
    for name, value in vars(neural_collapse(features_ND, labels_N, classifier_KD)).items():
        assert value == pytest.approx(0, abs=1e-6), name


def test_each_measure_sees_its_fault() -> None:
    features_ND, labels_N, classifier_KD = collapsed(5, 8, 20, 0)
    noise = np.random.default_rng(1).standard_normal(features_ND.shape)
    longer = features_ND + (labels_N == 2)[:, None] * 2 * features_ND
    nearer = features_ND + (labels_N == 3)[:, None] * features_ND[labels_N == 1][0]
    turned = np.roll(classifier_KD, 1, axis=0)
    faults = {
        "noise": neural_collapse(features_ND + 0.3 * noise, labels_N, classifier_KD),
        "longer": neural_collapse(longer, labels_N, classifier_KD),
        "nearer": neural_collapse(nearer, labels_N, classifier_KD),
        "turned": neural_collapse(features_ND, labels_N, turned),
        "shrunk": neural_collapse(features_ND, labels_N, classifier_KD * np.array([[1], [1], [1], [1], [4]])),
    }
    assert faults["noise"].within_class > 0.02
    assert faults["longer"].norms > 0.1
    assert faults["nearer"].angles > 0.05
    assert faults["nearer"].features_etf > 0.1
    assert faults["turned"].duality > 0.5
    assert faults["turned"].classifier_etf == pytest.approx(0, abs=1e-6), "a rotation alone is no fault"
    assert faults["shrunk"].classifier_etf > 0.1


def test_a_class_without_samples_is_left_out() -> None:
    features_ND, labels_N, classifier_KD = collapsed(5, 8, 4, 0)
    has_samples = labels_N != 4
    measures = neural_collapse(features_ND[has_samples], labels_N[has_samples], classifier_KD)
    assert all(np.isfinite(value) for value in vars(measures).values())


def test_correlation_agrees_with_numpy() -> None:
    logits_NK = np.random.default_rng(0).standard_normal((50, 6))
    np.testing.assert_allclose(logit_correlation(logits_NK), np.corrcoef(logits_NK.T))


def test_a_constant_logit_correlates_with_nothing() -> None:
    logits_NK = np.random.default_rng(0).standard_normal((50, 3))
    logits_NK[:, 1] = 4.0
    correlation = logit_correlation(logits_NK)
    assert (correlation[1] == 0).all()
    assert np.isfinite(correlation).all()
