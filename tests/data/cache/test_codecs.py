"""Codecs read values back within the bound of `errors`; losses, gradients and the top class move no further."""

import warnings

import numpy as np
import pytest
import torch
from dhkd.data.cache.blocks import Array, Block
from dhkd.data.cache.codecs import AnyCodec, Bounds, Codec, Float, Int8, TopK, decode, encode, row_bytes
from dhkd.data.errors import NonFiniteLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

FLOAT16, FLOAT32, INT8 = Float("float16"), Float("float32"), Int8()
DENSE = [FLOAT16, FLOAT32, INT8]
TEMPERATURES = [1.0, 2.0, 4.0]
BLOCK = Block(view=3, number=1, start=100, stop=200)

Rows = NDArray[np.float32]


def name_of(codec: Codec) -> str:
    return codec.kind if codec.kind != "top-k" else f"top-{codec.k}"


def logits_like(num: int, num_classes: int, seed: int = 0) -> Rows:
    """Rows as CIFAR's teachers give them: standard deviation 3.5, one class far above the rest, maxima 13 to 20."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 3.5, (num, num_classes)).clip(-9, 9)
    rows[np.arange(num), rng.integers(0, num_classes, num)] = rng.uniform(13, 20, num)
    return rows.astype(np.float32)


def read_back(codec: Codec, values: Rows) -> tuple[dict[str, Array], Rows]:
    parts = encode(codec, "logits", Block(0, 0, 0, len(values)), values)
    return parts, decode(codec, parts, values.shape[1:])


def exact(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def worst(got: Rows, values: Rows) -> NDArray[np.float64]:
    """Each row's largest difference."""
    return np.abs(exact(got) - exact(values)).reshape(len(values), -1).max(axis=1)


def assert_within(codec: Codec, values: Rows) -> None:
    parts, got = read_back(codec, values)
    assert got.dtype == np.float32
    assert got.shape == values.shape
    bound = codec.errors(parts)
    assert bound.shape == (len(values),)
    assert bound.dtype == np.float64
    assert (worst(got, values) <= bound).all()


# dense codecs

EDGES: dict[str, list[list[float]]] = {
    "constant": [[7.0, 7.0, 7.0], [-0.1, -0.1, -0.1], [0.0, 0.0, 0.0]],
    "two neighbouring floats": [[1.0, float(np.nextafter(np.float32(1), np.float32(2))), 1.0]],
    "a small spread far from zero": [[10_000.0, 10_000.0009765625, 10_000.001953125], [-6e4, -6e4, -59_999.996]],
    "subnormal in float16": [[1e-7, -6e-8, 5.9e-8], [2e-8, 3e-8, -3e-8]],
    "subnormal in float32": [[1e-40, -2e-45, 3e-44], [1.4e-45, 0.0, -1.4e-45], [1e-38, 1.2e-38, -1e-38]],
    "halfway between float16s": [[2049.0, 2051.0, 1.00048828125], [4098.0, 32_784.0, -2049.0]],
    "large": [[1e4, -1e4, 3.0], [6e4, -6e4, 0.1], [6e4, 59_999.0, 59_998.0]],
    "mixed in sign and size": [[-20.0, 0.001, 20.0], [-1e-3, 1e-6, 15.0]],
    "signed zeros": [[0.0, -0.0, 0.0]],
}
HUGE = [[1e30, -1e30, 0.0], [1.7e38, -1.7e38, 1.0], [3.4e38, 3.39e38, 3.3e38], [-3.4e38, -3.4e38, -3.4e38]]


@pytest.mark.parametrize("codec", DENSE, ids=name_of)
@pytest.mark.parametrize("name", EDGES)
def test_edges_come_back_within_the_bound(codec: Codec, name: str) -> None:
    assert_within(codec, np.array(EDGES[name], dtype=np.float32))


@pytest.mark.parametrize("codec", [FLOAT32, INT8], ids=name_of)
def test_huge_values_come_back_within_the_bound(codec: Codec) -> None:
    assert_within(codec, np.array(HUGE, dtype=np.float32))


