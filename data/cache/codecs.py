"""How a signal's values are stored, and how far what is read back may lie from them.

A codec turns a block of values, float32 (rows, …), into named arrays, its parts, and parts back into values. The part
without a name is stored under the signal's own, a part "scale" of the signal "logits" as "logits_scale". Decoding works
on tensors, wherever they are, so that a cache is kept in memory as it is stored and decoded after the gather.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from dhkd.data.cache.blocks import Array, Block, Part
from dhkd.data.errors import NonFiniteLoss
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

FLOAT16_UNIT = 2.0**-11  # half a unit in the last place, relative
FLOAT16_TINY = 2.0**-25  # the same of a subnormal number, absolute
FLOAT32_SLACK = 2.0**-22  # of a product and a sum in float32, relative to the larger of both
FLOAT32_MAX = float(np.finfo(np.float32).max)
CLASS_BITS = 2**32 - 1
# Encoded at a time: what is computed in between then stays in the processor's cache, several times as fast as a block.
VALUES_AT_ONCE = 2**14


@checked_dataclass(frozen=True)
class Float:
    """The values themselves, rounded to `kind`."""

    kind: Literal["float16", "float32"]

    @property
    def lossless(self) -> bool:
        """Whether float32 values come back as they were."""
        return self.kind == "float32"

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """One array."""
        return {"": (self.kind, row)}

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """Rounded to nearest."""
        with np.errstate(over="ignore"):
            return {"": values.astype(self.kind)}

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """float32 (rows, …)."""
        return parts[""].float()

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Each row's ε, the most that a value read back may differ by: half a unit of its largest magnitude."""
        values = _flat(parts[""])
        if self.lossless:
            return np.zeros(len(values))
        # Without its sign, a float16's bits order as its magnitude does; ten times as fast as computing with it.
        bits = np.ascontiguousarray(values).view(np.uint16) & 0x7FFF
        largest = bits.max(axis=1).view(np.float16).astype(np.float64)
        return np.asarray(FLOAT16_UNIT * largest + FLOAT16_TINY)

    def refusal(self, temperature: float | None) -> str | None:
        """Why these values can't serve; None: they serve every objective."""
        return None


