"""The modules that methods train beside the student, against float64 transcriptions; and CRD's negatives."""

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.stages.models import build_network
from dhkd.stages.models.projected import ProjectedNetwork
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import build_objective, losses
from dhkd.stages.train.objectives.contract import Setting
from dhkd.stages.train.objectives.crd import Contrast, Negatives, contrastive_loss
from dhkd.stages.train.objectives.fitnet import Regressor
from dhkd.stages.train.objectives.ofd import Connectors, negative_mean, partial_l2
from dhkd.stages.train.objectives.reviewkd import Review, hierarchical_context_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

State = Mapping[str, Tensor]

TWO_LABELS = Labels(torch.tensor([1, 4]))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(
    index_B: Tensor | None = None, epoch: int = 0, teacher: Mapping[str, Tensor] | None = None, size: int = 2
) -> Batch:
    index_B = torch.arange(size) if index_B is None else index_B
    images_BCHW = torch.zeros(len(index_B), 3, 8, 8)
    return Batch(
        epoch, torch.zeros_like(index_B), index_B, images_BCHW, Labels(index_B % 2), teacher or {}, len(index_B)
    )


def used(module: nn.Module, seed: int = 0) -> nn.Module:
    """In double precision, with random weights and statistics, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and "memory" not in name and "scale" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return module


def convolved(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """By its definition: at each offset of the kernel the padded map, shifted, times that weight."""
    side, (height, width) = weight.shape[2], x_BCHW.shape[2:]
    padded = F.pad(x_BCHW, [side // 2] * 4)
    total = torch.zeros(())
    for y in range(side):
        for x in range(side):
            here = padded[:, :, y : y + height, x : x + width]
            total = total + torch.einsum("bchw,dc->bdhw", here, weight[:, :, y, x])
    return total if bias is None else total + bias[:, None, None]


def batch_normed(state: State, name: str, x_BCHW: Tensor, *, training: bool) -> Tensor:
    if training:
        mean = x_BCHW.mean((0, 2, 3))
        variance = ((x_BCHW - mean[:, None, None]) ** 2).mean((0, 2, 3))
    else:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    centred = (x_BCHW - mean[:, None, None]) / torch.sqrt(variance + 1e-5)[:, None, None]
    return centred * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def nearest(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Each position has the value of the old position that it falls into."""
    rows, columns = (
        [math.floor(at * old / new) for at in range(new)] for old, new in zip(x_BCHW.shape[2:], size, strict=True)
    )
    return x_BCHW[:, :, rows][:, :, :, columns]


def reviewed(state: State, features: list[Tensor], sizes: list[tuple[int, int]], *, training: bool) -> list[Tensor]:
    """Chen et al., figure 3, from the last level to the first.

    A level's feature and what comes from behind, at the level's size and of one width, are weighed by two maps of
    attention that a 1×1 convolution and σ make of both; the sum, at the teacher's size, goes to the level before, and
    through a 3×3 convolution it is the level's imitation.
    """
    behind, outs = None, []
    for level in reversed(range(len(features))):
        name = f"fusions.{level}"
        narrow = convolved(features[level], state[f"{name}.narrow.0.weight"])
        fused = batch_normed(state, f"{name}.narrow.1", narrow, training=training)
        if behind is not None:
            behind = nearest(behind, tuple(fused.shape[2:]))
            weight, bias = state[f"{name}.attention.0.weight"], state[f"{name}.attention.0.bias"]
            attention = 1 / (1 + torch.exp(-convolved(torch.cat([fused, behind], 1), weight, bias)))
            fused = attention[:, 0:1] * fused + attention[:, 1:2] * behind
        behind = nearest(fused, sizes[level])
        out = convolved(behind, state[f"{name}.out.0.weight"])
        outs.insert(0, batch_normed(state, f"{name}.out.1", out, training=training))
    return outs


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(4, 8, 8), (6, 4, 4), (7, 1, 1)], [(5, 8, 8), (3, 4, 4), (9, 1, 1)]),
        ([(4, 6, 6), (6, 3, 3), (5, 2, 2), (7, 1, 1)], [(5, 9, 9), (3, 6, 6), (4, 3, 3), (9, 1, 1)]),
        ([(4, 6, 4), (7, 1, 1)], [(5, 3, 2), (2, 1, 1)]),
    ],
    ids=["same-sizes", "smaller-student", "larger-student"],
)
def test_review_is_that_of_the_paper(
    student: list[tuple[int, int, int]], teacher: list[tuple[int, int, int]], training: bool
) -> None:
    names = [*(f"map{stage}" for stage in range(1, len(student))), "embedding"]
    review = used(Review(names, student, teacher)).train(training)
    assert review.fusions[0].narrow[0].out_channels == student[-1][0]  # the width in the middle
    features = {
        name: drawn(3, *shape, seed=i).requires_grad_()
        for i, (name, shape) in enumerate(zip(names, student, strict=True))
    }
    features["embedding"] = drawn(3, student[-1][0], seed=9).requires_grad_()
    state = {name: tensor.detach().clone() for name, tensor in review.state_dict().items()}
    levels = [*(features[name] for name in names[:-1]), features["embedding"][:, :, None, None]]
    expected = reviewed(state, levels, [shape[1:] for shape in teacher], training=training)
    imitations = review(features, batch_of(size=3))
    assert list(imitations) == [f"review-{name}" for name in reversed(names)]
    outs = [imitations[f"review-{name}"] for name in names]
    assert [out.shape[1:] for out in outs] == [torch.Size(shape) for shape in teacher]
    torch.testing.assert_close(outs, expected, rtol=1e-9, atol=1e-10)
    gradients = [
        torch.autograd.grad(sum((out**2).sum() for out in way), list(features.values())) for way in (outs, expected)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-8)