@pytest.mark.parametrize("codec", DENSE, ids=name_of)
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (5,), (2, 3, 4), (3, 2, 1, 2)], ids=str)
def test_rows_of_any_shape(codec: Codec, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(0, 3.5, shape).astype(np.float32)
    assert_within(codec, values)
    row, parts = shape[1:], read_back(codec, values)[0]
    declared = codec.parts(row)
    assert {name: (str(part.dtype), part.shape[1:]) for name, part in parts.items()} == declared


@pytest.mark.parametrize("codec", DENSE, ids=name_of)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_row_comes_back_within_the_bound(codec: Codec, data: st.DataObject) -> None:
    largest = 65_504.0 if codec == FLOAT16 else 2.0**126  # int8's rows must not be wider than float32's range
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=6))
    floats = st.floats(-largest, largest, width=32)
    # Also around a common point, where an affine map has the least room.
    centre = data.draw(st.sampled_from([0.0, 0.0, 1.0, -37.25, 6e4 - 1, 1e-3]))
    spread = data.draw(st.sampled_from([None, None, 1e-42, 1e-3, 20.0]))
    if spread is not None:
        floats = st.floats(-1, 1, width=32).map(lambda unit: float(np.float32(centre + spread * unit)))
    assert_within(codec, data.draw(hnp.arrays(np.float32, shape, elements=floats)))


@given(values=hnp.arrays(np.float32, (3, 7), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)))
@settings(deadline=None)
def test_float32_is_lossless(values: Rows) -> None:
    parts, got = read_back(FLOAT32, values)
    assert got.tobytes() == values.tobytes(), "signs of zeros, too"
    assert (FLOAT32.errors(parts) == 0).all()
    assert [codec.lossless for codec in (*DENSE, TopK(2, 4.0))] == [False, True, False, False]


@pytest.mark.parametrize("num_classes", [100, 1000])
@pytest.mark.parametrize("codec", [FLOAT16, INT8], ids=name_of)
def test_the_bound_is_nearly_reached(codec: Codec, num_classes: int) -> None:
    """By the worst row: a single row's largest value may happen to be a float16."""
    values = logits_like(300, num_classes)
    parts, got = read_back(codec, values)
    used = worst(got, values) / codec.errors(parts)
    assert used.max() > 0.9
    if codec == INT8:
        assert used.min() > 0.5
    assert worst(got, values).max() <= (2.0**-7 if codec == FLOAT16 else 0.07), (
        "what trained teachers' logits showed: .008 and .067"
    )


def test_float16_reaches_half_a_unit() -> None:
    """The worst cases: halfway between two float16s just above a power of two, and below the smallest one."""
    for values in ([[2049.0]], [[3e-8]], [[2.0**-25]]):
        rows = np.array(values, dtype=np.float32)
        parts, got = read_back(FLOAT16, rows)
        assert worst(got, rows)[0] > 0.48 * FLOAT16.errors(parts)[0]


