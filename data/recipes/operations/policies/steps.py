"""Steps of policies: one operation with its magnitude, by torchvision's names, and the integers that describe it.

`batched_steps.py` computes the steps of a whole batch at once, `single_steps.py` those of one image after the other.
"""

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from dhkd.data.recipes.kernels import affine, tables
from dhkd.data.recipes.kernels.blends import weight_of

MAPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
TABLES = ("Brightness", "Posterize", "Solarize", "Invert")  # the same for all images
BLENDS = ("Contrast", "Color", "Sharpness")


class Step(NamedTuple):
    """An operation and its magnitude with its sign; 0 for an operation that has none."""

    name: str
    magnitude: Fraction = Fraction(0)


def map_of(step: Step, height: int, width: int) -> affine.Map:
    """Return the map of a step in `MAPS`, and for any other step the one that changes nothing."""
    zero, magnitude = Fraction(0), step.magnitude
    match step.name:
        case "ShearX":
            return affine.sheared(magnitude, zero)
        case "ShearY":
            return affine.sheared(zero, magnitude)
        case "TranslateX":
            return affine.translated(int(magnitude), 0)
        case "TranslateY":
            return affine.translated(0, int(magnitude))
        case "Rotate":
            return affine.rotated(magnitude, height, width)
    return affine.IDENTITY


@lru_cache(maxsize=512)
def table_of(step: Step) -> list[int]:
    """Return the table of a step in `TABLES`, and for any other step the one that changes nothing."""
    match step.name:
        case "Brightness":
            return tables.brightened(1 + step.magnitude)
        case "Posterize":
            return tables.posterized(int(step.magnitude))
        case "Solarize":
            return tables.solarized(step.magnitude)
        case "Invert":
            return tables.INVERTED
    return tables.IDENTITY


def blend_of(step: Step) -> int:
    """Return the weight of a step in `BLENDS`, and 0 for any other step."""
    return weight_of(1 + step.magnitude) if step.name in BLENDS else 0
