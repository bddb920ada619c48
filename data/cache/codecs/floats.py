"""Values stored as 16-bit or 32-bit floating-point numbers."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from dhkd.data.cache.blocks import Array, Part
from dhkd.data.cache.codecs.base import flat
from dhkd.data.cache.codecs.coding import difference_of_all
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import Tensor

FLOAT16_UNIT = 2.0**-11  # half a unit in the last place, relative to the value
FLOAT16_TINY = 2.0**-25  # half a unit in the last place of a subnormal number, absolute


@dataclass(frozen=True)
class Float:
    """The values themselves, rounded to `kind`."""

    kind: Literal["float16", "float32"]

    kept: ClassVar[None] = None
    logits_only: ClassVar[bool] = False

    @property
    def lossless(self) -> bool:
        """Whether float32 values come back unchanged."""
        return self.kind == "float32"

    def misfit(self, row: tuple[int, ...]) -> None:
        """Return None, because rows of any shape can be stored."""

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """Return dtype and row shape of the only part: the values, under the empty string as the part's name."""
        return {"": (self.kind, row)}

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """Round the values to the nearest numbers of this kind."""
        with np.errstate(over="ignore"):
            return {"": values.astype(self.kind)}

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """Return the values, float32 (rows, …)."""
        return parts[""].float()

    def impossible(self, parts: Mapping[str, Array], row: tuple[int, ...]) -> None:
        """Return None: all values can be decoded."""
        return

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Return ε of each row, the most by which a stored value differs from the original.

        For float16, ε is half a unit in the last place of the row's largest magnitude; for float32, it is 0.
        """
        if self.lossless:
            return np.zeros(len(parts[""]))
        return float16_errors(parts[""])

    def tail_mass(self, parts: Mapping[str, Array]) -> None:
        """Return None, because every value is stored."""

    def difference(self, parts: Mapping[str, Array], values: NDArray[np.float32]) -> float:
        """Return the largest absolute difference between the decoded rows and `values` (rows, …)."""
        return difference_of_all(self, parts, values)

    def refusal(self, temperature: float | None) -> None:
        """Return None, because the stored values are good enough for every objective."""


def float16_errors(values: Array) -> NDArray[np.float64]:
    """Return ε, the largest rounding error, of each row of float16 values (rows, …)."""
    # With the sign bit cleared, float16 bit patterns sort in the same order as the magnitudes. Comparing them is ten
    # times as fast as float16 arithmetic.
    bits = np.ascontiguousarray(flat(values)).view(np.uint16) & 0x7FFF
    largest = bits.max(axis=1).view(np.float16).astype(np.float64)
    return np.asarray(FLOAT16_UNIT * largest + FLOAT16_TINY)