@pytest.mark.parametrize("num_classes", [100, 1000])
def test_int8_errs_by_half_a_step(num_classes: int) -> None:
    values = logits_like(300, num_classes)
    parts, got = read_back(INT8, values)
    step = (exact(values).max(axis=1) - exact(values).min(axis=1)) / 255
    np.testing.assert_allclose(parts["scale"], step, rtol=2e-7)
    assert (INT8.errors(parts) <= 0.51 * step).all()
    assert (parts[""].min(axis=1) == -128).all()
    assert (parts[""].max(axis=1) == 127).all()
    assert (np.take_along_axis(got, values.argmax(axis=1)[:, None], axis=1) == got.max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("codec", [*DENSE, TopK(20, 4.0)], ids=name_of)
def test_decoding_is_the_documented_formula_wherever_the_parts_are(codec: Codec) -> None:
    values = logits_like(16, 100)
    parts, got = read_back(codec, values)
    tensors = {name: torch.from_numpy(part) for name, part in parts.items()}
    decoded = codec.decode(tensors, (100,))
    assert decoded.dtype == torch.float32
    assert np.array_equal(decoded.numpy(), got)
    if codec.kind == "int8":
        formula = exact(parts["offset"])[:, None] + exact(parts["scale"])[:, None] * exact(parts[""])
    elif codec.kind == "top-k":
        formula = np.repeat(exact(parts["tail"])[:, None] - 4.0 * np.log(80), 100, axis=1)
        np.put_along_axis(formula, parts["class"].astype(np.int64), exact(parts[""]), axis=1)
    else:
        formula = exact(parts[""])
    np.testing.assert_allclose(exact(got), formula, rtol=1e-6, atol=1e-5)
    rows = torch.tensor([3, 3, 0, 15])  # as training does it: a gather of stored rows, then decoding
    gathered = codec.decode({name: part[rows] for name, part in tensors.items()}, (100,))
    assert np.array_equal(gathered.numpy(), got[rows.numpy()])


@pytest.mark.parametrize("codec", DENSE, ids=name_of)
def test_decoding_keeps_the_shape_of_a_row(codec: Codec) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    parts, got = read_back(codec, values)
    flat, of_flat = read_back(codec, values.reshape(5, 12))
    assert np.array_equal(got.reshape(5, 12), of_flat)
    assert all(part.tobytes() == flat[name].tobytes() for name, part in parts.items())


@pytest.mark.parametrize("codec", [*DENSE, TopK(5, 2.0)], ids=name_of)
def test_encoding_is_deterministic_and_row_by_row(codec: Codec) -> None:
    """A block's bytes depend neither on its neighbours nor on the memory's layout, and its values are not changed."""
    values = logits_like(1000, 30)  # more than are encoded at a time
    before, parts = values.copy(), read_back(codec, values)[0]
    assert np.array_equal(values, before)
    for again in (read_back(codec, values)[0], read_back(codec, np.asfortranarray(values))[0]):
        assert all(again[name].tobytes() == part.tobytes() for name, part in parts.items())
    alone = [read_back(codec, values[row : row + 1])[0] for row in range(1000)]
    for name, part in parts.items():
        assert np.concatenate([row[name] for row in alone]).tobytes() == part.tobytes()


def test_reading_parts_that_cannot_be_written_to_warns_of_nothing() -> None:
    """Parts are often views of a file's bytes."""
    for codec in (*DENSE, TopK(2, 4.0)):
        parts, got = read_back(codec, logits_like(3, 10))
        frozen = {name: np.frombuffer(part.tobytes(), part.dtype).reshape(part.shape) for name, part in parts.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.set_warn_always(True)
            try:
                again = decode(codec, frozen, (10,))
            finally:
                torch.set_warn_always(False)
        assert np.array_equal(again, got)


@pytest.mark.parametrize("codec", [*DENSE, TopK(20, 4.0)], ids=name_of)
def test_the_difference_from_live_values_is_that_of_what_is_kept(codec: Codec) -> None:
    values = logits_like(64, 100)
    parts, _ = read_back(codec, values)
    assert codec.difference(parts, values) <= codec.errors(parts).max()
    live = values.copy()
    live[11, values[11].argmax()] += 1.5
    assert codec.difference(parts, live) == pytest.approx(1.5, abs=0.1)
    assert codec.difference(parts, values - 2) == pytest.approx(2, abs=0.1), "the tail's sum sinks, too"
    if codec.kind == "top-k":
        live = values.copy()
        np.put_along_axis(live, parts["class"].astype(np.int64), 99, axis=1)
        live = np.where(live == 99, values, values - 2)
        assert codec.difference(parts, live) == pytest.approx(2, abs=0.1)


# what an error of ε means for losses


def log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def kl(values: NDArray[np.float64], others: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Each row's KL(softmax(x/τ) ‖ softmax(x'/τ))."""
    p, q = log_softmax(values / temperature), log_softmax(others / temperature)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


def binary_kl(values: NDArray[np.float64], others: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Each row's Σ KL(Bernoulli(σ(x/τ)) ‖ Bernoulli(σ(x'/τ)))."""
    t, s = values / temperature, others / temperature
    p = 1 / (1 + np.exp(-t))
    yes, no = np.logaddexp(0, -s) - np.logaddexp(0, -t), np.logaddexp(0, s) - np.logaddexp(0, t)
    return np.asarray((p * yes + (1 - p) * no).sum(axis=1))


ROUNDING = 1e-13  # of this file's own float64 sums


def assert_bounds_hold(values: NDArray[np.float64], others: NDArray[np.float64], error: NDArray[np.float64]) -> None:
    for row, error_of_row in enumerate(error.tolist()):
        value, other, bounds = values[row : row + 1], others[row : row + 1], Bounds(error_of_row, values.shape[1])
        for temperature in TEMPERATURES:
            assert kl(value, other, temperature)[0] <= bounds.kl(temperature) + ROUNDING
            assert binary_kl(value, other, temperature)[0] <= bounds.binary_kl(temperature) + ROUNDING
        if values.shape[1] > 1:
            second, first = np.sort(value[0])[-2:]
            assert value[0].argmax() == other[0].argmax() or first - second <= bounds.margin * (1 + 1e-12)


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("error", [0.004, 0.07, 1.0, 8.0])
def test_bounds_hold_wherever_the_logits_lie_within_the_error(num_classes: int, error: float) -> None:
    rng = np.random.default_rng(num_classes)
    rows = [logits_like(20, num_classes), rng.normal(0, 0.1, (20, num_classes)), np.zeros((1, num_classes))]
    values = np.concatenate([exact(part) for part in rows])
    largest = values.argmax(axis=1)
    top = np.arange(num_classes) == largest[:, None]
    above_half = values > np.median(values, axis=1, keepdims=True)
    moves = [
        rng.uniform(-1, 1, values.shape),
        rng.choice([-1.0, 1.0], values.shape),
        np.where(top, -1.0, 1.0),  # adversarial: the top class sinks and all others rise, and so on
        np.where(top, 1.0, -1.0),
        np.where(above_half, 1.0, -1.0),
        -np.sign(values),
        np.where(np.arange(num_classes) % 2 == 0, 1.0, -1.0) * np.ones_like(values),
    ]
    for move in moves:
        assert_bounds_hold(values, values + error * move, np.full(len(values), error))


@given(
    values=hnp.arrays(np.float64, (1, 6), elements=st.floats(-40, 40)),
    moves=hnp.arrays(np.float64, (1, 6), elements=st.floats(-1, 1)),
    error=st.floats(0, 30),
)
@settings(max_examples=100, deadline=None)
def test_bounds_hold_of_any_row(values: NDArray[np.float64], moves: NDArray[np.float64], error: float) -> None:
    assert_bounds_hold(values, values + error * moves, np.array([error]))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("num_classes", [2, 100])
def test_bounds_are_reached(temperature: float, num_classes: int) -> None:
    """By equal logits of which half rise and half sink: to a millionth for small errors, to a factor 1.2 for ε = τ."""
    values = np.zeros((1, num_classes))
    move = np.where(np.arange(num_classes) % 2 == 0, 1.0, -1.0)[None]
    for error, factor in ((1e-3 * temperature, 1 + 1e-6), (temperature, 1.2)):
        bounds = Bounds(error, num_classes)
        assert bounds.kl(temperature) <= factor * kl(values, values + error * move, temperature)[0]
        assert bounds.binary_kl(temperature) <= factor * binary_kl(values, values + error * move, temperature)[0]
    near = np.array([[1.0, 1.0 - 2e-3]])
    changed = near + np.array([[-1.0001e-3, 1.0001e-3]])
    assert changed[0].argmax() == 1
    assert Bounds(1.0001e-3, 2).margin == pytest.approx(2e-3, rel=1e-3)


@pytest.mark.parametrize("codec", DENSE, ids=name_of)
@pytest.mark.parametrize("num_classes", [100, 1000])
def test_what_a_codec_does_is_within_its_bounds(codec: Codec, num_classes: int) -> None:
    values = logits_like(100, num_classes)
    parts, got = read_back(codec, values)
    assert_bounds_hold(exact(values), exact(got), codec.errors(parts))


def test_bounds_of_real_logits_say_something() -> None:
    """A trained teacher's averages are, for float16 and int8: KL (τ 4) 7e-8 and 1e-5, BinaryKL (τ 2) 5e-7 and 8e-4."""
    for codec, largest_kl, largest_binary in ((FLOAT16, 5e-6, 5e-4), (INT8, 2e-4, 2e-2)):
        parts, _ = read_back(codec, logits_like(100, 100))
        bounds = [Bounds(error, 100) for error in codec.errors(parts).tolist()]
        assert max(bound.kl(4) for bound in bounds) < largest_kl
        assert max(bound.binary_kl(2) for bound in bounds) < largest_binary


# top-k


def softmax(values: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    return np.exp(log_softmax(values / temperature))


def assert_top_k(codec: TopK, values: Rows) -> None:
    """All that is promised of top-k, against float64 of the full rows."""
    k, temperature, num_classes = codec.k, codec.temperature, values.shape[1]
    parts, got = read_back(codec, values)
    top = np.argsort(-values, axis=1, kind="stable")[:, :k]
    assert np.array_equal(parts["class"].astype(np.int64), top), "largest first, among equals the smaller class"
    kept = np.take_along_axis(values, top, axis=1)
    assert np.array_equal(np.take_along_axis(got, top, axis=1), kept.astype(np.float16).astype(np.float32))
    error = codec.errors(parts)
    assert (np.abs(np.take_along_axis(exact(got), top, axis=1) - exact(kept)).max(axis=1) <= error).all()

    rest = np.ones(values.shape, dtype=bool)
    np.put_along_axis(rest, top, False, axis=1)
    tails = got[rest].reshape(len(values), num_classes - k)
    assert (tails == tails[:, :1]).all(), "the other classes have equal shares"

    true, read = softmax(exact(values), temperature), softmax(exact(got), temperature)
    true_tail = np.where(rest, true, 0).sum(axis=1)
    mass = codec.tail_mass(parts)
    np.testing.assert_allclose(mass, np.where(rest, read, 0).sum(axis=1), rtol=1e-4, atol=1e-12)
    # float16 moves the k logits by ε: log-odds of tail against top by ε/τ; 1e-4 is what float32 adds.
    odds_true, odds_read = np.log(true_tail / (1 - true_tail)), np.log(mass / (1 - mass))
    assert (np.abs(odds_true - odds_read) <= error / temperature + 1e-4).all()
    distance = np.abs(true - read).sum(axis=1)
    assert (distance <= 2 * mass + error / temperature + 1e-6).all(), "KD's gradient over τ/N"


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("k", "num_classes"), [(1, 2), (1, 100), (20, 100), (99, 100), (20, 1000), (255, 257)])
def test_top_k_keeps_what_it_promises(k: int, num_classes: int, temperature: float) -> None:
    assert_top_k(TopK(k, temperature), logits_like(50, num_classes))


@given(
    values=hnp.arrays(np.float32, (2, 6), elements=st.floats(-30, 30, width=32)),
    k=st.integers(1, 5),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0, 20.0]),
)
@settings(max_examples=80, deadline=None)
def test_top_k_of_any_row(values: Rows, k: int, temperature: float) -> None:
    mass = np.sort(softmax(exact(values), temperature), axis=1)[:, :-k].sum(axis=1)
    if (mass > 1e-12).all():  # otherwise this file's own log-odds are only rounding
        assert_top_k(TopK(k, temperature), values)


