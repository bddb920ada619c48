"""Magnitudes of the operations, with torchvision's names and ranges."""

from dataclasses import dataclass
from fractions import Fraction

from dhkd.data.recipes.operations.policies.steps import Step

# In torchvision's order, which numbers the draws.
NAMES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)


@dataclass(frozen=True)
class Space:
    """The ranges of the magnitudes, each in `bins` equal steps.

    The largest shear is a slope, `translation` is a number of pixels, the rotation is in degrees, and the blends
    (brightness, colour, contrast, sharpness) take 1 ± their magnitude as factor. Posterizing keeps 8 bits less up to
    `bits_lost`. Solarizing inverts from 255 down to 0.
    """

    shear: Fraction
    translation: tuple[Fraction, Fraction]  # along the height and along the width
    degrees: Fraction
    blend: Fraction
    bits_lost: int
    bins: int

    def step(self, name: str, place: int, sign: int = 1) -> Step:
        """Return an operation with the magnitude at a place among the bins; `sign` is 1 or -1."""
        share = Fraction(place, self.bins - 1)
        most = self._most.get(name)
        if most is not None:
            return Step(name, sign * most * share)
        if name == "Posterize":
            return Step(name, Fraction(8 - round(self.bits_lost * share)))  # halves to the even number
        if name == "Solarize":
            return Step(name, 255 * (1 - share))
        return Step(name)

    @property
    def _most(self) -> dict[str, Fraction]:
        along_height, along_width = self.translation
        return {
            **dict.fromkeys(("ShearX", "ShearY"), self.shear),
            "TranslateX": along_width,
            "TranslateY": along_height,
            "Rotate": self.degrees,
            **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), self.blend),
        }


def usual(height: int, width: int, bins: int) -> Space:
    """Return the ranges of RandAugment and AutoAugment, whose translations depend on the image's size."""
    translation = (Fraction(150 * height, 331), Fraction(150 * width, 331))
    return Space(Fraction(3, 10), translation, Fraction(30), Fraction(9, 10), 4, bins)


def wide(bins: int) -> Space:
    """Return the ranges of TrivialAugmentWide."""
    share = Fraction(99, 100)
    return Space(share, (Fraction(32), Fraction(32)), Fraction(135), share, 6, bins)