def test_the_middle_of_a_review_is_at_most_512_wide() -> None:
    shapes = [(2, 4, 4), (700, 1, 1)]
    assert Review(["map1", "embedding"], shapes, shapes).fusions[0].narrow[0].out_channels == 512


def test_reviewkd_sums_all_levels_before_the_teachers_activation() -> None:
    features = {f"review-{name}": drawn(2, *shape, seed=i) for i, (name, shape) in enumerate(LEVELS.items())}
    teacher = {f"{name}-before": drawn(2, *shape, seed=10 + i) for i, (name, shape) in enumerate(LEVELS.items())}
    teacher["embedding"] = teacher.pop("embedding-before").flatten(1)
    expected = torch.zeros(())
    for name in LEVELS:
        target = teacher["embedding"][:, :, None, None] if name == "embedding" else teacher[f"{name}-before"]
        expected = expected + hierarchical_context_loss(features[f"review-{name}"], target)
    student = StudentOutputs(drawn(2, 5), drawn(2, 5), {**features, "map1": drawn(2, 3, 8, 8)})
    terms = build_objective("reviewkd", {}).terms(student, TWO_LABELS, teacher)
    torch.testing.assert_close(terms["review"], expected.double(), rtol=1e-12, atol=0)
    assert torch.equal(terms["ce"], losses.cross_entropy(student.task, TWO_LABELS))


LEVELS = {"map1": (3, 8, 8), "map2": (4, 4, 4), "embedding": (5, 1, 1)}


