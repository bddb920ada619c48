"""The losses against float64 transcriptions of their definitions, written with probabilities as the paper does."""

import math
from collections.abc import Callable

import pytest
import torch
from dhkd.data.stream.labels import Labels
from dhkd.stages.train.objectives import losses
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

Loss = Callable[[Tensor, Tensor, float], Tensor]


def kd_by_definition(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """τ² · mean over the batch of KL(softmax(t/τ) ‖ softmax(s/τ))."""
    p_BK = torch.exp(teacher_BK / temperature)
    p_BK = p_BK / p_BK.sum(1, keepdim=True)
    q_BK = torch.exp(student_BK / temperature)
    q_BK = q_BK / q_BK.sum(1, keepdim=True)
    return temperature**2 * (p_BK * torch.log(p_BK / q_BK)).sum() / len(student_BK)


def binary_kl_by_definition(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """τ²/N · Σ of the two outcomes' p · log(p/q), p the teacher's, q the student's probabilities."""
    total = student_BK.new_zeros(())
    for sign in (1, -1):  # σ(−x) is 1 − σ(x) without its rounding
        p_BK = 1 / (1 + torch.exp(-sign * teacher_BK / temperature))
        q_BK = 1 / (1 + torch.exp(-sign * student_BK / temperature))
        total = total + (p_BK * torch.log(p_BK / q_BK)).sum()
    return temperature**2 * total / len(student_BK)


def binary_kl_norm_by_definition(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """τ²/N · Σ KL([½, ½] ‖ [σ(d), 1 − σ(d)]) with d = (s − t)/τ."""
    total = student_BK.new_zeros(())
    for sign in (1, -1):
        q_BK = 1 / (1 + torch.exp(-sign * (student_BK - teacher_BK) / temperature))
        total = total + (0.5 * torch.log(0.5 / q_BK)).sum()
    return temperature**2 * total / len(student_BK)


def kd_gradient(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    difference_BK = torch.softmax(student_BK / temperature, 1) - torch.softmax(teacher_BK / temperature, 1)
    return temperature / len(student_BK) * difference_BK


def binary_kl_gradient(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    difference_BK = torch.sigmoid(student_BK / temperature) - torch.sigmoid(teacher_BK / temperature)
    return temperature / len(student_BK) * difference_BK


def binary_kl_norm_gradient(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    return temperature / len(student_BK) * (torch.sigmoid((student_BK - teacher_BK) / temperature) - 0.5)


# The last figure is the rounding error that float32 is allowed, in units of 1e-7: times τ² for each entry of the value,
# times τ/N for the gradient. It is 0 if every entry is exact to a relative 1e-5.
CASES = [
    pytest.param(losses.kd, kd_by_definition, kd_gradient, 2, id="kd"),
    pytest.param(losses.binary_kl, binary_kl_by_definition, binary_kl_gradient, 2, id="binary-kl"),
    pytest.param(losses.binary_kl_norm, binary_kl_norm_by_definition, binary_kl_norm_gradient, 0, id="binary-kl-norm"),
]
BINARY = [pytest.param(losses.binary_kl, id="binary-kl"), pytest.param(losses.binary_kl_norm, id="binary-kl-norm")]
ALL = [pytest.param(losses.kd, id="kd"), *BINARY]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """A batch of float32 logits of student and teacher, and a temperature."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 5)), draw(st.integers(2, 12))
    spread, distance = draw(st.floats(0.1, 5)), draw(st.floats(0.1, 5))
    teacher_BK = spread * torch.randn(shape, generator=generator)
    student_BK = teacher_BK + distance * torch.randn(shape, generator=generator)
    return student_BK, teacher_BK, draw(st.floats(1, 20))


def value_and_gradient(loss: Loss, student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student_BK = student_BK.clone().requires_grad_()
    value = loss(student_BK, teacher_BK, temperature)
    (gradient_BK,) = torch.autograd.grad(value, student_BK)
    return value.detach(), gradient_BK


@pytest.mark.parametrize(("loss", "by_definition", "closed_form", "rounding"), CASES)
@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_value_and_gradient_match_the_definition(
    loss: Loss, by_definition: Loss, closed_form: Loss, rounding: float, batch: tuple[Tensor, Tensor, float]
) -> None:
    student_BK, teacher_BK, temperature = batch
    exact = student_BK.double(), teacher_BK.double(), temperature
    expected, expected_gradient_BK = value_and_gradient(by_definition, *exact)
    torch.testing.assert_close(closed_form(*exact), expected_gradient_BK, rtol=1e-8, atol=1e-12)

    wide, wide_gradient_BK = value_and_gradient(loss, *exact)
    assert wide.dtype == wide_gradient_BK.dtype == torch.float64
    torch.testing.assert_close(wide, expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(wide_gradient_BK, expected_gradient_BK, rtol=1e-8, atol=1e-12)

    value, gradient_BK = value_and_gradient(loss, student_BK, teacher_BK, temperature)
    assert value.dtype == gradient_BK.dtype == torch.float32
    num_rows, num_classes = student_BK.shape
    rounded, rounded_gradient = 1e-7 * rounding * temperature**2 * num_classes, 1e-7 * rounding * temperature / num_rows
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=rounded)
    torch.testing.assert_close(gradient_BK.double(), expected_gradient_BK, rtol=1e-5, atol=rounded_gradient)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
def test_finite_for_any_difference(
    loss: Loss, dtype: torch.dtype, autocast: torch.dtype | None, temperature: float
) -> None:
    ends = torch.tensor([-1e4, -5e3, -100.0, -1.0, 0.0, 1.0, 100.0, 5e3, 1e4])
    # All pairs, and two more whose difference fp16 can't hold.
    student_BK = torch.cat([ends.repeat(9), torch.tensor([6e4, -6e4])])[None].to(dtype)
    teacher_BK = torch.cat([ends.repeat_interleave(9), torch.tensor([-6e4, 6e4])])[None].to(dtype)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        value, gradient_BK = value_and_gradient(loss, student_BK, teacher_BK, temperature)
    assert value.dtype == torch.float32
    assert gradient_BK.dtype == dtype
    assert torch.isfinite(value)
    assert torch.isfinite(gradient_BK).all()
    # Nothing is computed in less than float32, so float32 copies of the same inputs give the same bits.
    expected, expected_gradient_BK = value_and_gradient(loss, student_BK.float(), teacher_BK.float(), temperature)
    assert torch.equal(value, expected)
    assert torch.equal(gradient_BK, expected_gradient_BK.to(dtype))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
@pytest.mark.parametrize("difference", [-1e4, -2e3, 2e3, 1e4])
def test_far_from_the_teacher_the_losses_are_linear(difference: float, temperature: float) -> None:
    student_BK, teacher_BK = torch.tensor([[difference]]), torch.tensor([[0.0]])
    value, gradient_BK = value_and_gradient(losses.binary_kl_norm, student_BK, teacher_BK, temperature)
    assert value.item() == pytest.approx(temperature * abs(difference) / 2 - temperature**2 * math.log(2), rel=1e-6)
    assert gradient_BK.item() == pytest.approx(math.copysign(temperature / 2, difference), rel=1e-6)

    value, gradient_BK = value_and_gradient(losses.binary_kl, student_BK, teacher_BK, temperature)
    assert value.item() == pytest.approx(temperature * abs(difference) / 2 - temperature**2 * math.log(2), rel=1e-6)
    assert gradient_BK.item() == pytest.approx(math.copysign(temperature / 2, difference), rel=1e-6)

    # If the teacher is certain, all of the difference counts.
    value, gradient_BK = value_and_gradient(losses.binary_kl, student_BK, -student_BK, temperature)
    assert value.item() == pytest.approx(temperature * abs(difference), rel=1e-6)
    assert gradient_BK.item() == pytest.approx(math.copysign(temperature, difference), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
def test_cross_entropy_is_computed_in_float32(dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BK = (5 * torch.randn(6, 9, generator=generator)).to(dtype)
    labels_B = torch.randint(9, (6,), generator=generator)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        value = losses.cross_entropy(logits_BK, Labels(labels_B))
    wide_BK = logits_BK.double()
    picked_B = wide_BK[torch.arange(6), labels_B]
    expected = (torch.log(torch.exp(wide_BK).sum(1)) - picked_B).mean()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    assert losses.cross_entropy(wide_BK, Labels(labels_B)).dtype == torch.float64


def mixed_labels(generator: torch.Generator, rows: int, classes: int) -> Labels:
    """Any two classes, and shares from 0 to 1 with both ends among them."""
    first_B, second_B = torch.randint(classes, (2, rows), generator=generator)
    weight_B = torch.randint(257, (rows,), generator=generator) / 256
    weight_B[:2] = torch.tensor([0.0, 1.0])[:rows]
    return Labels(first_B, second_B, weight_B)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_mixed_image_has_its_share_of_both_labels_cross_entropies(smoothing: float, dtype: torch.dtype) -> None:
    """Row by row in float64: w · CE(first) + (1 − w) · CE(second), of the mean with 1/K if labels are smoothed."""
    generator = torch.Generator().manual_seed(3)
    logits_BK = (5 * torch.randn(7, 9, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = mixed_labels(generator, 7, 9)
    assert labels.second_B is not None
    assert labels.weight_B is not None
    exact_BK = logits_BK.detach().double().requires_grad_()
    rows = []
    shares = zip(exact_BK, labels.first_B.tolist(), labels.second_B.tolist(), labels.weight_B.tolist(), strict=True)
    for logits_K, first, second, weight in shares:
        log_p_K = torch.log(torch.exp(logits_K) / torch.exp(logits_K).sum())
        target_K = torch.zeros(9, dtype=torch.float64)
        target_K[first] += weight
        target_K[second] += 1 - weight
        target_K = (1 - smoothing) * target_K + smoothing / 9
        rows.append(-(target_K * log_p_K).sum())
    expected = torch.stack(rows).sum() / 7
    value = losses.smoothed_cross_entropy(logits_BK, labels, smoothing)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=0)
    gradient_BK, expected_gradient_BK = (
        torch.autograd.grad(loss, logits)[0] for loss, logits in ((value, logits_BK), (expected, exact_BK))
    )
    tolerance = 1e-2 if dtype == torch.bfloat16 else tolerance
    assert (gradient_BK.double() - expected_gradient_BK).norm() <= tolerance * expected_gradient_BK.norm()
    if smoothing == 0:
        assert torch.equal(losses.cross_entropy(logits_BK, labels), value)


def test_without_mixing_it_is_torchs_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(4)
    logits_BK, labels_B = torch.randn(64, 10, generator=generator), torch.randint(10, (64,), generator=generator)
    plain = losses.cross_entropy(logits_BK, Labels(labels_B))
    assert torch.equal(plain, torch.nn.functional.cross_entropy(logits_BK, labels_B)), "to the bit"
    smoothed = losses.smoothed_cross_entropy(logits_BK, Labels(labels_B), 0.1)
    assert torch.equal(smoothed, torch.nn.functional.cross_entropy(logits_BK, labels_B, label_smoothing=0.1))
    whole = Labels(labels_B, labels_B.roll(1), torch.ones(64))
    torch.testing.assert_close(losses.cross_entropy(logits_BK, whole), plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", BINARY)
@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_binary_losses_are_zero_exactly_where_student_equals_teacher(
    loss: Loss, batch: tuple[Tensor, Tensor, float]
) -> None:
    student_BK, teacher_BK, temperature = batch
    for dtype in (torch.float32, torch.float64):
        same_BK = teacher_BK.to(dtype)
        value, gradient_BK = value_and_gradient(loss, same_BK, same_BK, temperature)
        assert value == 0
        assert torch.count_nonzero(gradient_BK.abs() > 1e-7 * temperature) == 0
    assert loss(student_BK.double(), teacher_BK.double(), temperature) > 0
    one_off_BK = teacher_BK.double()
    one_off_BK[0, 0] += 0.01
    assert loss(one_off_BK, teacher_BK.double(), temperature) > 0


@pytest.mark.parametrize("loss", BINARY)
def test_binary_losses_sum_over_classes_and_average_over_the_batch(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(1)
    student_BK, teacher_BK = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    value = loss(student_BK, teacher_BK, 2.0)
    torch.testing.assert_close(loss(student_BK.repeat(4, 1), teacher_BK.repeat(4, 1), 2.0), value)
    torch.testing.assert_close(loss(student_BK.repeat(1, 4), teacher_BK.repeat(1, 4), 2.0), 4 * value)


def test_kd_limits() -> None:
    generator = torch.Generator().manual_seed(2)
    student_BK, teacher_BK = torch.randn(2, 4, 10, generator=generator, dtype=torch.float64)
    # Only the differences between classes matter.
    torch.testing.assert_close(losses.kd(student_BK + 3, teacher_BK - 7, 4.0), losses.kd(student_BK, teacher_BK, 4.0))
    assert losses.kd(teacher_BK + 1, teacher_BK, 4.0).item() == pytest.approx(0, abs=1e-14)
    # A teacher that is certain is a label.
    labels_B = torch.tensor([3, 0, 9, 9])
    sure_BK = 1e4 * torch.nn.functional.one_hot(labels_B, 10).double()
    torch.testing.assert_close(losses.kd(student_BK, sure_BK, 1.0), losses.cross_entropy(student_BK, Labels(labels_B)))
    # A high temperature matches centred logits (Hinton et al., section 2.1): ½ · mean over classes of their squares.
    difference_BK = (student_BK - student_BK.mean(1, keepdim=True)) - (teacher_BK - teacher_BK.mean(1, keepdim=True))
    matching = difference_BK.square().mean(1).mean() / 2
    torch.testing.assert_close(losses.kd(student_BK, teacher_BK, 1e4), matching, rtol=1e-3, atol=0)