@checked_dataclass(frozen=True)
class Int8:
    """Affine for each row: value = offset + scale · q with q in -128 … 127, scale and offset float32."""

    kind: Literal["int8"] = "int8"

    lossless: ClassVar[bool] = False

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """q, and for each row a scale and an offset."""
        return {"": ("int8", row), "scale": ("float32", ()), "offset": ("float32", ())}

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """The row's smallest value becomes -128, its largest 127."""
        exact = _flat(values).astype(np.float64)
        low, high = exact.min(axis=1), exact.max(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            # A wider row would overflow in decoding, at -128 · scale; no scale, so that `encode` refuses it.
            scale = np.where(high - low <= FLOAT32_MAX, (high - low) / 255, np.inf).astype(np.float32)
            offset = (low + 128 * scale.astype(np.float64)).astype(np.float32)
            # With the scale and offset that are stored, so that their own rounding isn't added to the error.
            steps = np.where(scale > 0, scale, 1)[:, None].astype(np.float64)
            q = np.rint((exact - offset[:, None].astype(np.float64)) / steps).clip(-128, 127)
            stored = np.nan_to_num(q).astype(np.int8).reshape(values.shape)
        return {"": stored, "scale": scale, "offset": offset}

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """float32 (rows, …)."""
        shape = (-1, *(1 for _ in row))
        return parts[""].float() * parts["scale"].view(shape) + parts["offset"].view(shape)

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Each row's ε, the most that a value read back may differ by: half a step, and float32's rounding."""
        scale, offset = parts["scale"].astype(np.float64), parts["offset"].astype(np.float64)
        slack = FLOAT32_SLACK * (np.abs(offset) + 128 * scale) + float(np.finfo(np.float32).tiny)
        return np.asarray(scale / 2 + slack)

    def refusal(self, temperature: float | None) -> str | None:
        """Why these values can't serve; None: they serve every objective."""
        return None


@checked_dataclass(frozen=True)
class TopK:
    """A row's `k` largest logits as float16, and what the others' probabilities add up to at `temperature`.

    Read back, the other classes share that mass equally: softmax(t / temperature) has the k largest probabilities, and
    the sum of the others, as the teacher gave them. At other temperatures it hasn't, and the others' logits are lost.
    """

    k: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    kind: Literal["top-k"] = "top-k"

    lossless: ClassVar[bool] = False

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """The k logits, their classes, and the others' log-sum-exp in units of logits."""
        (num_classes,) = row
        return {"": ("float16", (self.k,)), "class": (_class_dtype(num_classes), (self.k,)), "tail": ("float32", ())}

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """The largest first; among equals the smaller class."""
        order = _split_order(values, self.k)
        top, rest = np.sort(order[:, : self.k], axis=1) & CLASS_BITS, order[:, self.k :] & CLASS_BITS
        with np.errstate(over="ignore"):
            logits = np.take_along_axis(values, top, axis=1).astype(np.float16)
        tail = self._log_sum_exp(np.take_along_axis(values, rest, axis=1))
        return {"": logits, "class": top.astype(_class_dtype(values.shape[1])), "tail": tail.astype(np.float32)}

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """float32 (rows, K)."""
        (num_classes,) = row
        share = parts["tail"] - self.temperature * float(np.log(num_classes - self.k))
        values = share[:, None].expand(-1, num_classes).clone()
        return values.scatter_(1, parts["class"].long(), parts[""].float())

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Each row's ε of the k logits that are stored; the others have none."""
        return Float("float16").errors({"": parts[""]})

    def tail_mass(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Each row's probability, at `temperature`, of the classes that aren't stored one by one.

        The gradient of KD at that temperature, τ/N · (softmax(s/τ) − softmax(t/τ)), differs by at most twice this times
        τ/N, summed over classes, and by what float16 does to the k logits.
        """
        top = self._log_sum_exp(parts[""].astype(np.float64))
        tail = parts["tail"].astype(np.float64)
        largest = np.maximum(top, tail)  # so that no exponent is positive, however low the temperature
        top, tail = (np.exp((part - largest) / self.temperature) for part in (top, tail))
        return np.asarray(tail / (top + tail))

    def refusal(self, temperature: float | None) -> str | None:
        """Why these values can't serve an objective that takes probabilities at `temperature` (None: raw logits)."""
        stored = f"only the {self.k} largest logits of a row and the others' mass at temperature {self.temperature:g}"
        if temperature is None:
            return f"it needs raw logits of all classes, and the cache holds {stored}"
        if temperature != self.temperature:
            return f"it needs probabilities at temperature {temperature:g}, and the cache holds {stored}"
        return None

    def _log_sum_exp(self, values: Array) -> NDArray[np.float64]:
        """τ · log Σ exp(value / τ) of each row."""
        exact = values.astype(np.float64)
        largest = exact.max(axis=1)
        with np.errstate(over="ignore"):  # of a difference over a low temperature, to -inf: exp gives the right 0
            terms = np.exp((exact - largest[:, None]) / self.temperature)
        return np.asarray(largest + self.temperature * np.log(terms.sum(axis=1)))


Codec = Annotated[Float | Int8 | TopK, Field(discriminator="kind")]


@dataclass(frozen=True)
class Bounds:
    """What logits t' that lie within ε = `error` of t mean for losses, before their factor τ², and for the top class.

    With δ = (t' − t)/τ, KL is half the variance of δ under some softmax between the two, at most (ε/τ)²; BinaryKL is
    Σ ½ σ(1 − σ) δ² at some σ between the two, at most Σ δ²/8.
    """

    error: float
    num_classes: int

    def kl(self, temperature: float) -> float:
        """The most that KL(softmax(t/τ) ‖ softmax(t'/τ)) can be."""
        return self.error**2 / (2 * temperature**2)

    def binary_kl(self, temperature: float) -> float:
        """The most that Σ KL(Bernoulli(σ(t/τ)) ‖ Bernoulli(σ(t'/τ))) can be."""
        return self.num_classes * self.error**2 / (8 * temperature**2)

    @property
    def margin(self) -> float:
        """The top class can change only where it leads by at most this."""
        return 2 * self.error


def row_bytes(parts: Mapping[str, Part]) -> int:
    """Bytes of one row of all parts together."""
    return sum(int(np.prod(row, dtype=np.int64)) * np.dtype(dtype).itemsize for dtype, row in parts.values())


def encode(codec: Codec, name: str, block: Block, values: NDArray[np.float32]) -> dict[str, Array]:
    """Values (rows, …) as they are stored.

    Raises `NonFiniteLoss`, naming the first key, where a value is not finite or does not fit.
    """
    parts = _encode_in_runs(codec, values) if np.isfinite(values).all() else {}
    finite = [np.isfinite(_flat(part)).all(axis=1) for part in parts.values()] or [
        np.isfinite(_flat(values)).all(axis=1)
    ]
    bad_rows: Sequence[int] = np.flatnonzero(~np.logical_and.reduce(finite)).tolist()
    if bad_rows:
        row = bad_rows[0]
        worst = float(np.abs(values[row]).max())
        remedy = "use cache.codec=float32" if np.isfinite(worst) else "check the teacher's weights and precision"
        affected = "1 row of this block is" if len(bad_rows) == 1 else f"{len(bad_rows)} rows of this block are"
        raise NonFiniteLoss(
            f"signal {name}, view {block.view}, index {block.start + row}: expected finite {codec.kind} values,"
            f" got a largest magnitude of {worst:g}; {affected} affected; {remedy}"
        )
    return parts


def decode(codec: Codec, parts: Mapping[str, Array], row: tuple[int, ...]) -> NDArray[np.float32]:
    """Stored parts as float32 values (rows, …), in numpy."""
    # Parts may be views of a file's bytes, which torch would let be written to through what is returned, and warns of.
    owned = {part: np.require(array, requirements="W") for part, array in parts.items()}
    return codec.decode({part: torch.from_numpy(array) for part, array in owned.items()}, row).numpy()


def difference(codec: Codec, parts: Mapping[str, Array], values: NDArray[np.float32]) -> float:
    """The largest |difference| between what is stored and `values` (rows, …), of what the codec keeps."""
    if not isinstance(codec, TopK):
        return float(np.abs(decode(codec, parts, values.shape[1:]) - values).max())
    classes = parts["class"].astype(np.int64)
    kept = np.abs(parts[""].astype(np.float64) - np.take_along_axis(values, classes, axis=1)).max()
    rest = values.astype(np.float64)
    np.put_along_axis(rest, classes, -np.inf, axis=1)
    return max(float(kept), float(np.abs(codec._log_sum_exp(rest) - parts["tail"].astype(np.float64)).max()))


def _encode_in_runs(codec: Codec, values: NDArray[np.float32]) -> dict[str, Array]:
    parts = {name: np.empty((len(values), *row), kind) for name, (kind, row) in codec.parts(values.shape[1:]).items()}
    at_once = max(1, VALUES_AT_ONCE // values[0].size)
    for start in range(0, len(values), at_once):
        rows = slice(start, start + at_once)
        for name, part in codec.encode(values[rows]).items():
            parts[name][rows] = part
    return parts


def _split_order(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Each row's classes with the k largest values first, as integers that sort by falling value, then by class.

    The class is in the lower half, `CLASS_BITS`. Of different integers there is one order, whatever sorts them.
    """
    bits = np.subtract(0, values, dtype=np.float32).view(np.int32).astype(np.int64)  # 0 - x makes one zero of both
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats rise as their bits fall
    order: NDArray[np.int64] = np.partition(rising << 32 | np.arange(values.shape[1]), k - 1, axis=1)
    return order


def _flat(array: Array) -> Array:
    return array.reshape(len(array), -1)


def _class_dtype(num_classes: int) -> str:
    return "uint8" if num_classes <= 256 else "int16" if num_classes <= 2**15 else "int32"