def averaged(x_BCHW: Tensor, side: int) -> Tensor:
    """Averaged to `side` × `side` positions; `side` divides the map's."""
    height, width = (old // side for old in x_BCHW.shape[2:])
    return x_BCHW.unflatten(3, (side, width)).unflatten(2, (side, height)).mean((3, 5))


def strided(x_BCHW: Tensor, weight: Tensor) -> Tensor:
    """Every second position of the padded 3×3 convolution."""
    return convolved(x_BCHW, weight)[:, :, ::2, ::2]


def transposed(x_BCHW: Tensor, weight: Tensor) -> Tensor:
    """Each value, times the kernel, is added around twice its position; a border of one position is cut off."""
    batch, _, height, width = x_BCHW.shape
    total = torch.zeros(batch, weight.shape[1], 2 * height + 2, 2 * width + 2, dtype=x_BCHW.dtype)
    for y, x in itertools.product(range(4), range(4)):
        added = torch.einsum("bchw,cd->bdhw", x_BCHW, weight[:, :, y, x])
        spread = torch.zeros_like(total)
        spread[:, :, y : y + 2 * height : 2, x : x + 2 * width : 2] = added
        total = total + spread
    return total[:, :, 1:-1, 1:-1]


def unpadded(x_BCHW: Tensor, weight: Tensor) -> Tensor:
    """The kernel at each place where it fits as a whole."""
    (rows, columns), (height, width) = weight.shape[2:], x_BCHW.shape[2:]
    total = torch.zeros(())
    for y, x in itertools.product(range(rows), range(columns)):
        here = x_BCHW[:, :, y : y + height - rows + 1, x : x + width - columns + 1]
        total = total + torch.einsum("bchw,dc->bdhw", here, weight[:, :, y, x])
    return total


def repeated(x_BCHW: Tensor, weight: Tensor) -> Tensor:
    return convolved(nearest(x_BCHW, (8, 8)), weight)


# The student's and the teacher's size, the kernel's size, and the convolution by its definition.
REGRESSORS = {
    "one size": ((5, 3), (5, 3), (1, 1), convolved),
    "twice as large": ((8, 6), (4, 3), (3, 3), strided),
    "half as large": ((4, 3), (8, 6), (4, 4), transposed),
    "larger": ((7, 5), (5, 4), (3, 2), unpadded),
    "four times as large": ((8, 8), (2, 2), (7, 7), unpadded),
    "a quarter": ((2, 2), (8, 8), (1, 1), repeated),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("size", "wanted", "kernel", "by_definition"), REGRESSORS.values(), ids=REGRESSORS)
def test_the_regressor_and_the_hint_are_the_published_ones(
    size: tuple[int, int],
    wanted: tuple[int, int],
    kernel: tuple[int, int],
    by_definition: Callable[[Tensor, Tensor], Tensor],
    training: bool,
) -> None:
    """RepDistiller, models/util.py, `ConvReg`; the last size is one that it refuses."""
    regressor = used(Regressor("map2", (3, *size), (5, *wanted))).train(training)
    student_BCHW, teacher_BCHW = drawn(2, 3, *size, seed=1).requires_grad_(), drawn(2, 5, *wanted, seed=2)
    state = {name: tensor.detach().clone() for name, tensor in regressor.state_dict().items()}
    assert state["layers.0.weight"].shape[2:] == kernel
    convolution = by_definition(student_BCHW, state["layers.0.weight"]) + state["layers.0.bias"][:, None, None]
    expected = batch_normed(state, "layers.1", convolution, training=training).clamp(min=0)
    imitation = regressor({"map2": student_BCHW}, batch_of())
    torch.testing.assert_close(imitation, {"fitnet": expected}, rtol=1e-9, atol=1e-10)

    student = StudentOutputs(drawn(2, 5), drawn(2, 5), {"map2": student_BCHW, **imitation})
    hint = build_objective("fitnet", {}).terms(student, TWO_LABELS, {"map2": teacher_BCHW})["hint"]
    difference = ((expected - teacher_BCHW) ** 2).sum() / teacher_BCHW.numel()
    torch.testing.assert_close(hint, difference, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, student_BCHW)[0] for value in (hint, difference)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_connectors_and_their_weights_are_those_of_the_overhaul(training: bool) -> None:
    student, teacher = [(9, 9, 9), (2, 4, 4), (3, 4, 4), (4, 4, 4)], [(9, 9, 9), (3, 8, 8), (4, 4, 4), (5, 2, 2)]
    margins = [-torch.linspace(0.1, 1, shape[0]).double() for shape in teacher[1:]]
    connectors = used(Connectors([1, 2, 3], (2, 3, 4), (3, 4, 5), margins)).train(training)
    with torch.no_grad():
        for stage, margin in enumerate(margins, 1):
            connectors.get_buffer(f"margin{stage}").copy_(margin)
    features = {f"map{stage}-before": drawn(2, *student[stage], seed=stage) for stage in (1, 2, 3)}
    signals = {f"map{stage}-before-batch": drawn(2, *teacher[stage], seed=5 + stage) for stage in (1, 2, 3)}
    state = {name: tensor.detach().clone() for name, tensor in connectors.state_dict().items()}
    imitations = connectors(features, batch_of())
    total = 0.0
    for stage, share in ((1, 1 / 4), (2, 1 / 2), (3, 1)):  # each stage's is half the following one's
        convolution = convolved(features[f"map{stage}-before"], state[f"layers.{stage}.0.weight"])
        expected = batch_normed(state, f"layers.{stage}.1", convolution, training=training)
        torch.testing.assert_close(imitations[f"ofd{stage}"], expected, rtol=1e-9, atol=1e-10)
        # The teacher's map at the student's size: averaged if it is larger, repeated if it is smaller.
        target = signals[f"map{stage}-before-batch"]
        target = nearest(target, (4, 4)) if stage == 3 else averaged(target, 4)
        total += share * partial_l2(expected, target, margins[stage - 1])
    outputs = StudentOutputs(drawn(2, 5), drawn(2, 5), {**features, **imitations})
    terms = build_objective("ofd", {}).terms(outputs, TWO_LABELS, signals)
    torch.testing.assert_close(terms["ofd"], total, rtol=1e-9, atol=0)
    plain = {name.removesuffix("-batch"): signal for name, signal in signals.items()}
    as_trained = build_objective("ofd", {"teacher_batch_norm": "eval"})
    assert as_trained.terms(outputs, TWO_LABELS, plain)["ofd"] == terms["ofd"]


def test_margins_are_those_of_the_batch_norm_before_each_last_activation() -> None:
    torch.manual_seed(0)
    teacher = used(build_network("resnet14", 5)).float().eval()
    shapes = [Shapes(name, 5, (8, 8)) for name in ("resnet8", "resnet14")]
    adapter = build_objective("ofd", {}).adapter(Setting(*shapes, torch.arange(10) % 5, 0, teacher))
    for stage in (1, 2, 3):
        expected = negative_mean(teacher.get_submodule(f"layer{stage}.1.bn2"))
        assert torch.equal(adapter.get_buffer(f"margin{stage}"), expected)
        assert (expected < 0).all()
    assert "margin1" in adapter.state_dict()  # so a checkpoint has it


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("teacher", "shrink", "width"), [("resnet14", 1, 64), ("vgg8", 2, 512)])
def test_simkds_network_is_the_students_trunk_a_projector_and_the_teachers_classifier(
    teacher: str, shrink: int, width: int, training: bool
) -> None:
    torch.manual_seed(0)
    network = used(build_network(f"simkd:resnet8+{teacher}", 5)).train(training)
    assert isinstance(network, ProjectedNetwork)
    objective, given = build_objective("simkd", {}), build_network(teacher, 5).double()
    shapes = [Shapes(name, 5, (16, 16)) for name in ("resnet8", teacher)]
    setting = Setting(*shapes, torch.arange(10) % 5, 0, given)
    assert objective.architecture(setting).name == f"simkd:resnet8+{teacher}"
    objective.start(network, setting)
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    images_BCHW = drawn(2, 3, 16, 16)
    trunk = {name.removeprefix("trunk."): tensor for name, tensor in state.items() if name.startswith("trunk.")}
    alone = build_network("resnet8", 5).double().train(training)
    assert alone.load_state_dict(trunk, strict=False).missing_keys == ["fc.weight", "fc.bias"]

    x = averaged(alone.outputs(images_BCHW, maps=True).maps[-1].after, 4 // shrink)
    for layer in (0, 3, 6):
        convolution = convolved(x, state[f"projector.{layer}.weight"])
        x = batch_normed(state, f"projector.{layer + 1}", convolution, training=training).clamp(min=0)
    assert [state[f"projector.{layer}.weight"].shape for layer in (0, 3, 6)] == [
        (width // 2, 64, 1, 1),
        (width // 2, width // 2, 3, 3),
        (width, width // 2, 1, 1),
    ]
    outputs = network.outputs(images_BCHW, maps=True)
    torch.testing.assert_close(outputs.maps[-1].after, x, rtol=1e-9, atol=1e-10)
    logits_BK = x.mean((2, 3)) @ given.head.weight.T + given.head.bias
    torch.testing.assert_close(outputs.logits, logits_BK, rtol=1e-9, atol=1e-9)
    assert not network.head.weight.requires_grad
    assert all(p.requires_grad for name, p in network.named_parameters() if not name.startswith("classifier."))


# r, the positive's and the noise's.
RATIOS = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 4), ratios=RATIOS)
def test_contrast_is_noise_contrastive_estimation(rows: int, ratios: list[float]) -> None:
    """Tian et al., equations 9 to 11: h = r/(r + 1) is how likely a sample isn't noise."""
    ratio_BM = torch.tensor(ratios)[None] * torch.arange(1, rows + 1)[:, None]
    exact_BM = ratio_BM.double().requires_grad_()
    rows_of_loss = []
    for row in exact_BM:
        h = [r / (r + 1) for r in row]
        rows_of_loss.append(-torch.log(h[0]) - sum(torch.log(1 - one) for one in h[1:]))
    expected = torch.stack(rows_of_loss).sum() / rows
    (gradient,) = torch.autograd.grad(expected, exact_BM)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        given_BM = ratio_BM.to(dtype).requires_grad_()
        value = contrastive_loss(given_BM)
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=0)
        (found_gradient,) = torch.autograd.grad(value, given_BM)
        torch.testing.assert_close(found_gradient.double(), gradient, rtol=tolerance, atol=0)


@pytest.mark.parametrize("noise", [1, 7, 100])
def test_contrast_is_zero_for_perfect_ratios_and_as_computed_for_equal_ones(noise: int) -> None:
    perfect = contrastive_loss(torch.tensor([[1e12, *[1e-12] * noise]]))
    assert 0 <= perfect < 1e-9
    # If all ratios are equal, the minimum is where they are 1/noise.
    alike_1M = torch.full((1, 1 + noise), 1 / noise, dtype=torch.float64)
    least = (noise + 1) * math.log(noise + 1) - noise * math.log(noise)
    assert contrastive_loss(alike_1M).item() == pytest.approx(least, rel=1e-12)
    assert min(contrastive_loss(1.01 * alike_1M), contrastive_loss(0.99 * alike_1M)) > least
    # Ratios as extreme as exp(cosine / 0.07) makes them, and beyond.
    extreme_BM = torch.tensor([[1e-30, 1e30, 1e30], [1e30, 1e-30, 1.0]]).requires_grad_()
    value = contrastive_loss(extreme_BM)
    assert value.item() == pytest.approx((3 * 30 * math.log(10) + math.log(2)) / 2, rel=1e-6)
    assert torch.isfinite(torch.autograd.grad(value, extreme_BM)[0]).all()
    assert contrastive_loss(torch.ones(2, 3).bfloat16()).dtype == torch.float32


def cosine_scores(embedding_D: Tensor, memory_ND: Tensor, chosen: list[int], temperature: float) -> Tensor:
    return torch.stack([torch.exp((embedding_D * memory_ND[j]).sum() / temperature) for j in chosen])


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.0])
def test_the_memory_and_the_ratios_are_those_of_crd(momentum: float) -> None:
    """Replayed in float64: three steps of training, one of evaluation and another of training."""
    torch.manual_seed(0)
    samples, noise, temperature = 12, 6, 0.2
    negatives = Negatives(torch.arange(samples) % 3, noise, seed=4)
    contrast = Contrast(5, 7, 4, negatives, samples, temperature, momentum).train()
    state = {name: tensor.detach().double().clone() for name, tensor in contrast.state_dict().items()}
    memory = {who: state[f"memory_{who}"] for who in ("student", "teacher")}
    assert all(0.5 * (3 / 4) ** 0.5 < m.abs().max() <= (3 / 4) ** 0.5 for m in memory.values())
    scale: dict[str, float] = {}
    steps = [([3, 0, 7, 11], True), ([1, 2, 4], True), ([0, 3, 5, 6], True), ([3, 8], False), ([3, 9], True)]
    for step, (index, training) in enumerate(steps):
        contrast.train(training)
        index_B = torch.tensor(index)
        features = {
            "student": (3 * drawn(len(index), 5, seed=step)).float(),
            "teacher": drawn(len(index), 7, seed=50 + step).float(),
        }
        exact = {who: feature.double().requires_grad_() for who, feature in features.items()}
        embedding = {}
        for who in ("student", "teacher"):
            projected = exact[who] @ state[f"{who}.weight"].T + state[f"{who}.bias"]
            embedding[who] = projected / torch.sqrt((projected**2).sum(1, keepdim=True))
        chosen = [[i, *row] for i, row in zip(index, negatives.draw(step, index_B).tolist(), strict=True)]
        ratios = {}
        for who, other in (("student", "teacher"), ("teacher", "student")):
            rows = [
                cosine_scores(e, memory[other], row, temperature) for e, row in zip(embedding[who], chosen, strict=True)
            ]
            scores = torch.stack(rows)
            scale.setdefault(who, scores.mean().item() * samples)  # of the first batch, for good
            ratios[f"crd-{who}"] = scores / scale[who] / (noise / samples)

        given = features["student"].clone().requires_grad_()
        batch = batch_of(index_B, step, {"embedding": features["teacher"]})
        found = contrast({"embedding": given}, batch)
        for name, expected in ratios.items():
            torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=0)
            assert found[name].dtype == torch.float32
        (gradient,) = torch.autograd.grad(contrastive_loss(found["crd-student"]), given)
        (expected,) = torch.autograd.grad(contrastive_loss(ratios["crd-student"]), exact["student"])
        assert (gradient - expected).norm() <= 1e-5 * expected.norm()

        if training:
            for who in ("student", "teacher"):
                for i, e in zip(index, embedding[who].detach(), strict=True):
                    mixed = momentum * memory[who][i] + (1 - momentum) * e
                    memory[who][i] = mixed / torch.sqrt((mixed**2).sum())
        for who in ("student", "teacher"):
            torch.testing.assert_close(contrast.get_buffer(f"memory_{who}").double(), memory[who], rtol=1e-5, atol=1e-6)
            assert contrast.get_buffer(f"scale_{who}").item() == pytest.approx(scale[who], rel=1e-5)
    assert set(contrast.state_dict()) >= {"memory_student", "memory_teacher", "scale_student", "scale_teacher"}
    assert {name for name, _ in contrast.named_parameters()} == {
        *("student.weight", "student.bias"),
        *("teacher.weight", "teacher.bias"),
    }


