"""Propositions 1 and 2: the formulas agree with autograd for random networks, heads and batches in float64."""

from collections.abc import Callable

import pytest
import torch
from dhkd.data.stream.labels import Labels
from dhkd.stages.report.conflict import (
    Forces,
    binary_kl_norm_residual,
    binary_kl_residual,
    conflict,
    cross_entropy_residual,
    on_classifier,
    on_features,
)
from dhkd.stages.train.objectives import losses
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, labels, teacher's logits
LOSSES: dict[str, tuple[Callable[[float], Loss], Callable[[float], Loss]]] = {
    "ce": (
        lambda tau: lambda s, y, t: losses.cross_entropy(s, Labels(y)),
        lambda tau: lambda s, y, t: cross_entropy_residual(s, y),
    ),
    "binary-kl": (
        lambda tau: lambda s, y, t: losses.binary_kl(s, t, tau),
        lambda tau: lambda s, y, t: binary_kl_residual(s, t, tau),
    ),
    "binary-kl-norm": (
        lambda tau: lambda s, y, t: losses.binary_kl_norm(s, t, tau),
        lambda tau: lambda s, y, t: binary_kl_norm_residual(s, t, tau),
    ),
}

sizes = {
    "samples": st.integers(1, 12),
    "classes": st.integers(2, 9),
    "width": st.integers(1, 7),
    "temperature": st.floats(0.5, 8),
    "seed": st.integers(0, 10**6),
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_pull_and_push_are_minus_the_gradient(
    name: str, samples: int, classes: int, width: int, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, width), nn.ReLU()).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(random(*parameter.shape))
    features_ND = network(random(samples, 5)).detach().requires_grad_()
    classifier_KD, bias_K = random(classes, width).requires_grad_(), random(classes)
    labels_N = torch.randint(classes, (samples,), generator=generator)
    teacher_NK = 4 * random(samples, classes)
    logits_NK = features_ND @ classifier_KD.T + bias_K
    loss_of, residual_of = (make(temperature) for make in LOSSES[name])
    expected_KD, expected_ND = torch.autograd.grad(
        loss_of(logits_NK, labels_N, teacher_NK), [classifier_KD, features_ND]
    )
    with torch.no_grad():
        residual_NK = residual_of(logits_NK, labels_N, teacher_NK)
        rows, features = (
            on_classifier(residual_NK, features_ND, labels_N),
            on_features(residual_NK, classifier_KD, labels_N),
        )
    torch.testing.assert_close(rows.total, -expected_KD, rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(features.total, -expected_ND, rtol=1e-5, atol=1e-10)


def test_the_pull_comes_from_a_samples_own_class() -> None:
    """Two samples, of classes 0 and 1, computed by hand."""
    features_ND = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    residual_NK = torch.tensor([[0.3, -0.1, -0.2], [-0.4, 0.9, -0.5]])
    labels_N = torch.tensor([0, 1])
    rows = on_classifier(residual_NK, features_ND, labels_N)
    torch.testing.assert_close(rows.pull, torch.tensor([[0.3, 0.0], [0.0, 1.8], [0.0, 0.0]]) / 2)
    torch.testing.assert_close(rows.push, torch.tensor([[0.0, -0.8], [-0.1, 0.0], [-0.2, -1.0]]) / 2)
    classifier_KD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    features = on_features(residual_NK, classifier_KD, labels_N)
    torch.testing.assert_close(features.pull, torch.tensor([[0.3, 0.0], [0.0, 0.9]]) / 2)
    torch.testing.assert_close(features.push, torch.tensor([[-0.2, -0.3], [-0.9, -0.5]]) / 2)


def test_conflict_is_where_forces_point_apart() -> None:
    nothing = torch.zeros(4, 2)
    one = Forces(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), nothing)
    other = Forces(nothing, torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [1.0, 0.0]]))
    agreement = conflict(one, other)
    assert agreement.cosine == pytest.approx(0.0)
    assert agreement.conflicting == pytest.approx(1 / 3)
