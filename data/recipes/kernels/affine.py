"""Affine maps with the nearest pixel, in Pillow's fixed-point arithmetic, so that both choose the same pixels.

A map takes the centre of a pixel of the result to a place in the source. Its coefficients are six integers with 16
fractional bits: x = (a·column + b·row + c) >> 16, y = (d·column + e·row + f) >> 16, in pixels of the source.
"""

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = 16
ONE = 1 << BITS
Map = tuple[int, int, int, int, int, int]

IDENTITY: Map = (ONE, 0, ONE // 2, 0, ONE, ONE // 2)
_DIGITS = 15  # of a sine or cosine, as in Pillow: it leaves out what differs from one C library to another


def sheared(x: Fraction, y: Fraction) -> Map:
    """Return the shear that takes column + x · row and row + y · column, around the upper left corner."""
    return _fixed(Fraction(1), x, Fraction(0), y, Fraction(1), Fraction(0))


def translated(x: int, y: int) -> Map:
    """Return the translation by whole pixels, to the right and down."""
    return _fixed(Fraction(1), Fraction(0), Fraction(-x), Fraction(0), Fraction(1), Fraction(-y))


def rotated(degrees: Fraction, height: int, width: int) -> Map:
    """Return the rotation around the centre, counterclockwise as seen."""
    angle = math.radians(degrees)
    cosine, sine = (Fraction(str(round(function(angle), _DIGITS))) for function in (math.cos, math.sin))
    x, y = Fraction(width, 2), Fraction(height, 2)
    return _fixed(cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)


def _fixed(a: Fraction, b: Fraction, c: Fraction, d: Fraction, e: Fraction, f: Fraction) -> Map:
    """Return the coefficients of a map of points, for which a pixel's centre lies half a pixel from its corner."""
    c, f = c + (a + b) / 2, f + (d + e) / 2
    first, second, third, fourth, fifth, sixth = (
        math.floor(value * ONE + Fraction(1, 2)) for value in (a, b, c, d, e, f)
    )
    return first, second, third, fourth, fifth, sixth


def nearest(pixels_BCHW: Tensor, maps_B6: Tensor) -> Tensor:
    """Return the mapped pixels, uint8 (B, C, H, W); what lies outside the source is 0. `maps_B6` is int32."""
    batch, channels, height, width = pixels_BCHW.shape
    # The source gets a border of one black pixel, where all places outside fall.
    bordered_BCS = F.pad(pixels_BCHW, (1, 1, 1, 1)).view(batch, channels, -1)
    a, b, c, d, e, f = maps_B6[:, :, None, None].unbind(1)
    column_W, row_H1 = (torch.arange(side, dtype=torch.int32, device=maps_B6.device) for side in (width, height))
    row_H1 = row_H1[:, None]
    x_BHW = (a * column_W + (b * row_H1 + (c + ONE))).bitwise_right_shift_(BITS).clamp_(0, width + 1)
    y_BHW = (d * column_W + (e * row_H1 + (f + ONE))).bitwise_right_shift_(BITS).clamp_(0, height + 1)
    place_BCS = y_BHW.mul_(width + 2).add_(x_BHW).long().view(batch, 1, -1).expand(-1, channels, -1)
    return bordered_BCS.gather(2, place_BCS).view(pixels_BCHW.shape)