@pytest.mark.parametrize("size", [1e4, 0.0, 1e-30])
def test_ratios_are_finite_and_float32_for_any_embedding(size: float) -> None:
    torch.manual_seed(0)
    contrast = Contrast(5, 7, 4, Negatives(torch.arange(12) % 3, 9, seed=4), 12, 0.07, 0.5).train()
    student_BD = (size * torch.randn(4, 5)).bfloat16().requires_grad_()
    batch = batch_of(torch.tensor([3, 0, 7, 11]), 0, {"embedding": size * torch.randn(4, 7)})
    with torch.autocast("cpu", torch.bfloat16):
        found = contrast({"embedding": student_BD}, batch)
    total = sum(contrastive_loss(ratio) for ratio in found.values())
    assert all(ratio.dtype == torch.float32 for ratio in found.values())
    assert torch.isfinite(total)
    assert torch.isfinite(torch.autograd.grad(total, student_BD)[0]).all()
    assert all(torch.isfinite(buffer).all() for buffer in contrast.buffers())


LABELS = {
    "even": torch.arange(60) % 6,
    "two classes, one of them two samples": (torch.arange(60) % 30 == 7).long(),
    "in order": torch.arange(60) // 20,
    "a number that no class has": torch.tensor([5, 0, 2, 2, 0, 5, 5, 5, 5, 0]),
}
EACH_LABELS = [pytest.param(labels, id=name) for name, labels in LABELS.items()]


