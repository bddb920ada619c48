"""What every codec promises: how the values of a signal become stored arrays, and how exact those are.

A codec turns a block of values, float32 (rows, …), into named arrays, its parts, and the parts back into values. The
part with the empty name is stored under the signal's own name, the part "scale" of the signal "logits" as
"logits_scale".
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from dhkd.data.cache.blocks import Array, Part
from numpy.typing import NDArray
from torch import Tensor


class Codec(Protocol):
    """One way to store rows of values; two codecs are equal if they store every row in the same bytes."""

    @property
    def kind(self) -> str:
        """The codec's name in manifests, presets and messages."""

    @property
    def lossless(self) -> bool:
        """Whether float32 values come back unchanged."""

    @property
    def kept(self) -> int | None:
        """How many values of a row are stored one by one; None: all of them.

        If a codec keeps fewer than all, no other codec can be made of what it stored.
        """

    @property
    def logits_only(self) -> bool:
        """Whether the codec is made for logits, so that a cache's other signals are stored as floats instead."""

    def misfit(self, row: tuple[int, ...]) -> str | None:
        """Why rows of this shape can't be stored; None if they can."""

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """Dtype and row shape of each stored array, by part, for signals whose rows have the shape `row`."""

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """The parts of `values` (rows, …); each row's bytes depend on that row alone.

        A value that does not fit is stored as infinity or NaN in some part.
        """

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """The values, float32 (rows, *row), on the device of the parts.

        So a cache can be kept in memory as it is stored, and only the rows that a batch needs are decoded.
        """

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """ε of each row, float64 (rows,): the most by which a stored value differs from the original."""

    def tail_mass(self, parts: Mapping[str, Array]) -> NDArray[np.float64] | None:
        """Each row's probability of the values that are not stored one by one, (rows,); None if all of them are."""

    def difference(self, parts: Mapping[str, Array], values: NDArray[np.float32]) -> float:
        """The largest absolute difference between the stored rows and `values` (rows, …), in what the codec keeps."""

    def refusal(self, temperature: float | None) -> str | None:
        """Why the stored values can't serve an objective; None if they can.

        The objective reads probabilities at `temperature`; None: it reads the raw values.
        """


def flat(array: Array) -> Array:
    """The array with each row flattened: (rows, values)."""
    return array.reshape(len(array), -1)
