"""How an image of any size becomes the pixels that a trained network takes, in a form that a network's file records.

It is what the recipe for test images does. Where a data set's images all have one size and test images stay as they
are, an image of another size is resized until it just covers that size, and its central part is kept.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from dhkd.data.images.resizing import INTERPOLATIONS, Interpolation
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.unaugmented import CenterCrop, Covering

LARGEST = 2**13  # pixels along a side; `data` allows no larger crops either


@dataclass(frozen=True)
class Preparation:
    """Images become `height` × `width` pixels in `channels`, 3 for colours or 1 for grey.

    The shorter side is resized to `resize` pixels, and the central part is kept. If `resize` is None, the image is
    resized until it just covers the part.
    """

    height: int
    width: int
    channels: int
    resize: int | None = None
    interpolation: Interpolation = "bilinear"

    @property
    def recipe(self) -> Recipe:
        """The recipe that prepares images in this way."""
        if self.resize is None:
            return Covering(self.height, self.width, self.interpolation)
        return CenterCrop(self.height, self.resize, self.interpolation)

    def plain(self) -> dict[str, object]:
        """Return plain values, from which `preparation_from` builds the preparation again."""
        return asdict(self)


def preparation_of(test: Recipe, shape: tuple[int, int] | None, channels: int) -> Preparation | None:
    """Return what the recipe `test` for test images does, or None if it is one that a user wrote.

    `shape` is the height and width of the data set's images, where they are all of one size.
    """
    cropped = getattr(test, "centre", None)  # one that a user wrote need not derive from `Recipe`
    if cropped is not None:
        size, resize, interpolation = cropped
        return Preparation(size, size, channels, resize, interpolation)
    as_they_are = getattr(test, "keeps_pixels", False)
    return Preparation(*shape, channels) if as_they_are and shape is not None else None


def preparation_from(plain: object) -> Preparation | None:
    """Build a preparation from the plain values of a stranger's file; return None for anything but such values."""
    if not isinstance(plain, Mapping) or plain.keys() != {field.name for field in fields(Preparation)}:
        return None
    sides = [plain["height"], plain["width"], *([] if plain["resize"] is None else [plain["resize"]])]
    right = all(type(side) is int and 1 <= side <= LARGEST for side in sides) and plain["channels"] in (1, 3)
    if not right or plain["interpolation"] not in INTERPOLATIONS:
        return None
    if plain["resize"] is not None and not plain["height"] == plain["width"] <= plain["resize"]:
        return None
    return Preparation(**plain)