@pytest.mark.parametrize("number", [1, 2, 7, 500])
@pytest.mark.parametrize("labels_N", EACH_LABELS)
def test_negatives_are_of_other_classes(labels_N: Tensor, number: int) -> None:
    index_B = torch.arange(len(labels_N))
    for epoch in (0, 3):
        drawn_BM = Negatives(labels_N, number, seed=1).draw(epoch, index_B)
        assert drawn_BM.shape == (len(labels_N), number)
        assert drawn_BM.dtype == torch.int64
        assert (labels_N[drawn_BM] != labels_N[:, None]).all()


@pytest.mark.parametrize("number", [1, 2, 7, 50])
@pytest.mark.parametrize("replacement", [True, False])
def test_negatives_are_a_function_of_seed_epoch_and_index(number: int, replacement: bool) -> None:
    labels_N = LABELS["even"]
    negatives = Negatives(labels_N, number, seed=1, replacement=replacement)
    index_B = torch.tensor([17, 3, 58])
    drawn_BM = negatives.draw(5, index_B)
    assert torch.equal(Negatives(labels_N, number, seed=1, replacement=replacement).draw(5, index_B), drawn_BM)
    # In any batch.
    for row, index in enumerate(index_B):
        assert torch.equal(negatives.draw(5, index[None]), drawn_BM[row : row + 1])
    everyone = torch.arange(60)
    plain = negatives.draw(5, everyone)
    assert not torch.equal(negatives.draw(6, everyone), plain)
    assert not torch.equal(Negatives(labels_N, number, seed=2, replacement=replacement).draw(5, everyone), plain)
    # Samples of one class have different negatives.
    assert len({tuple(row) for row in plain[labels_N == 0].tolist()}) > 1


