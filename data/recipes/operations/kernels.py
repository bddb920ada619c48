"""Changes of brightness, contrast, saturation and hue, with integer arithmetic; a factor for each image of a batch.

Factors are fixed-point numbers with `FRACTION` fractional bits. Definitions are those of torchvision for pixels of
8 bits, which drops fractions of a grey level; results differ from torchvision's by at most one grey level.
"""

from collections.abc import Callable

import torch
from dhkd.data.draws.keyed import BITS
from dhkd.data.images.channels import grey_of
from torch import Tensor

FRACTION = 16
ONE = 1 << FRACTION


def fixed(number: float) -> int:
    """Return a number with `FRACTION` fractional bits."""
    return round(number * ONE)


def between(draws: Tensor, low: float, high: float) -> Tensor:
    """Map draws in [0, 2³²) to fixed-point numbers from `low` to `high`, evenly distributed, int64."""
    return fixed(low) + (draws * (fixed(high) - fixed(low) + 1) >> BITS)


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


def grey(pixels_BCHW: Tensor) -> Tensor:
    """Return the grey values of images, uint8 (B, 1, H, W)."""
    return pixels_BCHW if pixels_BCHW.shape[1] == 1 else grey_of(pixels_BCHW)


def blend(pixels_BCHW: Tensor, others: Tensor, factor_B: Tensor) -> Tensor:
    """Return factor · pixels + (1 - factor) · others, within 0 to 255; fractions are dropped. Factors are below 64."""
    factor_B111 = factor_B.int()[:, None, None, None]
    mixed = pixels_BCHW * factor_B111 + others * (ONE - factor_B111)
    return (mixed >> FRACTION).clamp_(0, 255).to(torch.uint8)


def brightness(pixels_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Multiply pixels by each image's factor."""
    mixed = pixels_BCHW * factor_B.int()[:, None, None, None]
    return (mixed >> FRACTION).clamp_(max=255).to(torch.uint8)


def contrast(pixels_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Multiply by each image's factor the differences of pixels from the image's mean grey value, a whole number."""
    grey_BP = grey(pixels_BCHW).flatten(1)
    mean_B = (2 * grey_BP.sum(1, dtype=torch.int64) + grey_BP.shape[1]) // (2 * grey_BP.shape[1])
    return blend(pixels_BCHW, mean_B.int()[:, None, None, None], factor_B)


def saturation(pixels_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Multiply by each image's factor the differences of colours from their grey values."""
    return pixels_BCHW if pixels_BCHW.shape[1] == 1 else blend(pixels_BCHW, grey(pixels_BCHW), factor_B)


def hue(pixels_BCHW: Tensor, turn_B: Tensor) -> Tensor:
    """Turn the hue of colours by a share of the colour circle, in (-1, 1), fixed-point.

    Each colour keeps its largest and smallest value, V and V · (1 - S) in HSV, so no saturation has to be rounded.
    """
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    red, green, blue = pixels_BCHW.contiguous().int().unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    spread = largest - smallest
    # A place on the circle of six spreads, so that nothing is divided: 0 is red, 2 green, 4 or -2 blue.
    third = torch.where(largest == red, 0, torch.where(largest == green, 2, 4))
    ahead = torch.where(largest == red, green - blue, torch.where(largest == green, blue - red, red - green))
    place = ((third * spread + ahead) << FRACTION) + spread * (turn_B.int() % ONE * 6)[:, None, None]
    spread <<= FRACTION
    place = torch.where(place >= 5 * spread, place - 6 * spread, place)
    # A channel has the largest value up to one spread away from its own colour, and the smallest from two on.
    values = []
    for own in (0, 2, -2):
        apart = place - own * spread
        apart = torch.minimum(apart.abs(), (apart - 6 * spread).abs())
        above = torch.minimum((2 * spread - apart).clamp_(min=0), spread)
        values.append((above + (ONE >> 1) >> FRACTION).add_(smallest).to(torch.uint8))
    return torch.stack(values, 1)
