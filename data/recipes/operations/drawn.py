"""From draws to what happens to a batch: amounts, and which images change."""

from collections.abc import Callable

from dhkd.data.draws.keyed import BITS
from torch import Tensor


def between(draws: Tensor, low: float, high: float, fraction: int) -> Tensor:
    """Map draws in [0, 2³²) to numbers from `low` to `high`, evenly distributed, int64 with `fraction` bits."""
    least, most = (round(limit * (1 << fraction)) for limit in (low, high))
    return least + (draws * (most - least + 1) >> BITS)


def changed(pixels_BCHW: Tensor, changes_B: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return pixels in which the images that `changes_B`, bool, names are replaced by `change(pixels, rows)`."""
    rows = changes_B.nonzero()[:, 0]
    if len(rows) == 0:
        return pixels_BCHW
    if len(rows) == len(pixels_BCHW):
        return change(pixels_BCHW, rows)
    result = pixels_BCHW.clone()
    result[rows] = change(pixels_BCHW[rows], rows)
    return result
