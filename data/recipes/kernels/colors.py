"""Brightness, contrast, saturation and hue of each image of a batch, in fixed point.

Weights are those of `blends.py`. Definitions are torchvision's, and values differ from its by at most one grey level;
the hue is that of its tensors, since Pillow's is rounded to 256 steps.
"""

import torch
from dhkd.data.recipes.kernels import blends
from dhkd.data.recipes.kernels.blends import blended, grey_levels, mean_of
from torch import Tensor

BITS = 16  # fractional bits of a turn of the hue
ONE = 1 << BITS


def brightened(pixels_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    """Multiply pixels by each image's weight."""
    pixels = pixels_BCHW.int()
    return blended(torch.zeros_like(pixels), pixels, weight_B[:, None, None, None])


def contrasted(pixels_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    """Multiply by each image's weight the differences of pixels from the image's mean grey value."""
    mean_B111 = mean_of(grey_levels(pixels_BCHW))[:, :, None, None]
    return blended(mean_B111, pixels_BCHW.int(), weight_B[:, None, None, None])


def saturated(pixels_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    """Multiply by each image's weight the differences of colours from their grey values."""
    return blends.saturated(pixels_BCHW, grey_levels(pixels_BCHW), weight_B)


def turned(pixels_BCHW: Tensor, turn_B: Tensor) -> Tensor:
    """Turn the hue of colours by a share of the colour circle, in (-1, 1), with `BITS` fractional bits.

    Each colour keeps its largest and smallest value, V and V · (1 - S) in HSV, so no saturation has to be rounded.
    """
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    red, green, blue = pixels_BCHW.contiguous().int().unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    spread = largest - smallest
    # A place on the circle of six spreads, so that nothing is divided: 0 is red, 2 green, 4 or -2 blue.
    place = torch.where(largest == green, blue - red + 2 * spread, red - green + 4 * spread)
    place = torch.where(largest == red, green - blue, place).bitwise_left_shift_(BITS)
    place += spread * (turn_B.int() % ONE * 6)[:, None, None]
    spread <<= BITS
    place = torch.where(place >= 5 * spread, place - 6 * spread, place)
    # A channel has the largest value if the place is at most one spread away from the channel's own colour, and the
    # smallest value if it is at least two spreads away.
    values = []
    for own in (0, 2, -2):
        apart = place - own * spread
        apart = torch.minimum(apart.abs(), (apart - 6 * spread).abs())
        above = torch.minimum((2 * spread - apart).clamp_(min=0), spread)
        values.append((above + (ONE >> 1) >> BITS).add_(smallest).to(torch.uint8))
    return torch.stack(values, 1)