@pytest.mark.parametrize("labels_N", EACH_LABELS)
def test_negatives_are_about_uniform_over_the_other_classes_samples(labels_N: Tensor) -> None:
    from scipy import stats

    number, epochs = 200, 10
    negatives = Negatives(labels_N, number, seed=3, replacement=True)
    for index in (0, 2, len(labels_N) - 3):
        others = torch.nonzero(labels_N != labels_N[index]).flatten()
        draws = torch.cat([negatives.draw(epoch, torch.tensor([index])) for epoch in range(epochs)]).flatten()
        counts = torch.bincount(draws, minlength=len(labels_N))[others]
        assert counts.sum() == number * epochs
        if len(others) > 1:
            assert stats.chisquare(counts.numpy()).pvalue > 0.001
        # The two halves of a raw draw are independent.
        pairs = draws.unflatten(0, (-1, 2))
        assert len(others) < 10 or 0.2 / len(others) < (pairs[:, 0] == pairs[:, 1]).float().mean() < 5 / len(others)


@pytest.mark.parametrize("number", [1, 7, 20, 39, 40])
def test_negatives_without_replacement_are_different_samples(number: int) -> None:
    labels_N = torch.arange(60) % 3
    index_B = torch.arange(60)
    for epoch in (0, 3, 11):
        rows = Negatives(labels_N, number, seed=1).draw(epoch, index_B).tolist()
        assert all(len(set(row)) == number for row in rows)
        if number == 40:  # all samples of the other classes
            others = [set(torch.nonzero(labels_N != label).flatten().tolist()) for label in range(3)]
            assert [set(row) for row in rows] == [others[index % 3] for index in range(60)]
    # More than there are samples of other classes, so that some must come twice.
    assert Negatives(labels_N, 41, seed=1).draw(0, index_B).shape == (60, 41)


