"""Random numbers from Philox, a counter-based generator, which is addressed by key and counter.

The key is the seed. The counter consists of the domain (what the draw is for), the plane (an epoch, for example) and
the row. So views, orders and schedules never share a stream, and any row can be drawn without the rows before it. Only
the bit generator's raw stream is used: numpy keeps this stream stable across versions, but not its distributions.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

RAW_PER_COUNTER = 4  # one step of Philox4x64's counter gives four 64-bit numbers


class Domain(IntEnum):
    """What a draw is for. Without the domain, (seed, view) and (seed, epoch) would address the same stream."""

    VIEW = 1
    SCHEDULE = 2
    ORDER = 3
    DROPOUT = 4
    SPOT_CHECK = 5
    BLOCK_ORDER = 6
    BLOCK_VIEW = 7
    FILE_ORDER = 8
    NEGATIVES = 9
    HELD_OUT = 10
    CROP = 11
    POLICY = 12
    COLOR_JITTER = 13
    GRAYSCALE = 14
    BLUR = 15
    SOLARIZE = 16
    ERASING = 17
    VERTICAL_FLIP = 18
    ROTATION = 19
    AFFINE = 20
    MIX_PARTNER = 21
    MIX_SHARE = 22


def raw_rows(seed: int, domain: Domain, plane: int, start: int, stop: int, width: int = 1) -> NDArray[np.uint64]:
    """Return rows `start` to `stop` of a plane's endless table of raw 64-bit draws, uint64 (stop - start, width).

    A row does not depend on the requested range. The plane is the number of an epoch, step or view, or 0 for a domain
    without planes.
    """
    assert 0 <= start <= stop
    if width == 1:  # a counter step gives four rows, so that a long column (an epoch's order) wastes no draws
        first = start // RAW_PER_COUNTER
        steps = -(-stop // RAW_PER_COUNTER) - first
        flat = _raw(seed, domain, plane, first, steps)
        offset = start - first * RAW_PER_COUNTER
        return flat[offset : offset + stop - start, None]
    steps_per_row = -(-width // RAW_PER_COUNTER)
    flat = _raw(seed, domain, plane, start * steps_per_row, (stop - start) * steps_per_row)
    return flat.reshape(stop - start, steps_per_row * RAW_PER_COUNTER)[:, :width]


def _raw(seed: int, domain: Domain, plane: int, counter: int, steps: int) -> NDArray[np.uint64]:
    words = np.array([counter, plane, domain, 0], dtype=np.uint64)
    key = np.array([seed, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=words).random_raw(steps * RAW_PER_COUNTER)


def below(raw: NDArray[np.uint64], limit: int) -> NDArray[np.int64]:
    """Map each raw draw to an integer in [0, limit), using its upper 32 bits; `limit` is at most 2³².

    The probabilities differ from uniform by less than limit / 2³².
    """
    assert 0 < limit <= 1 << 32
    return (((raw >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def permutations(raw: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the permutation that sorts each row of raw draws, int64, same shape; equal draws keep their order."""
    return np.argsort(raw, axis=-1, kind="stable")