def test_of_equal_logits_the_smaller_classes_are_kept() -> None:
    values = np.array([[1, 5, 5, 0, 5], [2, 2, 2, 2, 2], [0.0, -0.0, 0.0, -1, -0.0]], dtype=np.float32)
    parts, got = read_back(TopK(2, 1.0), values)
    assert parts["class"].tolist() == [[1, 2], [0, 1], [0, 1]]
    assert got[1].tolist() == pytest.approx([2, 2, 2, 2, 2], abs=1e-6)
    assert_top_k(TopK(2, 1.0), values)


def test_a_row_whose_others_are_equal_comes_back_whole() -> None:
    values = np.full((1, 50), -3.0, dtype=np.float32)
    values[0, [7, 30]] = [12.5, 9.25]
    np.testing.assert_allclose(read_back(TopK(2, 4.0), values)[1], values, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kds_gradient_is_off_by_at_most_the_tail_and_float16(temperature: float) -> None:
    """By autograd: for any student, since it enters neither."""
    codec, values = TopK(20, temperature), logits_like(32, 100)
    parts, got = read_back(codec, values)
    student = torch.randn(32, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4

    def gradient(teacher: Rows) -> NDArray[np.float64]:
        logits = student.clone().requires_grad_()
        p = (torch.from_numpy(teacher).double() / temperature).softmax(dim=1)
        loss = (p * (p.log() - (logits / temperature).log_softmax(dim=1))).sum() * temperature**2 / len(values)
        (result,) = torch.autograd.grad(loss, logits)
        return np.asarray(result.numpy())

    difference = np.abs(gradient(values) - gradient(got)).sum(axis=1)
    allowed = temperature / len(values) * (2 * codec.tail_mass(parts) + codec.errors(parts) / temperature + 1e-6)
    assert (difference <= allowed).all()
    if temperature == 4:  # at 1 there is hardly a tail, and float16's part is loose
        assert difference.max() > 0.2 * allowed.max(), "the bound says something"


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 0.02, 100.0, 1e6])
def test_top_k_at_extreme_temperatures_is_finite_and_silent(temperature: float) -> None:
    codec, values = TopK(3, temperature), logits_like(20, 10)
    with np.errstate(all="raise", under="ignore"):
        parts, got = read_back(codec, values)
        mass = codec.tail_mass(parts)
    assert np.isfinite(got).all()
    assert ((mass >= 0) & (mass <= 1)).all()
    assert (got.argmax(axis=1) == values.argmax(axis=1)).all()
    if temperature >= 1:
        np.testing.assert_allclose(mass, 0.7, rtol=0.5)


