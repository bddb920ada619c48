"""Cuts: a cut describes which part of a photo is resized, and what is kept of it. Pillow computes the pixels."""

from typing import NamedTuple

from dhkd.data.images.decoding import Photo
from dhkd.data.images.reduced import reduced_of
from dhkd.data.images.resizing import Interpolation
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


def cut_of(photo: Photo, cut: Cut, interpolation: Interpolation = "bilinear") -> Photo:
    """Compute from the photo the part that `cut` describes, with the size of `cut.window`.

    The cut is one of the size in the file, at which a reduced photo is not.
    """
    factor = reduced_of(photo).factor
    if factor > 1:
        photo = _resized(photo, cut, factor, interpolation)
    elif cut.box != (0, 0, photo.width, photo.height):
        # Cropped first, because resizing with a box blends pixels from outside the box into its borders.
        photo = photo.crop(cut.box)
    if photo.size != cut.size:
        photo = photo.resize(cut.size, PILLOWS[interpolation])
    if cut.window != (0, 0, *cut.size):
        photo = photo.crop(cut.window)
    if cut.mirrored:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return photo


def _resized(photo: Photo, cut: Cut, factor: int, interpolation: Interpolation) -> Photo:
    """Resize the box of a photo that is reduced by `factor`, which may begin and end within its pixels."""
    left, top, right, bottom = cut.box
    x, y = left // factor, top // factor
    part = photo.crop((x, y, -(-right // factor), -(-bottom // factor)))
    box = (left / factor - x, top / factor - y, right / factor - x, bottom / factor - y)  # exact: quotients by 2^k
    return part.resize(cut.size, PILLOWS[interpolation], box)
