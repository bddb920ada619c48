"""Cuts, i.e. parts of a decoded image, resized and possibly mirrored by Pillow."""

from typing import NamedTuple

import numpy as np
from dhkd.data.images.decoding import Photo
from numpy.typing import NDArray
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive


class Cut(NamedTuple):
    """The part `box` of an image, resized to `size` (width, height), cropped to `window`, possibly mirrored."""

    box: Box
    size: tuple[int, int]
    window: Box
    mirrored: bool


def cut_of(photo: Photo, cut: Cut) -> NDArray[np.uint8]:
    """Return the pixels of a cut, uint8 (H, W, 3)."""
    if cut.box != (0, 0, photo.width, photo.height):
        # Cropped first, because resizing with a box blends pixels from outside the box into its borders.
        photo = photo.crop(cut.box)
    if photo.size != cut.size:
        photo = photo.resize(cut.size, Image.Resampling.BILINEAR)
    if cut.window != (0, 0, *cut.size):
        photo = photo.crop(cut.window)
    if cut.mirrored:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(photo)
