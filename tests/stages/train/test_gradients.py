"""Summed and aligned gradients, against a float64 reference that flattens everything and projects as the paper says."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.stages.train.gradients import Alignment, AlignmentReport, backward
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.e2e.command_line import in_processes
from tests.stages.train.two_heads import (
    KEEP_CE,
    WEIGHTS,
    TwoHeads,
    agreeing_heads,
    batch,
    two_terms,
    uneven_batch,
)


def vector(tensors: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> np.ndarray:
    """The gradients of all parameters as one float64 vector, with zeros for those that have none."""
    return np.concatenate(
        [
            (torch.zeros_like(parameter) if tensor is None else tensor).detach().double().numpy().ravel()
            for tensor, parameter in zip(tensors, parameters, strict=True)
        ]
    )


def gradient_of(parameters: Sequence[nn.Parameter]) -> np.ndarray:
    return vector([parameter.grad for parameter in parameters], parameters)


def alone(make_terms: Callable[[], dict[str, Tensor]], parameters: Sequence[nn.Parameter], name: str) -> np.ndarray:
    """The gradient of one weighted term alone, by plain `backward()`."""
    for parameter in parameters:
        parameter.grad = None
    (WEIGHTS[name] * make_terms()[name]).backward()
    gradient = gradient_of(parameters)
    for parameter in parameters:
        parameter.grad = None
    return gradient


def textbook(g1: np.ndarray, g2: np.ndarray) -> np.ndarray:
    """If they conflict, g2 loses its component along g1; then both are added."""
    if g1 @ g2 < 0:
        g2 = g2 - (g1 @ g2) / (g1 @ g1) * g1
    return g1 + g2


def linear_terms(
    coefficients1: Sequence[float | None], coefficients2: Sequence[float | None], parameters: Sequence[nn.Parameter]
) -> dict[str, Tensor]:
    """Terms whose gradients are the coefficients; with None, the parameter is not part of the term."""
    anchor = parameters[-1].sum() * 0  # keeps a term without coefficients in the graph
    return {
        name: sum(
            (c * parameter.sum() for c, parameter in zip(coefficients, parameters, strict=False) if c is not None),
            anchor,
        )
        for name, coefficients in (("ce", coefficients1), ("kl", coefficients2))
    }


def scalars(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(count)]


ONE = {"ce": 1.0, "kl": 1.0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("opposed", [True, False])
def test_aligned_gradient_is_the_textbook_projection(opposed: bool, dtype: torch.dtype) -> None:
    model = agreeing_heads(TwoHeads()).to(dtype)
    images_BCHW, labels_B = batch()
    parameters = list(model.parameters())

    def make_terms() -> dict[str, Tensor]:
        return two_terms(model, images_BCHW.to(dtype), labels_B, opposed=opposed)

    g1, g2 = alone(make_terms, parameters, "ce"), alone(make_terms, parameters, "kl")
    assert (g1 @ g2 < 0) == opposed
    report = backward(make_terms(), WEIGHTS, parameters, alignment=KEEP_CE)

    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    merged = gradient_of(parameters)
    np.testing.assert_allclose(merged, textbook(g1, g2), rtol=0, atol=tolerance * np.abs(merged).max())
    assert model.unused.grad is None
    assert report is not None
    assert bool(report.conflict) == opposed
    assert report.dot.item() == pytest.approx(g1 @ g2, rel=tolerance)
    assert report.norm1_squared.item() == pytest.approx(g1 @ g1, rel=tolerance)
    assert report.norm2_squared.item() == pytest.approx(g2 @ g2, rel=tolerance)
    expected_cosine = g1 @ g2 / np.linalg.norm(g1) / np.linalg.norm(g2)
    assert report.cosine.item() == pytest.approx(expected_cosine, rel=tolerance)
    # Nothing opposes the term that is kept any more, and it contains g1 unaltered.
    assert (merged - g1) @ g1 >= -tolerance * (g1 @ g1)


@pytest.mark.parametrize("opposed", [False, True])
def test_with_its_own_coefficient_one_backward_gives_the_aligned_gradient(opposed: bool) -> None:
    model = agreeing_heads(TwoHeads()).double()
    images_BCHW, labels_B = batch()
    parameters = list(model.parameters())

    def gradient(coefficient: Tensor | None) -> tuple[np.ndarray, AlignmentReport | None]:
        model.zero_grad()
        terms = two_terms(model, images_BCHW.double(), labels_B, opposed=opposed)
        report = backward(terms, WEIGHTS, parameters, alignment=KEEP_CE, coefficient=coefficient)
        return vector([parameter.grad for parameter in parameters], parameters), report

    exact, report = gradient(None)
    assert report is not None
    again, none = gradient(report.coefficient)
    assert none is None
    np.testing.assert_allclose(again, exact, rtol=1e-10, atol=1e-14)
    summed, _ = gradient(torch.zeros(()))
    assert np.allclose(summed, exact) != opposed, "where nothing is opposed, it is the sum"


def test_the_other_term_can_be_kept() -> None:
    model = agreeing_heads(TwoHeads()).double()
    images_BCHW, labels_B = batch()
    parameters = list(model.parameters())

    def make_terms() -> dict[str, Tensor]:
        return two_terms(model, images_BCHW.double(), labels_B, opposed=True)

    g1, g2 = alone(make_terms, parameters, "ce"), alone(make_terms, parameters, "kl")
    backward(make_terms(), WEIGHTS, parameters, alignment=Alignment(kept=("kl",)))
    np.testing.assert_allclose(gradient_of(parameters), textbook(g2, g1), rtol=1e-10, atol=1e-14)
    assert not np.allclose(textbook(g2, g1), textbook(g1, g2), rtol=1e-2)


def test_unaligned_is_one_backward_of_the_weighted_sum() -> None:
    model = agreeing_heads(TwoHeads())
    twin = copy.deepcopy(model)
    images_BCHW, labels_B = batch()
    terms = two_terms(twin, images_BCHW, labels_B, opposed=True)
    (3.0 * (WEIGHTS["ce"] * terms["ce"] + WEIGHTS["kl"] * terms["kl"])).backward()
    terms = two_terms(model, images_BCHW, labels_B, opposed=True)
    calls: list[list[Tensor]] = []
    report = backward(
        terms, WEIGHTS, list(model.parameters()), alignment=None, scale=lambda loss: 3.0 * loss, average=calls.append
    )
    assert report is None
    assert calls == []  # DDP's hooks average what backward() leaves
    for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
        if expected.grad is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-6, atol=1e-8)


coefficient_lists = st.lists(st.one_of(st.none(), st.integers(-50, 50)), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(first=coefficient_lists, second=coefficient_lists)
def test_any_reach_and_any_sign(first: list[int | None], second: list[int | None]) -> None:
    parameters = scalars(5)
    g1, g2 = (np.array([c or 0 for c in coefficients] + [0], dtype=float) for coefficients in (first, second))
    report = backward(linear_terms(first, second, parameters), ONE, parameters, alignment=KEEP_CE)
    merged = gradient_of(parameters)
    np.testing.assert_allclose(merged, textbook(g1, g2), rtol=1e-12, atol=1e-12)
    assert (merged - g1) @ g1 >= -1e-12 * (1 + g1 @ g1)
    assert report is not None
    assert report.dot == g1 @ g2
    assert bool(report.conflict) == (g1 @ g2 < 0)
    if g1 @ g2 >= 0:  # one-sided: without a conflict it is the plain sum, to the bit
        twins = scalars(5)
        backward(linear_terms(first, second, twins), ONE, twins, alignment=None)
        assert (merged == gradient_of(twins)).all()


def test_a_zero_gradient_leaves_the_other_alone() -> None:
    for first, second in (([0.0, 0.0], [3.0, -4.0]), ([3.0, -4.0], [0.0, 0.0]), ([0.0, 0.0], [0.0, 0.0])):
        parameters = scalars(2)
        report = backward(linear_terms(first, second, parameters), ONE, parameters, alignment=KEEP_CE)
        assert gradient_of(parameters).tolist() == [a + b for a, b in zip(first, second, strict=True)]
        assert report is not None
        assert report.cosine == 0
        assert not report.conflict


def test_a_term_of_weight_zero_neither_aligns_nor_is_aligned() -> None:
    for name, left in (("ce", [-3.0, -1.0]), ("kl", [2.0, 5.0])):
        parameters = scalars(2)
        terms = linear_terms([2.0, 5.0], [-3.0, -1.0], parameters)
        backward(terms, {**ONE, name: 0.0}, parameters, alignment=KEEP_CE)
        assert gradient_of(parameters).tolist() == left


def test_heads_over_a_frozen_body_share_no_parameter() -> None:
    parameters = scalars(2)
    report = backward(
        {"ce": 2 * parameters[0].sum(), "kl": -3 * parameters[1].sum()}, ONE, parameters, alignment=KEEP_CE
    )
    assert gradient_of(parameters).tolist() == [2, -3]
    assert report is not None
    assert report.dot == 0


def test_several_other_terms_are_projected_as_one() -> None:
    parameters = scalars(2)
    terms = linear_terms([1.0, 0.0], [-5.0, 1.0], parameters)
    terms["third"] = linear_terms([], [4.0, 2.0], parameters)["kl"]
    backward(terms, {**ONE, "third": 1.0}, parameters, alignment=KEEP_CE)
    assert gradient_of(parameters).tolist() == [1, 3]  # (−5, 1) + (4, 2) = (−1, 3), projected: (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("free", [("hint",), ("hint", "angle")], ids=["one-free", "two-free"])
@pytest.mark.parametrize("opposed", [True, False])
def test_free_terms_are_added_as_they_are(opposed: bool, free: tuple[str, ...], dtype: torch.dtype) -> None:
    model = agreeing_heads(TwoHeads()).to(dtype)
    images_BCHW, labels_B = batch()
    parameters = list(model.parameters())
    weights = {"hint": 3.0, **WEIGHTS, "angle": 0.7}
    weights = {name: weight for name, weight in weights.items() if name in WEIGHTS or name in free}

    def make_terms() -> dict[str, Tensor]:
        images = images_BCHW.to(dtype)
        terms = two_terms(model, images, labels_B, opposed=opposed)
        # One opposes the cross-entropy and reaches a parameter that no other term reaches; the other reaches the body.
        terms["hint"] = -2 * terms["ce"] + model.unused.square().sum()
        terms["angle"] = model.body(images).abs().mean()
        return {name: terms[name] for name in weights}

    gradients = {}
    for name in weights:
        (weights[name] * make_terms()[name]).backward()
        gradients[name] = gradient_of(parameters)
        model.zero_grad(set_to_none=True)
    g1, g2 = gradients["ce"], gradients["kl"]
    g3 = np.sum([gradients[name] for name in free], axis=0)
    assert g1 @ g3 < 0
    report = backward(make_terms(), weights, parameters, alignment=Alignment(kept=("ce",), against=("kl",)))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    merged, expected = gradient_of(parameters), textbook(g1, g2) + g3
    np.testing.assert_allclose(merged, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    # Projecting g3 together with g2 would give another gradient, and so would, if they conflict, keeping it with g1.
    others = [textbook(g1, g2 + g3), *([textbook(g1 + g3, g2)] if opposed else [])]
    assert all(np.abs(merged - other).max() > 0.01 * np.abs(merged).max() for other in others)
    assert report is not None
    assert report.dot.item() == pytest.approx(g1 @ g2, rel=tolerance)
    assert report.norm2_squared.item() == pytest.approx(g2 @ g2, rel=tolerance)


three_terms = st.lists(coefficient_lists, min_size=3, max_size=3)


@settings(max_examples=100, deadline=None)
@given(coefficients=three_terms)
def test_a_free_term_of_any_reach_is_added(coefficients: list[list[int | None]]) -> None:
    parameters = scalars(5)
    g1, g2, g3 = (np.array([c or 0 for c in row] + [0], dtype=float) for row in coefficients)
    terms = linear_terms(coefficients[0], coefficients[1], parameters)
    terms["free"] = linear_terms(coefficients[2], [], parameters)["ce"]
    backward(terms, {**ONE, "free": 1.0}, parameters, alignment=Alignment(kept=("ce",), against=("kl",)))
    np.testing.assert_allclose(gradient_of(parameters), textbook(g1, g2) + g3, rtol=1e-12, atol=1e-12)


def test_free_terms_are_averaged_and_scaled_like_the_others() -> None:
    parameters = scalars(3)
    seen: list[list[float]] = []

    def average(gradients: list[Tensor]) -> None:
        seen.append([gradient.item() for gradient in gradients])
        for gradient in gradients:
            gradient.mul_(10)

    terms = {"free": 4 * parameters[0].sum() + parameters[2].sum(), "ce": parameters[0].sum()}
    terms["kl"] = -3 * parameters[0].sum() + 2 * parameters[1].sum()
    aligned = Alignment(kept=("ce",), against=("kl",))
    weights = {"free": 1.0, **ONE}
    backward(terms, weights, parameters, alignment=aligned, scale=lambda loss: 2 * loss, average=average)
    assert seen == [[2.0], [-6.0, 4.0], [8.0, 2.0]]
    assert gradient_of(parameters).tolist() == [20 + 80, 40, 20]


def test_terms_are_split_by_name_and_none_means_all_others() -> None:
    names = ["map", "kl", "ce", "angle"]
    assert Alignment(kept=("ce",)).split(names) == (["ce"], ["map", "kl", "angle"], [])
    assert Alignment(kept=("ce",), against=("kl",)).split(names) == (["ce"], ["kl"], ["map", "angle"])
    assert Alignment(kept=("ce", "kl"), against=("kl", "map")).split(names) == (["kl", "ce"], ["map"], ["angle"])
    assert Alignment(kept=("ce",), against=()).split(names) == (["ce"], [], ["map", "kl", "angle"])


@pytest.mark.parametrize(
    ("alignment", "message_part"),
    [
        (Alignment(kept=("mse",)), "no term is kept"),
        (Alignment(kept=("ce", "kl")), "no term is against"),
        (Alignment(kept=("ce",), against=("mse",)), "no term is against"),
    ],
)
def test_an_alignment_without_terms_on_both_sides_is_a_programmers_error(
    alignment: Alignment, message_part: str
) -> None:
    parameters = scalars(2)
    with pytest.raises(AssertionError, match=message_part):
        backward(linear_terms([1.0], [1.0], parameters), ONE, parameters, alignment=alignment)


@pytest.mark.parametrize("opposed", [True, False])
def test_a_common_scale_passes_through(opposed: bool) -> None:
    images_BCHW, labels_B = batch()
    gradients, reports = [], []
    for factor in (1.0, 65536.0):
        model = agreeing_heads(TwoHeads())
        parameters = list(model.parameters())
        terms = two_terms(model, images_BCHW, labels_B, opposed=opposed)
        report = backward(terms, WEIGHTS, parameters, alignment=KEEP_CE, scale=lambda loss, f=factor: f * loss)
        assert isinstance(report, AlignmentReport)
        gradients.append(gradient_of(parameters) / factor)
        reports.append(report)
    assert (gradients[0] == gradients[1]).all()  # a power of two changes no digit
    assert reports[0].cosine == reports[1].cosine
    assert reports[0].conflict == reports[1].conflict == opposed


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("second", [[1.0, 2.0], [-1.0, -2.0]], ids=["agreeing", "opposed"])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("which", ["ce", "kl"])
def test_a_gradient_that_is_not_finite_stays_so(which: str, position: int, second: list[float], bad: float) -> None:
    parameters = scalars(5)
    coefficients: dict[str, list[float | None]] = {"ce": [1.0, 2.0, None], "kl": [*second, None]}
    coefficients[which][position] = bad  # the third is reached by this term alone
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    terms = linear_terms(coefficients["ce"], coefficients["kl"], parameters)
    backward(terms, ONE, parameters, alignment=KEEP_CE, scale=scaler.scale)
    assert not np.isfinite(gradient_of(parameters)).all()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1.0
    assert all(torch.equal(parameter, old) for parameter, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("weights_last", [True, False])
@pytest.mark.parametrize("opposed", [True, False])
def test_memory_format_changes_nothing_but_the_layout(opposed: bool, weights_last: bool) -> None:
    images_BCHW, labels_B = batch()
    plain, strided = agreeing_heads(TwoHeads()), agreeing_heads(TwoHeads())
    if weights_last:
        strided.to(memory_format=torch.channels_last)
    for model, images in ((plain, images_BCHW), (strided, images_BCHW.to(memory_format=torch.channels_last))):
        terms = two_terms(model, images, labels_B, opposed=opposed)
        backward(terms, WEIGHTS, list(model.parameters()), alignment=KEEP_CE)
    for one, other in zip(plain.parameters(), strided.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
        if other.grad is not None:
            assert other.grad.stride() == other.stride()


def test_gradients_that_share_memory_or_are_views() -> None:
    generator = torch.Generator().manual_seed(3)
    x_DE = torch.randn(3, 4, generator=generator)
    first, second, third = (nn.Parameter(torch.zeros(3, 4)) for _ in range(3))

    def average(gradients: list[Tensor]) -> None:
        for gradient in gradients:
            gradient.copy_(gradient.clone())  # in place, as over one process

    # autograd gives `first` and `second` one tensor, and `third` an expanded one.
    terms = {"ce": ((first + second) * x_DE).sum() + third.sum(), "kl": -third.sum() - (first * x_DE).sum()}
    parameters = [first, second, third]
    backward(terms, ONE, parameters, alignment=KEEP_CE, average=average)
    x, zero, one = x_DE.double().numpy().ravel(), np.zeros(12), np.ones(12)
    expected = textbook(np.concatenate([x, x, one]), np.concatenate([-x, zero, -one]))
    np.testing.assert_allclose(gradient_of(parameters), expected, rtol=1e-5, atol=1e-6)


def test_averaging_sees_what_each_term_reaches_and_comes_before_the_projection() -> None:
    parameters = scalars(3)
    seen: list[list[float]] = []

    def average(gradients: list[Tensor]) -> None:
        seen.append([gradient.item() for gradient in gradients])
        for gradient in gradients:
            gradient.add_(2.0 * len(seen))

    terms = {
        "ce": parameters[0].sum() + 3 * parameters[1].sum(),
        "kl": -9 * parameters[0].sum() + 7 * parameters[2].sum(),
    }
    backward(terms, ONE, parameters, alignment=KEEP_CE, average=average)
    assert seen == [[1.0, 3.0], [-9.0, 7.0]]
    expected = textbook(np.array([3.0, 5.0, 0.0]), np.array([-5.0, 0.0, 11.0]))
    np.testing.assert_allclose(gradient_of(parameters), expected, rtol=1e-12)


def test_weights_must_name_the_terms() -> None:
    parameters = scalars(2)
    with pytest.raises(AssertionError, match="kl"):
        backward(linear_terms([1.0], [1.0], parameters), {"ce": 1.0}, parameters, alignment=KEEP_CE)


IN_EVERY_PROCESS = """
import importlib.util, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from dhkd.stages.train.gradients import backward

