"""Encoding whole blocks with any codec, and decoding them as numpy arrays."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from dhkd.data.cache.blocks import Array, Block, Part
from dhkd.data.cache.codecs.base import Codec, flat
from dhkd.data.errors import NonFiniteLoss
from numpy.typing import NDArray

# The number of values encoded at a time. With so few values, temporary arrays stay in the processor's cache, and
# encoding is several times as fast as for a whole block at once.
VALUES_AT_ONCE = 2**14


def row_bytes(parts: Mapping[str, Part]) -> int:
    """Return the size in bytes of one row of all parts together."""
    return sum(math.prod(row) * np.dtype(dtype).itemsize for dtype, row in parts.values())


def encode(codec: Codec, name: str, block: Block, values: NDArray[np.float32]) -> dict[str, Array]:
    """Encode a block's values (rows, …) of the signal `name` as stored parts.

    Raises `NonFiniteLoss`, naming the first affected view and index, if a value is not finite or does not fit.
    """
    parts = _encode_in_runs(codec, values) if np.isfinite(values).all() else {}
    finite = [np.isfinite(flat(part)).all(axis=1) for part in parts.values()] or [np.isfinite(flat(values)).all(axis=1)]
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
    """Decode stored parts into a numpy array, float32 (rows, …)."""
    # Parts may be read-only views of a file's bytes. They are copied, because torch can't protect read-only arrays from
    # changes and warns about them.
    owned = {part: np.require(array, requirements="W") for part, array in parts.items()}
    return codec.decode({part: torch.from_numpy(array) for part, array in owned.items()}, row).numpy()


def difference_of_all(codec: Codec, parts: Mapping[str, Array], values: NDArray[np.float32]) -> float:
    """Return the largest absolute difference between stored rows and `values`, for codecs that keep every value."""
    return float(np.abs(decode(codec, parts, values.shape[1:]) - values).max())


def _encode_in_runs(codec: Codec, values: NDArray[np.float32]) -> dict[str, Array]:
    parts = {name: np.empty((len(values), *row), kind) for name, (kind, row) in codec.parts(values.shape[1:]).items()}
    at_once = max(1, VALUES_AT_ONCE // values[0].size)
    for start in range(0, len(values), at_once):
        rows = slice(start, start + at_once)
        for name, part in codec.encode(values[rows]).items():
            parts[name][rows] = part
    return parts
