"""Cuts: a cut describes which part of a photo is resized, and what is kept of it. Pillow computes the pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from dhkd.data.images.decoding import Photo, pixels_of
from dhkd.data.images.resizing import Interpolation
from numpy.typing import NDArray
from PIL import Image

PILLOWS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive


class Cut(NamedTuple):
    """Which part of a photo is resized, and what is kept of the resized part.

    The part in `box` is resized to `size` (width, height). Of the resized part, the pixels in `window` are kept, and
    they are mirrored left to right if `mirrored` is true.
    """

    box: Box
    size: tuple[int, int]
    window: Box
    mirrored: bool


def cut_of(photo: Photo, cut: Cut, interpolation: Interpolation = "bilinear") -> NDArray[np.uint8]:
    """Compute from the photo the pixels that `cut` describes, uint8 (H, W, C).

    H and W are the height and width of `cut.window`.
    """
    if cut.box != (0, 0, photo.width, photo.height):
        # Cropped first, because resizing with a box blends pixels from outside the box into its borders.
        photo = photo.crop(cut.box)
    if photo.size != cut.size:
        photo = photo.resize(cut.size, PILLOWS[interpolation])
    if cut.window != (0, 0, *cut.size):
        photo = photo.crop(cut.window)
    if cut.mirrored:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return pixels_of(photo)


def cuts_of(photo: Photo, cuts: Sequence[Cut], interpolation: Interpolation = "bilinear") -> NDArray[np.uint8]:
    """Compute the pixels of cuts with windows of one size, uint8 (B, H, W, C), which may be read-only."""
    pixels = [cut_of(photo, cut, interpolation) for cut in cuts]
    return pixels[0][None] if len(pixels) == 1 else np.stack(pixels)  # one, as usual in training, needs no copy
