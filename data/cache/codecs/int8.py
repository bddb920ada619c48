"""Values stored as 8-bit integers, with a scale and an offset for each row."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from dhkd.data.cache.blocks import Array, Part
from dhkd.data.cache.codecs.base import flat
from dhkd.data.cache.codecs.coding import difference_of_all
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import Tensor

FLOAT32_SLACK = 2.0**-22  # rounding error of offset + scale · q in float32, relative to |offset| + 128 · scale
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Int8:
    """An affine code for each row: value = offset + scale · q.

    The quantised value q is an integer in -128 … 127. The row's scale and offset are float32.
    """

    kind: Literal["int8"] = "int8"

    lossless: ClassVar[bool] = False
    kept: ClassVar[None] = None
    logits_only: ClassVar[bool] = True

    def misfit(self, row: tuple[int, ...]) -> None:
        """Return None, because rows of any shape can be stored."""

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """Return dtype and row shape of each part, by the part's name.

        The part whose name is the empty string holds the quantised values q. The parts "scale" and "offset" hold one
        number for each row.
        """
        return {"": ("int8", row), "scale": ("float32", ()), "offset": ("float32", ())}

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """Encode each row so that its smallest value becomes -128 and its largest 127."""
        exact = flat(values).astype(np.float64)
        low, high = exact.min(axis=1), exact.max(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            # If the range of a row is larger than FLOAT32_MAX, the difference of two of its values overflows float32.
            # Such a row gets an infinite scale, so that `codecs.encode` refuses the block.
            scale = np.where(high - low <= FLOAT32_MAX, (high - low) / 255, np.inf).astype(np.float32)
            offset = (low + 128 * scale.astype(np.float64)).astype(np.float32)
            # The quantised values q are computed from the scale and offset as stored, so that their rounding isn't
            # added to the error.
            steps = np.where(scale > 0, scale, 1)[:, None].astype(np.float64)
            q = np.rint((exact - offset[:, None].astype(np.float64)) / steps).clip(-128, 127)
            stored = np.nan_to_num(q).astype(np.int8).reshape(values.shape)
        return {"": stored, "scale": scale, "offset": offset}

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """Return the values, float32 (rows, …)."""
        shape = (-1, *(1 for _ in row))
        return parts[""].float() * parts["scale"].view(shape) + parts["offset"].view(shape)

    def impossible(self, parts: Mapping[str, Array], row: tuple[int, ...]) -> None:
        """Return None: all values can be decoded."""
        return

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Return ε of each row, the most by which a decoded value differs from the original.

        ε is half the row's scale plus the rounding errors of float32.
        """
        scale, offset = parts["scale"].astype(np.float64), parts["offset"].astype(np.float64)
        slack = FLOAT32_SLACK * (np.abs(offset) + 128 * scale) + float(np.finfo(np.float32).tiny)
        return np.asarray(scale / 2 + slack)

    def tail_mass(self, parts: Mapping[str, Array]) -> None:
        """Return None, because every value is stored."""

    def difference(self, parts: Mapping[str, Array], values: NDArray[np.float32]) -> float:
        """Return the largest absolute difference between the decoded rows and `values` (rows, …)."""
        return difference_of_all(self, parts, values)

    def refusal(self, temperature: float | None) -> None:
        """Return None, because the stored values are good enough for every objective."""