spec = importlib.util.spec_from_file_location("two_heads", sys.argv[1])
two_heads = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two_heads)

def average(gradients):
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()

dist.init_process_group("gloo")
rank = dist.get_rank()
images_BCHW, labels_B = two_heads.uneven_batch()
share = slice(4 * rank, 4 * rank + 4)
results = {}
for way in ("average, then project", "project, then average", "summed by DDP"):
    model = two_heads.agreeing_heads(two_heads.TwoHeads()).double()
    model.unused.requires_grad_(False)
    parallel = DistributedDataParallel(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    summed = way == "summed by DDP"
    with parallel.no_sync() if not summed else torch.enable_grad():
        terms = two_heads.two_terms(parallel, images_BCHW[share], labels_B[share], opposed=True)
        backward(
            terms, two_heads.WEIGHTS, parameters,
            alignment=None if summed else two_heads.KEEP_CE, average=average if way.startswith("average") else None,
        )
    if way.startswith("project"):
        average([parameter.grad for parameter in parameters])
    results[way] = [parameter.grad for parameter in parameters]
torch.save(results, f"{sys.argv[2]}/rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """What two real processes computed, each from half of the batch."""
    folder = tmp_path_factory.mktemp("two_processes")
    script = folder / "in_every_process.py"
    script.write_text(IN_EVERY_PROCESS)
    outcome = in_processes(2, Path(__file__).with_name("two_heads.py"), folder, script=script)
    assert outcome.code == 0, outcome.err[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def joint_gradient(alignment: Alignment | None) -> tuple[np.ndarray, AlignmentReport | None]:
    """One process's result on the whole batch."""
    model = agreeing_heads(TwoHeads()).double()
    model.unused.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    terms = two_terms(model, *uneven_batch(), opposed=True)
    report = backward(terms, WEIGHTS, parameters, alignment=alignment)
    return gradient_of(parameters), report


def flat(tensors: Sequence[Tensor]) -> np.ndarray:
    return vector(tensors, tensors)


@pytest.mark.slow
def test_two_processes_align_as_one_on_the_joint_batch(two_processes: list[dict[str, list[Tensor]]]) -> None:
    joint, report = joint_gradient(KEEP_CE)
    assert report is not None
    assert report.conflict
    for result in two_processes:
        np.testing.assert_allclose(flat(result["average, then project"]), joint, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_projecting_before_averaging_is_another_algorithm(two_processes: list[dict[str, list[Tensor]]]) -> None:
    joint, _ = joint_gradient(KEEP_CE)
    other = flat(two_processes[0]["project, then average"])
    assert np.linalg.norm(other - joint) > 0.01 * np.linalg.norm(joint)


@pytest.mark.slow
def test_two_processes_sum_as_one_on_the_joint_batch(two_processes: list[dict[str, list[Tensor]]]) -> None:
    joint, _ = joint_gradient(None)
    for result in two_processes:
        np.testing.assert_allclose(flat(result["summed by DDP"]), joint, rtol=1e-9, atol=1e-12)