@pytest.mark.parametrize(
    ("num_classes", "dtype"), [(255, "uint8"), (256, "uint8"), (257, "int16"), (32_768, "int16"), (40_000, "int32")]
)
def test_the_last_class_is_kept_however_many_there_are(num_classes: int, dtype: str) -> None:
    codec = TopK(2, 4.0)
    values = np.zeros((2, num_classes), dtype=np.float32)
    values[0, [-1, 0]], values[1, [-1, -2]] = [20, 10], [10, 20]
    parts, got = read_back(codec, values)
    assert parts["class"].dtype == codec.parts((num_classes,))["class"][0] == dtype
    assert parts["class"].astype(np.int64).tolist() == [[num_classes - 1, 0], [num_classes - 2, num_classes - 1]]
    assert got[0, [-1, 0]].tolist() == [20, 10]
    assert got[1, [-1, -2]].tolist() == [10, 20]


def test_a_refusal_says_why() -> None:
    codec = TopK(20, 4.0)
    assert codec.refusal(4.0) is None
    raw, other = codec.refusal(None), codec.refusal(2.0)
    held = "the cache holds only the 20 largest logits of a row and the others' mass at temperature 4"
    assert raw == f"it needs raw logits of all classes, and {held}"
    assert other == f"it needs probabilities at temperature 2, and {held}"
    assert all(dense.refusal(temperature) is None for dense in DENSE for temperature in (None, 1.0, 4.0))


