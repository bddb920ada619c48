"""Affine maps of images, with integer arithmetic; a map for each image of a batch."""

from typing import Literal

import torch
from dhkd.data.errors import ConfigError
from torch import Tensor

Warp = Literal["nearest", "bilinear"]
Fill = int | tuple[int, int, int] | tuple[int]
Limits = float | tuple[float, float]  # of angles; x stands for -x to x

FINE = 20  # fractional bits of a map's numbers and of the places that it gives
_SUBPIXEL = 11  # fractional bits of bilinear weights; products of two, with a grey level, fit into 31 bits


def limits_of(value: Limits) -> tuple[float, float]:
    """Return both limits."""
    return value if isinstance(value, tuple) else (-abs(value), abs(value))


def require_fill(name: str, fill: Fill) -> None:
    """Raise `ConfigError` unless grey levels are 0 to 255."""
    levels = fill if isinstance(fill, tuple) else (fill,)
    if not all(0 <= level <= 255 for level in levels):
        raise ConfigError(f"views.{name}: fill: expected 0 to 255, got {fill}")


def warped(pixels_BCHW: Tensor, map_B6: Tensor, interpolation: Warp, fill: Fill = 0) -> Tensor:
    """Return pixels of which each shows the place in the original that its image's map gives, uint8 (B, C, H, W).

    A map (a, b, c, d, e, f), int64 with `FINE` fractional bits, takes x and y, counted in pixels from the image's
    centre, to a·x + b·y + c and d·x + e·y + f. What lies outside of the original gets the value `fill`, 0 to 255, one
    for all channels or one for each. `nearest` rounds halves up; `bilinear` also blends `fill` into the border.
    """
    channels, height, width = pixels_BCHW.shape[1:]
    device = pixels_BCHW.device
    # In units of half a pixel, so that centres of images with an even side are integers, too.
    x_W = 2 * torch.arange(width, device=device) - (width - 1)
    y_H1 = (2 * torch.arange(height, device=device) - (height - 1))[:, None]
    a, b, c, d, e, f = map_B6[:, :, None, None].unbind(1)
    column = (a * x_W + b * y_H1 >> 1) + c + ((width - 1) << FINE - 1)
    row = (d * x_W + e * y_H1 >> 1) + f + ((height - 1) << FINE - 1)
    levels = (fill,) if isinstance(fill, int) else fill
    if len(levels) not in (1, channels):
        raise ConfigError(f"views: fill: expected one number for grey images, got {list(levels)}")
    colour = torch.tensor(levels, dtype=torch.uint8, device=device)[:, None, None]
    if interpolation == "nearest":
        half = 1 << FINE - 1
        return _at(pixels_BCHW, row + half >> FINE, column + half >> FINE, colour)
    top, left = row >> FINE, column >> FINE
    down, right = (((place & (1 << FINE) - 1) >> FINE - _SUBPIXEL).int() for place in (row, column))
    total = torch.zeros(pixels_BCHW.shape, dtype=torch.int32, device=device)
    for below, weight_down in ((0, (1 << _SUBPIXEL) - down), (1, down)):
        for beside, weight_right in ((0, (1 << _SUBPIXEL) - right), (1, right)):
            corner = _at(pixels_BCHW, top + below, left + beside, colour)
            total += corner * (weight_down * weight_right)[:, None]
    return (total + (1 << 2 * _SUBPIXEL - 1) >> 2 * _SUBPIXEL).to(torch.uint8)


def _at(pixels_BCHW: Tensor, row_BHW: Tensor, column_BHW: Tensor, colour: Tensor) -> Tensor:
    """Return the pixels at these places, or `fill` outside."""
    num, channels, height, width = pixels_BCHW.shape
    inside = (row_BHW >= 0) & (row_BHW < height) & (column_BHW >= 0) & (column_BHW < width)
    place = row_BHW.clamp(0, height - 1) * width + column_BHW.clamp(0, width - 1)
    place_BCP = place.flatten(1)[:, None].expand(-1, channels, -1)
    found = pixels_BCHW.flatten(2).gather(2, place_BCP).view(num, channels, height, width)
    return torch.where(inside[:, None], found, colour)
