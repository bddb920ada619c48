"""JPEG files decoded at half, a quarter or an eighth of their size, for which libjpeg computes fewer pixels.

Which size a view takes depends on the size in the file and on the view's box alone, so a key gives the same bytes,
whatever else is rendered. Other formats, and items of data sets of one's own, are decoded whole.
"""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

FACTORS = (8, 4, 2)  # by which libjpeg divides sides; sides that are no multiples are rounded up
_KEY = "dhkd reduced"  # the key in a photo's `info` under which its `Reduced` stands

# Takes height and width in the file; returns the factor by which sides are divided, one of `FACTORS` or 1.
Reduction = Callable[[int, int], int]


class Reduced(NamedTuple):
    """By what the sides of a photo were divided when it was decoded, and height and width in the file."""

    factor: int
    height: int
    width: int


def reduce(image: Image.Image, reduction: Reduction) -> None:
    """Set the size at which an opened image will be decoded; it stays as it is if the format has no reduction."""
    height, width = image.height, image.width
    factor = reduction(height, width)
    if factor > 1:
        image.draft(None, (width // factor, height // factor))  # the smallest size that is at least as large
        if image.size != (width, height):
            image.info[_KEY] = Reduced(factor, height, width)


def reduced_of(photo: Image.Image) -> Reduced:
    """Return how a photo was reduced."""
    reduced: Reduced | None = photo.info.get(_KEY)
    return reduced or Reduced(1, photo.height, photo.width)


class Decodings:
    """The photos of one image file at all the sizes that its views need, each decoded once."""

    def __init__(self, decode: Callable[[Reduction | None], Image.Image]) -> None:
        self._decode = decode
        self._photos: dict[int, Image.Image] = {}  # by the factor that was asked for

    def at(self, reduction: Reduction | None) -> Image.Image:
        """Return the photo that a reduction asks for, and without a reduction the whole one."""
        for photo in self._photos.values():
            _, height, width = reduced_of(photo)
            factor = 1 if reduction is None else reduction(height, width)
            if factor in self._photos:
                return self._photos[factor]
            break  # all have the same size in the file
        photo = self._decode(reduction)
        _, height, width = reduced_of(photo)
        self._photos[1 if reduction is None else reduction(height, width)] = photo
        return photo