# sizes, and what can't be stored


@pytest.mark.parametrize(
    ("codec", "num_classes", "size"),
    [
        (FLOAT32, 100, 400),
        (FLOAT16, 100, 200),
        (INT8, 100, 108),
        (TopK(20, 4.0), 100, 64),
        (FLOAT16, 1000, 2000),
        (INT8, 1000, 1008),
        (TopK(20, 4.0), 1000, 84),
        (TopK(20, 4.0), 40_000, 124),
    ],
)
def test_bytes_of_a_row(codec: Codec, num_classes: int, size: int) -> None:
    assert row_bytes(codec.parts((num_classes,))) == size
    parts, _ = read_back(codec, logits_like(3, num_classes))
    assert sum(part.nbytes for part in parts.values()) == 3 * size


@pytest.mark.parametrize("codec", [*DENSE, TopK(2, 4.0)], ids=name_of)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(codec: Codec, bad: float) -> None:
    values = logits_like(100, 10)
    values[17, 4] = values[40, 0] = bad
    with pytest.raises(NonFiniteLoss) as caught:
        encode(codec, "logits", BLOCK, values)
    text = str(caught.value)
    assert "signal logits, view 3, index 117" in text
    assert f"expected finite {codec.kind} values, got a largest magnitude of {abs(bad):g}" in text
    assert "2 rows of this block" in text
    assert "check the teacher's weights and precision" in text


