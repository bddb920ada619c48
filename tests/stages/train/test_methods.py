"""The methods' losses, against float64 transcriptions of their papers' equations in loops and plain sums.

Limits and invariances are tested as properties. Modules with weights or a memory are in `test_adapters.py`.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.labels import Labels
from dhkd.stages.models import build_network
from dhkd.stages.models.signals import attention, cam_name, class_activation_maps, signals_of_outputs
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import build_objective, losses
from dhkd.stages.train.objectives.cat_kd import cam_loss
from dhkd.stages.train.objectives.dist import correlation_distance
from dhkd.stages.train.objectives.dkd import decoupled_kd
from dhkd.stages.train.objectives.ofd import negative_mean, partial_l2
from dhkd.stages.train.objectives.reviewkd import hierarchical_context_loss
from dhkd.stages.train.objectives.rkd import angle_loss, distance_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

# From a student's and a teacher's tensor to a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]

SMOOTHING = 0.3
TEMPERATURE = 3.0


def labels_of(logits_BK: Tensor) -> Tensor:
    """A class for each row."""
    return (torch.arange(len(logits_BK)) * 3 + 1) % logits_BK.shape[1]


def mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum() / len(values)


def probabilities(logits_K: Tensor) -> Tensor:
    exponentials_K = torch.exp(logits_K)
    return exponentials_K / exponentials_K.sum()


def kl(p: Sequence[Tensor], q: Sequence[Tensor]) -> Tensor:
    """KL(p ‖ q)."""
    return torch.stack([one * torch.log(one / other) for one, other in zip(p, q, strict=True)]).sum()


def tckd(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    tckd, _ = decoupled_kd(student_BK, teacher_BK, labels_of(student_BK), TEMPERATURE)
    return tckd


def tckd_by_definition(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Zhao et al., equation 5: KL(b^T ‖ b^S) of b = [p_t, Σ of the others' p], times τ²."""
    values = []
    for s_K, t_K, label in zip(student_BK, teacher_BK, labels_of(student_BK).tolist(), strict=True):
        p_K, q_K = probabilities(t_K / TEMPERATURE), probabilities(s_K / TEMPERATURE)
        others = [k for k in range(len(s_K)) if k != label]
        values.append(kl([p_K[label], p_K[others].sum()], [q_K[label], q_K[others].sum()]))
    return TEMPERATURE**2 * mean(values)


