"""What every codec provides: how the values of a signal become stored arrays, and how exact those arrays are.

A codec encodes a block of values, float32 (rows, …), as named arrays called parts, and decodes the parts into values.
The part whose name is the empty string is stored under the signal's name; the part "scale" of the signal "logits" is
stored as "logits_scale".
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from dhkd.data.cache.blocks import Array, Part
from numpy.typing import NDArray
from torch import Tensor


class Codec(Protocol):
    """One way to store rows of values. Two codecs are equal if they store every row as the same bytes."""

    @property
    def kind(self) -> str:
        """The codec's name in manifests, presets and messages."""

    @property
    def lossless(self) -> bool:
        """Whether float32 values come back unchanged."""

    @property
    def kept(self) -> int | None:
        """How many values of a row are stored individually; None means all of them.

        Rows stored by a codec that keeps fewer than all values can't be converted to another codec.
        """

    @property
    def logits_only(self) -> bool:
        """Whether the codec is meant for logits only; a cache's other signals are then stored as floats."""

    def misfit(self, row: tuple[int, ...]) -> str | None:
        """Return why rows of this shape can't be stored, or None if they can."""

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """Return dtype and row shape of each part, by the part's name, for signals whose rows have the shape `row`."""

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """Encode `values` (rows, …) as parts; the bytes of each row depend only on the values of that row.

        If a value does not fit, at least one part holds infinity or NaN in the row of that value.
        """

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """Decode the parts into values, float32 (rows, *row), on the device of the parts.

        Any rows can be decoded, so a cache can be kept in memory as it is stored, and each batch decodes only the rows
        that it needs.
        """

    def impossible(self, parts: Mapping[str, Array], row: tuple[int, ...]) -> str | None:
        """Return why `encode` can't have made these parts, or None; only parts that `decode` can't handle count."""

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Return ε of each row, float64 (rows,): the most by which a stored value differs from the original."""

    def tail_mass(self, parts: Mapping[str, Array]) -> NDArray[np.float64] | None:
        """Return the total probability of each row's values that are not stored individually, float64 (rows,).

        Returns None if all values are stored.
        """

    def difference(self, parts: Mapping[str, Array], values: NDArray[np.float32]) -> float:
        """Return the largest absolute difference between the stored rows and `values` (rows, …).

        A codec that doesn't store every value compares only what it stores, e.g. the k largest logits of each row.
        """

    def refusal(self, temperature: float | None) -> str | None:
        """Return why the stored values aren't enough for an objective, or None if they are.

        The objective reads probabilities at `temperature`, or raw values if `temperature` is None.
        """


def flat(array: Array) -> Array:
    """Return the array with each row flattened: (rows, values)."""
    return array.reshape(len(array), -1)