def test_every_set_of_negatives_is_equally_likely() -> None:
    from scipy import stats

    labels_N = torch.tensor([0, 1, 1, 1, 1, 1])
    negatives = Negatives(labels_N, 3, seed=8)
    sets = [tuple(sorted(negatives.draw(epoch, torch.tensor([0]))[0].tolist())) for epoch in range(2000)]
    counts = [sets.count(chosen) for chosen in itertools.combinations(range(1, 6), 3)]
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > 0.001


def test_the_negatives_of_cifar_are_a_third_of_the_other_classes_samples() -> None:
    """16,384 of 49,500, as RepDistiller draws them: with replacement only about 14,000 would be different."""
    labels_N = torch.arange(50_000) % 100
    rows = Negatives(labels_N, 16_384, seed=0).draw(0, torch.tensor([0, 1, 17])).tolist()
    assert [len(set(row)) for row in rows] == [16_384] * 3
    with_replacement = Negatives(labels_N, 16_384, seed=0, replacement=True).draw(0, torch.tensor([0]))
    assert 13_800 < len(set(with_replacement[0].tolist())) < 14_200


@pytest.mark.parametrize("labels", [[0, 0, 0], [4, 4], [1]])
def test_one_class_alone_has_no_negatives(labels: list[int]) -> None:
    message = "^objective 'crd': expected samples of at least two classes, to tell them apart$"
    with pytest.raises(ConfigError, match=message):
        Negatives(torch.tensor(labels), 3, seed=0)