@pytest.mark.parametrize("codec", [FLOAT16, TopK(2, 4.0)], ids=name_of)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_that_float16_cannot_hold_is_refused(codec: Codec, sign: int) -> None:
    values = logits_like(100, 2 if codec == FLOAT16 else 3)
    values[9] = sign * 65_504.0
    read_back(codec, values)
    values[9] = sign * 65_520.0
    with pytest.raises(NonFiniteLoss, match=r"view 3, index 109.*magnitude of 65520; 1 row.*use cache\.codec=float32"):
        encode(codec, "logits", BLOCK, values)


def test_a_row_too_wide_for_int8_is_refused() -> None:
    """Decoding would overflow: -128 · scale is beyond float32."""
    values = np.array([[0.0, 1.0], [3.4e38, -3.4e38]], dtype=np.float32)
    with pytest.raises(NonFiniteLoss, match=r"index 101: .* int8 .* use cache\.codec=float32"):
        encode(INT8, "logits", BLOCK, values)


def test_what_top_k_leaves_out_may_be_large() -> None:
    values = np.array([[5.0, 4.0, -1e6, -3e38]], dtype=np.float32)
    got = read_back(TopK(2, 4.0), values)[1]
    assert softmax(exact(got), 4.0)[0].tolist() == pytest.approx(softmax(exact(values), 4.0)[0].tolist(), abs=1e-4)


@pytest.mark.parametrize("shape", [(4, 10), (4, 3, 4)], ids=str)
def test_bad_values_are_found_in_rows_of_any_shape(shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, dtype=np.float32)
    values[2].reshape(-1)[-1] = np.nan
    for codec in DENSE:
        with pytest.raises(NonFiniteLoss, match=r"view 3, index 102: .* 1 row of this block is affected"):
            encode(codec, "cam", BLOCK, values)


# as a manifest says it


@pytest.mark.parametrize("codec", [*DENSE, TopK(20, 4.0)], ids=name_of)
def test_a_codec_survives_a_manifest(codec: Codec) -> None:
    adapter: TypeAdapter[Codec] = TypeAdapter(AnyCodec)
    assert adapter.validate_python(adapter.dump_python(codec, mode="json")) == codec
    assert adapter.validate_json(adapter.dump_json(codec)) == codec


@pytest.mark.parametrize(
    "tree",
    [
        {"kind": "float8"},
        {"kind": "top-k", "k": 0, "temperature": 4},
        {"kind": "top-k", "k": 20, "temperature": 0},
        {"kind": "top-k", "k": 20, "temperature": float("inf")},
        {"kind": "top-k", "k": 20},
    ],
    ids=str,
)
def test_what_is_no_codec_is_refused(tree: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(AnyCodec).validate_python(tree)