def nckd(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    _, nckd = decoupled_kd(student_BK, teacher_BK, labels_of(student_BK), TEMPERATURE)
    return nckd


def nckd_by_definition(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Zhao et al., equation 5: KL(p̂^T ‖ p̂^S) of p̂_i = p_i over the sum of those that aren't the target's, times τ²."""
    values = []
    for s_K, t_K, label in zip(student_BK, teacher_BK, labels_of(student_BK).tolist(), strict=True):
        others = [k for k in range(len(s_K)) if k != label]
        values.append(kl(probabilities(t_K[others] / TEMPERATURE), probabilities(s_K[others] / TEMPERATURE)))
    return TEMPERATURE**2 * mean(values)


def pearson(first: Tensor, second: Tensor) -> Tensor:
    first, second = first - first.sum() / len(first), second - second.sum() / len(second)
    return (first * second).sum() / torch.sqrt((first**2).sum() * (second**2).sum())


def inter(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    return dist_terms(student_BK, teacher_BK)["inter"]


def intra(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    return dist_terms(student_BK, teacher_BK)["intra"]


def dist_terms(student_BK: Tensor, teacher_BK: Tensor) -> dict[str, Tensor]:
    objective = build_objective("dist", {"temperature": TEMPERATURE})
    labels = Labels(labels_of(student_BK))
    return objective.terms(StudentOutputs(student_BK, student_BK), labels, {"logits": teacher_BK})


def inter_by_definition(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Huang et al., equation 9: 1/B · Σ_i of 1 − Pearson(Y_i,: of the student, of the teacher), times τ²."""
    rows = zip(student_BK, teacher_BK, strict=True)
    values = [1 - pearson(probabilities(s_K / TEMPERATURE), probabilities(t_K / TEMPERATURE)) for s_K, t_K in rows]
    return TEMPERATURE**2 * mean(values)


def intra_by_definition(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Huang et al., equation 10: 1/C · Σ_j of 1 − Pearson(Y_:,j of the student, of the teacher), times τ²."""
    student_BK = torch.stack([probabilities(s_K / TEMPERATURE) for s_K in student_BK])
    teacher_BK = torch.stack([probabilities(t_K / TEMPERATURE) for t_K in teacher_BK])
    values = [1 - pearson(student_BK[:, k], teacher_BK[:, k]) for k in range(student_BK.shape[1])]
    return TEMPERATURE**2 * mean(values)


def huber(x: Tensor, y: Tensor) -> Tensor:
    """Park et al., equation 7."""
    return (x - y) ** 2 / 2 if abs(x - y) <= 1 else abs(x - y) - 0.5


def apart(first: Tensor, second: Tensor) -> Tensor:
    return torch.sqrt(((first - second) ** 2).sum())


def distance_by_definition(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Park et al., equations 5, 6 and 8: Huber of ‖t_i − t_j‖ / μ, μ their mean over the pairs; mean over N²."""
    size = len(student_BD)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    student, teacher = ({(i, j): apart(x[i], x[j]) for i, j in pairs} for x in (student_BD, teacher_BE))
    student_mean, teacher_mean = mean(list(student.values())), mean(list(teacher.values()))
    values = [huber(student[pair] / student_mean, teacher[pair] / teacher_mean) for pair in pairs]
    return torch.stack(values).sum() / size**2  # a sample is at distance 0 of itself in both


def angle_by_definition(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Park et al., equations 9 and 11: Huber of ⟨e_ij, e_kj⟩, e_ij the direction from j to i; mean over N³."""
    size, values = len(student_BD), []
    for i, j, k in itertools.product(range(size), repeat=3):
        if j not in (i, k):  # else there is no angle in either
            cosines = [
                ((x[i] - x[j]) * (x[k] - x[j])).sum() / (apart(x[i], x[j]) * apart(x[k], x[j]))
                for x in (student_BD, teacher_BE)
            ]
            values.append(huber(*cosines))
    return torch.stack(values).sum() / size**3


def pooled_by_definition(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """At each position the mean over the old positions that it covers, wholly or in part."""
    rows = []
    for y, x in itertools.product(range(size[0]), range(size[1])):
        (top, bottom), (left, right) = (
            (math.floor(at * old / new), math.ceil((at + 1) * old / new))
            for at, old, new in ((y, map_BCHW.shape[2], size[0]), (x, map_BCHW.shape[3], size[1]))
        )
        cells = [map_BCHW[:, :, i, j] for i in range(top, bottom) for j in range(left, right)]
        rows.append(torch.stack(cells).sum(0) / len(cells))
    return torch.stack(rows, dim=2).unflatten(2, size)


def attention_by_definition(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Zagoruyko, Komodakis, equations 1 and 2: Q = Σ_c |A_c|², over ‖Q‖."""
    q_BHW = sum(channel**2 for channel in pooled_by_definition(map_BCHW, size).unbind(1))
    return torch.stack([q_HW.reshape(-1) / torch.sqrt((q_HW**2).sum()) for q_HW in q_BHW])


def attention_term(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The term of two stages; the second stage's maps are the upper half of the first's, mirrored."""
    features, signals = (
        {"attention1-2x3": attention(x, (2, 3)), "attention2-2x2": attention(x.flip(3)[:, :, :2], (2, 2))}
        for x in (student_BCHW, teacher_BCHW)
    )
    logits_BK = torch.zeros(len(student_BCHW), 4, dtype=student_BCHW.dtype)
    student = StudentOutputs(logits_BK, logits_BK, {**features, "embedding": student_BCHW.mean((2, 3))})
    return build_objective("at", {}).terms(student, Labels(labels_of(logits_BK)), signals)["at"]


def attention_term_by_definition(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    total = student_BCHW.new_zeros(())
    for size, mirrored in (((2, 3), False), ((2, 2), True)):
        student, teacher = (
            attention_by_definition(x.flip(3)[:, :, :2] if mirrored else x, size) for x in (student_BCHW, teacher_BCHW)
        )
        total = total + mean(list(((student - teacher) ** 2).reshape(-1)))
    return total


def cam_plain(student_BKHW: Tensor, teacher_BKHW: Tensor) -> Tensor:
    return cam_loss(student_BKHW, teacher_BKHW, normalize=False)


def cam_normalized(student_BKHW: Tensor, teacher_BKHW: Tensor) -> Tensor:
    return cam_loss(student_BKHW, teacher_BKHW, normalize=True)


def cam_by_definition(student_BKHW: Tensor, teacher_BKHW: Tensor) -> Tensor:
    return mean(list(((student_BKHW - teacher_BKHW) ** 2).reshape(-1)))


def cam_normalized_by_definition(student_BKHW: Tensor, teacher_BKHW: Tensor) -> Tensor:
    """Guo et al., equation 4: Σ ‖ A^T/‖A^T‖ − A^S/‖A^S‖ ‖², here the mean over samples, classes and positions."""
    values = []
    for student_KHW, teacher_KHW in zip(student_BKHW, teacher_BKHW, strict=True):
        for pair in zip(student_KHW, teacher_KHW, strict=True):
            s_HW, t_HW = (x_HW / torch.sqrt((x_HW**2).sum()) for x_HW in pair)
            values += list(((t_HW - s_HW) ** 2).reshape(-1))
    return mean(values)


def margins_of(map_BCHW: Tensor) -> Tensor:
    return -torch.arange(1, map_BCHW.shape[1] + 1) / 4


def overhaul(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    return partial_l2(student_BCHW, teacher_BCHW, margins_of(student_BCHW))


def overhaul_by_definition(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Heo et al., equations 2 and 4: target max(t, m); 0 where s ≤ target ≤ 0, else (target − s)²; summed."""
    total = 0 * student_BCHW.sum()  # there may be nothing to count
    for s_CHW, t_CHW in zip(student_BCHW, teacher_BCHW, strict=True):
        for margin, s_HW, t_HW in zip(margins_of(student_BCHW), s_CHW, t_CHW, strict=True):
            for s, t in zip(s_HW.reshape(-1), t_HW.reshape(-1), strict=True):
                target = max(t, margin)
                if not s <= target <= 0:
                    total = total + (target - s) ** 2
    return total / len(student_BCHW)


def review_by_definition(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Chen et al., section 3.4: the maps, then means on 4², 2², 1 where these are fewer, each weighing half as much."""
    terms = [cam_by_definition(student_BCHW, teacher_BCHW)]
    for side in [side for side in (4, 2, 1) if side < student_BCHW.shape[2]]:
        pooled = (pooled_by_definition(x, (side, side)) for x in (student_BCHW, teacher_BCHW))
        terms.append(cam_by_definition(*pooled) / 2 ** len(terms))
    return torch.stack(terms).sum() / (2 - 2.0 ** (1 - len(terms)))  # 1 + ½ + …


def smoothed(student_BK: Tensor, _: Tensor) -> Tensor:
    return losses.smoothed_cross_entropy(student_BK, Labels(labels_of(student_BK)), SMOOTHING)


def smoothed_by_definition(student_BK: Tensor, _: Tensor) -> Tensor:
    values = []
    for s_K, label in zip(student_BK, labels_of(student_BK).tolist(), strict=True):
        p_K, size = probabilities(s_K), len(s_K)
        wanted = [(1 - SMOOTHING) * (k == label) + SMOOTHING / size for k in range(size)]
        values.append(torch.stack([-w * torch.log(p) for w, p in zip(wanted, p_K, strict=True)]).sum())
    return mean(values)


def standardized_kd(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    return losses.kd(losses.standardized(student_BK), losses.standardized(teacher_BK), TEMPERATURE)


def standardized_kd_by_definition(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Sun et al., algorithm 1: softmax of (x − mean) / standard deviation / τ; their code divides by n − 1."""
    values = []
    for s_K, t_K in zip(student_BK, teacher_BK, strict=True):
        scores = []
        for x_K in (t_K, s_K):
            centred_K = x_K - x_K.sum() / len(x_K)
            scores.append(centred_K / (torch.sqrt((centred_K**2).sum() / (len(x_K) - 1)) + 1e-7) / TEMPERATURE)
        values.append(kl(*map(probabilities, scores)))
    return TEMPERATURE**2 * mean(values)


def simkd(student_BDHW: Tensor, teacher_BDHW: Tensor) -> Tensor:
    """The teacher's map, blown up to twice its size with the same averages, against the student's."""
    logits_BK = torch.zeros(len(student_BDHW), 4, dtype=student_BDHW.dtype)
    student = StudentOutputs(logits_BK, logits_BK, {"last_map": student_BDHW})
    signal = {
        "last_map": teacher_BDHW.repeat_interleave(2, 2) * torch.tensor([[0.5], [1.5]]).repeat(student_BDHW.shape[2], 1)
    }
    return build_objective("simkd", {}).terms(student, Labels(labels_of(logits_BK)), signal)["map"]


# Rows must not be short: a few numbers may vary so little that float32 computes their correlation badly.
ROWS = [(1, 8), (3, 9), (6, 7)]
COLUMNS = [(8, 3), (9, 7), (7, 4)]
LOGITS = [(1, 2), (2, 3), (3, 7), (6, 4)]
MAPS = [(1, 1, 2, 2), (2, 3, 4, 4), (3, 2, 5, 3)]
RELATIONS = [(2, 3), (3, 2), (5, 6)]
SQUARES = [(2, 3, 1, 1), (1, 2, 3, 3), (2, 2, 4, 4), (1, 3, 5, 5), (2, 1, 8, 8)]

# Loss, transcription, shapes, and the absolute rounding error that float32 is allowed, in units of 1e-7.
KL_ROUNDING = 5 * TEMPERATURE**2
CASES = {
    "tckd": (tckd, tckd_by_definition, LOGITS, KL_ROUNDING),
    "nckd": (nckd, nckd_by_definition, LOGITS, KL_ROUNDING),
    "inter": (inter, inter_by_definition, ROWS, 3 * TEMPERATURE**2),
    "intra": (intra, intra_by_definition, COLUMNS, 3 * TEMPERATURE**2),
    "distance": (distance_loss, distance_by_definition, RELATIONS, 1),
    "angle": (angle_loss, angle_by_definition, RELATIONS, 2),
    "attention": (attention_term, attention_term_by_definition, [(1, 1, 2, 3), (2, 3, 4, 6), (3, 2, 5, 7)], 2),
    "cam": (cam_plain, cam_by_definition, MAPS, 0),
    "cam, normalised": (cam_normalized, cam_normalized_by_definition, MAPS, 2),
    "overhaul": (overhaul, overhaul_by_definition, MAPS, 0),
    "review": (hierarchical_context_loss, review_by_definition, SQUARES, 0),
    "smoothed": (smoothed, smoothed_by_definition, LOGITS, 2),
    "mse": (losses.logit_mse, cam_by_definition, LOGITS, 0),
    "standardised": (standardized_kd, standardized_kd_by_definition, ROWS, KL_ROUNDING),
    "simkd": (simkd, cam_by_definition, MAPS, 0),
}
EACH_CASE = [pytest.param(*case, id=name) for name, case in CASES.items()]
EACH_LOSS = [pytest.param(loss, shapes, id=name) for name, (loss, _, shapes, _) in CASES.items()]


def value_and_gradient(
    loss: Loss, student: Tensor, teacher: Tensor, autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def assert_close(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], rtol: float, atol: float) -> None:
    """Value and gradient are close, relative to their norms."""
    for one, other in zip(actual, expected, strict=True):
        assert (one.double() - other).norm() <= rtol * other.norm() + atol, (one, other)


@pytest.mark.parametrize(("loss", "by_definition", "shapes", "rounding"), EACH_CASE)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), spread=st.floats(0.5, 4))
def test_value_and_gradient_are_those_of_the_paper(
    loss: Loss, by_definition: Loss, shapes: list[tuple[int, ...]], rounding: float, seed: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for shape in shapes:
        wider = (shape[0], shape[1] + 2) if shapes is RELATIONS else shape
        student, teacher = (spread * torch.randn(size, generator=generator) for size in (shape, wider))
        expected = value_and_gradient(by_definition, student.double(), teacher.double())
        wide = value_and_gradient(loss, student.double(), teacher.double())
        assert wide[0].dtype == wide[1].dtype == torch.float64
        assert_close(wide, expected, rtol=1e-9, atol=1e-14 * (1 + rounding))
        narrow = value_and_gradient(loss, student, teacher)
        assert narrow[0].dtype == narrow[1].dtype == torch.float32
        assert_close(narrow, expected, rtol=1e-5, atol=1e-7 * rounding)


@pytest.mark.parametrize("old", [(4, 6), (5, 7), (2, 3), (1, 2)])
@pytest.mark.parametrize("size", [(2, 3), (4, 4), (1, 1)])
def test_attention_at_a_resolution(old: tuple[int, int], size: tuple[int, int]) -> None:
    map_BCHW = torch.randn(2, 5, *old, generator=torch.Generator().manual_seed(0))
    expected = attention_by_definition(map_BCHW.double(), size)
    torch.testing.assert_close(attention(map_BCHW, size), expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention(map_BCHW.double(), size), expected, rtol=1e-12, atol=1e-12)
    # It depends on where the map is active, not on how much, even if half precision can't hold the squares.
    huge = attention((1000 * map_BCHW).half(), size)
    assert huge.dtype == torch.float32
    torch.testing.assert_close(huge, expected.float(), rtol=2e-3, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("resnet8", 32),
        ("MobileNetV2", 64),
        ("ShuffleV2", 32),
        ("wrn_16_1", 32),
        ("vgg8", 32),
        ("torchvision:resnet18", 64),
    ],
)
def test_class_activation_maps_average_to_logits_without_bias(name: str, pixels: int) -> None:
    torch.manual_seed(0)
    network = build_network(name, 7).double().eval()
    network.head.bias.copy_(torch.randn(7))  # some start it at 0
    outputs = network.outputs(torch.randn(2, 3, pixels, pixels, dtype=torch.float64), maps=True)
    height, width = outputs.final.shape[2:]
    weight_KD, bias_K = network.head.weight, network.head.bias
    names = [cam_name(grid) for grid in range(1, height + 1) if height % grid == 0]
    assert len(names) > 1
    cams = signals_of_outputs(network, outputs, names)
    for grid in names:
        torch.testing.assert_close(cams[grid].mean((2, 3)), outputs.logits - bias_K, rtol=1e-10, atol=1e-12)
    for y, x in itertools.product(range(height), range(width)):
        here_BK = outputs.final[:, :, y, x] @ weight_KD.T
        torch.testing.assert_close(cams[cam_name(height)][:, :, y, x], here_BK, rtol=1e-10, atol=1e-12)
    halves_BKHW = pooled_by_definition(cams[cam_name(height)], (1, 2))
    halves = class_activation_maps(outputs.final, network.head, (1, 2))
    torch.testing.assert_close(halves, halves_BKHW, rtol=1e-10, atol=1e-12)
    # The maps vary over the positions.
    assert (cams[cam_name(height)].std((2, 3)) > 1e-3 * cams[cam_name(height)].abs().mean()).all()


def test_a_network_that_hides_its_last_map_has_no_class_activation_maps() -> None:
    with torch.device("meta"), torch.no_grad():
        network = build_network("torchvision:mobilenet_v3_small", 7).eval()
        outputs = network.outputs(torch.empty(1, 3, 64, 64))
    with pytest.raises(ConfigError, match=r"^signal cam-2x2: the network doesn't tell which map it pools[^\n]*$"):
        signals_of_outputs(network, outputs, ["cam-2x2"])


def test_margins_are_the_conditional_means_of_normals() -> None:
    from scipy import integrate

    shifts = [0.0, 0.3, -0.3, 1.5, -4.0, 2.0, 3.0, 3.2, 9.0, -30.0, 1.0, -1.0]
    scales = [1.0, 2.0, -2.0, 0.7, 1.0, -1.0, 1.0, 1.0, 2.0, 1.0, 0.0, 0.0]
    batch_norm = nn.BatchNorm2d(len(shifts))
    with torch.no_grad():
        batch_norm.bias.copy_(torch.tensor(shifts))
        batch_norm.weight.copy_(torch.tensor(scales))
    margin_C = negative_mean(batch_norm)
    assert margin_C.dtype == torch.float32
    assert not margin_C.requires_grad
    for shift, scale, margin in zip(shifts, map(abs, scales), margin_C.tolist(), strict=True):
        if scale == 0:  # all responses are the shift
            assert margin == pytest.approx(min(shift, 0), abs=1e-12)
            continue

        def density(x: float, shift: float = shift, scale: float = scale) -> float:
            return math.exp(-(((x - shift) / scale) ** 2) / 2) / scale / math.sqrt(2 * math.pi)

        lowest = min(shift, 0) - 12 * scale
        share, _ = integrate.quad(density, lowest, 0, points=[shift] if shift < 0 else None, epsabs=1e-12)
        first, _ = integrate.quad(lambda x: x * density(x), lowest, 0, epsabs=1e-12)
        expected = first / share if share > 0.001 else -3 * scale
        assert margin == pytest.approx(expected, rel=1e-5), (shift, scale)
        assert margin < 0


def test_negative_responses_beyond_the_margin_are_left_alone() -> None:
    def loss(student: float, teacher: float) -> float:
        maps = (torch.full((1, 1, 1, 1), value) for value in (student, teacher))
        return partial_l2(*maps, torch.tensor([-0.5])).item()

    assert loss(-3.0, -2.0) == loss(-0.5, -0.5) == loss(-0.7, -9.0) == loss(-1.0, -0.1) == 0
    assert loss(0.25, -2.0) == 0.75**2  # to the margin, not to −2
    assert loss(0.25, -0.25) == loss(0.75, 0.25) == 0.5**2
    assert loss(-1.0, 1.0) == 4  # a positive response counts from wherever the student is


def each_seed(function: Callable[..., None]) -> Callable[..., None]:
    """The property for some seeds."""
    return settings(max_examples=15, deadline=None)(given(seed=st.integers(0, 2**32))(function))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_seed
def test_dkd_is_kd_where_the_others_part_weighs_one_minus_the_targets_probability(seed: int) -> None:
    student_BK, teacher_BK = 2 * drawn(seed, 2, 4, 6)
    labels_B = labels_of(student_BK)
    total = recombined = plain = 0.0
    for s_K, t_K, label in zip(student_BK, teacher_BK, labels_B, strict=True):
        tckd, nckd = decoupled_kd(s_K[None], t_K[None], label[None], TEMPERATURE)
        beta = 1 - torch.softmax(t_K / TEMPERATURE, 0)[label]
        recombined += (tckd + beta * nckd).item()
        plain += (tckd + nckd).item()
        total += losses.kd(s_K[None], t_K[None], TEMPERATURE).item()
    assert recombined == pytest.approx(total, rel=1e-10)
    assert plain > total + 1e-7
    tckd, nckd = decoupled_kd(student_BK, teacher_BK, labels_B, TEMPERATURE)
    assert (tckd + nckd).item() == pytest.approx(plain / 4, rel=1e-10)


@each_seed
def test_a_positive_affine_map_of_a_row_changes_no_correlation(seed: int) -> None:
    student_BK, teacher_BK = torch.softmax(drawn(seed, 2, 5, 6), dim=2)
    value = correlation_distance(student_BK, teacher_BK)
    scale_B1, shift_B1 = drawn(seed + 1, 2, 5, 1)
    mapped_BK = scale_B1.exp() * student_BK + shift_B1
    torch.testing.assert_close(correlation_distance(mapped_BK, teacher_BK), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(correlation_distance(teacher_BK, mapped_BK), value, rtol=1e-9, atol=1e-12)
    # A map of a column does, in general; and a negative map reverses the correlation.
    of_columns = correlation_distance(student_BK.T, teacher_BK.T)
    assert abs(correlation_distance(mapped_BK.T, teacher_BK.T) - of_columns) > 1e-7
    torch.testing.assert_close(correlation_distance(-student_BK, teacher_BK), 2 - value, rtol=1e-9, atol=1e-12)
    assert 0 <= value <= 2


@each_seed
def test_dist_compares_rows_and_columns_in_any_order(seed: int) -> None:
    student_BK, teacher_BK = drawn(seed, 2, 5, 6)
    # A shift of a row's logits changes neither term.
    moved = dist_terms(student_BK + drawn(seed + 1, 5, 1), teacher_BK)
    plain = dist_terms(student_BK, teacher_BK)
    for term in ("inter", "intra"):
        torch.testing.assert_close(moved[term], plain[term], rtol=1e-9, atol=1e-12)
    # The order of the batch and of the classes doesn't matter, as long as it is the same for student and teacher.
    order_B, order_K = torch.randperm(5), torch.randperm(6)
    mixed = dist_terms(student_BK[order_B][:, order_K], teacher_BK[order_B][:, order_K])
    torch.testing.assert_close(mixed["inter"], plain["inter"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mixed["intra"], plain["intra"], rtol=1e-9, atol=1e-12)


@each_seed
def test_rotation_scale_and_shift_change_no_relation(seed: int) -> None:
    student_BD, teacher_BD = drawn(seed, 2, 5, 4)
    rotation_DD, _ = torch.linalg.qr(drawn(seed + 1, 4, 4))
    shift_D, scale = drawn(seed + 2, 4), 0.1 + 10 * drawn(seed + 3, 1).abs()
    for loss in (distance_loss, angle_loss):
        value = loss(student_BD, teacher_BD)
        assert value > 1e-6
        moves = (lambda x_BD: x_BD @ rotation_DD, lambda x_BD: scale * x_BD, lambda x_BD: x_BD + shift_D)
        for move in moves:
            moved_BD = move(student_BD)
            torch.testing.assert_close(loss(moved_BD, teacher_BD), value, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(loss(student_BD, move(teacher_BD)), value, rtol=1e-9, atol=1e-12)
            assert loss(moved_BD, student_BD) < 1e-20
        # Stretching one direction does change it.
        stretched_BD = student_BD * torch.tensor([3.0, 1, 1, 1])
        assert abs(loss(stretched_BD, teacher_BD) - value) > 1e-9


@each_seed
def test_shift_and_scale_change_no_standardised_row(seed: int) -> None:
    logits_BK = drawn(seed, 4, 6)
    shift_B1, scale_B1 = 10 * drawn(seed + 1, 4, 1), 1 + 10 * drawn(seed + 2, 4, 1).abs()
    standard_BK = losses.standardized(logits_BK)
    moved_BK = losses.standardized(scale_B1 * logits_BK + shift_B1)
    torch.testing.assert_close(moved_BK, standard_BK, rtol=1e-5, atol=1e-6)  # apart from the 1e-7
    torch.testing.assert_close(standard_BK.mean(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(standard_BK.square().sum(1), torch.full((4,), 5.0).double(), rtol=1e-5, atol=0)
    assert not torch.allclose(losses.standardized(-logits_BK), standard_BK)


@pytest.mark.parametrize("loss", [losses.binary_kl, losses.binary_kl_norm])
@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.floats(-30, 30), st.floats(-5, 5)), min_size=2, max_size=6),
    temperature=st.floats(1, 20),
)
def test_binary_divergences_are_zero_only_where_all_is_equal(
    loss: Callable[[Tensor, Tensor, float], Tensor], pairs: list[tuple[float, float]], temperature: float
) -> None:
    student_BK, teacher_BK = torch.tensor(pairs, dtype=torch.float64).T[:, None]
    value = loss(student_BK, teacher_BK, temperature).item()
    assert min(value, loss(teacher_BK, student_BK, temperature).item()) >= -1e-12
    if (student_BK - teacher_BK).abs().max() > 1e-3:
        assert value > 1e-12
    assert loss(teacher_BK, teacher_BK, temperature) == loss(student_BK, student_BK, temperature) == 0


@pytest.mark.parametrize(("loss", "shapes"), [case for case in EACH_LOSS if case.values[0] is not smoothed])
@each_seed
def test_the_loss_is_zero_if_the_student_equals_the_teacher(
    loss: Loss, shapes: list[tuple[int, ...]], seed: int
) -> None:
    for shape in shapes:
        same, other = drawn(seed, 2, *shape)
        value, gradient = value_and_gradient(loss, same, same)
        assert abs(value) < 1e-12
        assert gradient.abs().max() < 1e-7
        if same[0].numel() > 3 and len(same) > 2:  # smaller shapes may leave nothing in which they differ
            assert loss(other, same) > 1e-6


@each_seed
def test_the_minimum_of_smoothed_cross_entropy_is_the_entropy_of_the_smoothed_labels(seed: int) -> None:
    size = 5
    wanted_BK = torch.full((3, size), SMOOTHING / size, dtype=torch.float64)
    wanted_BK[torch.arange(3), labels_of(wanted_BK)] += 1 - SMOOTHING
    entropy = -(wanted_BK * wanted_BK.log()).sum(1).mean()
    value, gradient_BK = value_and_gradient(smoothed, wanted_BK.log() + drawn(seed, 3, 1), wanted_BK)
    torch.testing.assert_close(value, entropy)
    assert gradient_BK.abs().max() < 1e-12
    assert smoothed(wanted_BK.log() + drawn(seed, 3, size), wanted_BK) > entropy


# Extreme inputs of the losses: (B, …) from a generator, for logits, embeddings and maps alike.
EXTREMES: dict[str, Callable[[torch.Generator, tuple[int, ...]], Tensor]] = {
    "huge": lambda generator, shape: 1e4 * torch.randn(shape, generator=generator).clamp(-1, 1),
    "huge of one sign": lambda generator, shape: 1e4 - torch.rand(shape, generator=generator),
    "huge here and there": lambda generator, shape: 1e4 * (torch.arange(math.prod(shape)) % 3 == 0).float().view(shape),
    "tiny": lambda generator, shape: 1e-30 * torch.randn(shape, generator=generator),
    "zeros": lambda generator, shape: torch.zeros(shape),
    "constant": lambda generator, shape: torch.full(shape, 0.1),
    "constant rows": lambda generator, shape: torch.randn(shape[0], *[1] * (len(shape) - 1)).expand(shape).clone(),
    "one sample again": lambda generator, shape: torch.randn(1, *shape[1:], generator=generator).repeat(
        shape[0], *[1] * (len(shape) - 1)
    ),
    "half of them twice": lambda generator, shape: torch.randn(shape, generator=generator)[torch.arange(shape[0]) // 2],
}


@pytest.mark.parametrize("of_student", EXTREMES)
@pytest.mark.parametrize(("loss", "shapes"), EACH_LOSS)
def test_losses_are_finite_for_extreme_inputs(loss: Loss, shapes: list[tuple[int, ...]], of_student: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        student = EXTREMES[of_student](generator, shape)
        teachers = [make(generator, shape) for make in EXTREMES.values()]
        for teacher in (*teachers, torch.randn(shape, generator=generator)):
            value, gradient = value_and_gradient(loss, student, teacher)
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.3, 1 / 3, 1e-3, 1e4])
@pytest.mark.parametrize("length", [3, 7, 10, 100, 1000])
def test_a_constant_row_has_no_correlation_and_no_gradient(length: int, constant: float) -> None:
    constant_RC, other_RC = torch.full((3, length), constant), torch.rand(3, length)
    for second_RC in (constant_RC, 0.7 * constant_RC, other_RC):
        value, gradient_RC = value_and_gradient(correlation_distance, constant_RC, second_RC)
        assert value == 1
        assert torch.count_nonzero(gradient_RC) == 0
    # A slight variation, larger than rounding, counts.
    varied_RC = constant_RC + 1e-4 * (constant or 1) * other_RC
    assert correlation_distance(varied_RC, other_RC) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("loss", "shapes"), EACH_LOSS)
def test_losses_are_computed_in_float32(
    loss: Loss, shapes: list[tuple[int, ...]], autocast: torch.dtype | None, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        student, teacher = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        value, gradient = value_and_gradient(loss, student, teacher, autocast)
        expected, expected_gradient = value_and_gradient(loss, student.float(), teacher.float())
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
        # Attention has two maps of one input, whose gradients are summed in the input's dtype.
        assert loss is attention_term or torch.equal(gradient, expected_gradient.to(dtype))
