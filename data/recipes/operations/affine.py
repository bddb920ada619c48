"""Random affine maps: rotation, translation, scaling and shearing about the image's centre."""

from dataclasses import dataclass

import torch
from dhkd.data.draws.keyed import chosen
from dhkd.data.draws.philox import Domain
from dhkd.data.recipes.kernels.functions import at, sines
from dhkd.data.recipes.kernels.warping import FINE, Fill, Limits, Warp, limits_of, require_fill, warped
from dhkd.data.recipes.operations.base import Operation, require, require_probability, require_range
from dhkd.data.recipes.operations.drawn import between, changed
from torch import Tensor

FRACTION = 16  # fractional bits of scales and shares


@dataclass(frozen=True)
class Affine(Operation):
    """Maps images with this probability, as torchvision's `RandomAffine`.

    Uniform between their bounds are the angle, clockwise, in degrees; the translations, up to ± `translate` (x, y) as
    shares of width and height, in whole pixels; the factor `scale`; and the angles of `shear`: along x, or along x and
    y if it has four numbers.
    """

    degrees: Limits
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: Limits | tuple[float, float, float, float] = 0.0
    interpolation: Warp = "nearest"
    fill: Fill = 0
    probability: float = 1.0

    domain = Domain.AFFINE
    main_field = "degrees"

    def __post_init__(self) -> None:
        require_probability("affine", self.probability)
        require_range("affine", "degrees", limits_of(self.degrees), -360, 360)
        possible = all(0 <= share <= 1 for share in self.translate)
        require("affine", "translate", possible, "two shares from 0 to 1", list(self.translate))
        require_range("affine", "scale", self.scale, 0.01, 100)
        for limits in self._shears:
            require_range("affine", "shear", limits, -80, 80)
        require_fill("affine", self.fill)

    @property
    def _shears(self) -> tuple[tuple[float, float], tuple[float, float]]:
        if isinstance(self.shear, tuple) and len(self.shear) == 4:
            return self.shear[:2], self.shear[2:]
        return limits_of(self.shear), (0.0, 0.0)

    @property
    def num_draws(self) -> int:
        """7: whether pixels change, angle, translations along x and y, scale, shear along x and y."""
        return 7

    def maps(self, draws_BD: Tensor, height: int, width: int) -> Tensor:
        """Return for each row of draws the map from pixels to the original, as `warping` takes it, int64 (B, 6)."""
        _, angle, right, down, scale, shear_x, shear_y = draws_BD.unbind(1)
        sine, cosine, _ = at(sines(*limits_of(self.degrees), FINE), angle).unbind(1)
        tan_x, tan_y = (
            at(sines(*limits, FINE), draw)[:, 2] for limits, draw in zip(self._shears, (shear_x, shear_y), strict=True)
        )
        # The map to the picture: rotation · scaling · shear along y · shear along x. Its determinant is scale².
        a, c = cosine + (sine * tan_y >> FINE), sine - (cosine * tan_y >> FINE)
        b, d = -(a * tan_x >> FINE) - sine, -(c * tan_x >> FINE) + cosine
        factor = between(scale, *self.scale, FRACTION)
        a, b, c, d = ((number << FRACTION) // factor for number in (d, -b, -c, a))
        x, y = (
            _rounded(between(draw, -share, share, FRACTION) * side)
            for draw, share, side in zip((right, down), self.translate, (width, height), strict=True)
        )
        return torch.stack([a, b, -a * x - b * y, c, d, -c * x - d * y], 1)

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        map_B6 = self.maps(draws_BD, *pixels_BCHW.shape[2:])
        changes_B = chosen(draws_BD[:, 0], self.probability)
        return changed(
            pixels_BCHW, changes_B, lambda pixels, rows: warped(pixels, map_B6[rows], self.interpolation, self.fill)
        )


def _rounded(number: Tensor) -> Tensor:
    """Round numbers with `FRACTION` fractional bits to integers."""
    return number + (1 << FRACTION - 1) >> FRACTION
