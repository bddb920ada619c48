"""Random rotation about the image's centre; the image keeps its size."""

from dataclasses import dataclass

import torch
from dhkd.data.draws.keyed import chosen
from dhkd.data.draws.philox import Domain
from dhkd.data.recipes.kernels.functions import at, sines
from dhkd.data.recipes.kernels.warping import FINE, Fill, Limits, Warp, limits_of, require_fill, warped
from dhkd.data.recipes.operations.base import Operation, require_probability, require_range
from dhkd.data.recipes.operations.drawn import changed
from torch import Tensor


@dataclass(frozen=True)
class Rotation(Operation):
    """Turns images with this probability, as torchvision's `RandomRotation`.

    The angle, anticlockwise, is uniform between the bounds in `degrees`, or from -`degrees` to `degrees`.
    """

    degrees: Limits
    interpolation: Warp = "nearest"
    fill: Fill = 0
    probability: float = 1.0

    domain = Domain.ROTATION
    main_field = "degrees"

    def __post_init__(self) -> None:
        require_probability("rotation", self.probability)
        require_range("rotation", "degrees", limits_of(self.degrees), -360, 360)
        require_fill("rotation", self.fill)

    @property
    def num_draws(self) -> int:
        """2: whether pixels change, and the angle."""
        return 2

    def maps(self, draws_BD: Tensor) -> Tensor:
        """Return for each row of draws the map from pixels to the original, as `warping` takes it, int64 (B, 6)."""
        sine, cosine, _ = at(sines(*limits_of(self.degrees), FINE), draws_BD[:, 1]).unbind(1)
        nothing = torch.zeros_like(sine)
        return torch.stack([cosine, -sine, nothing, sine, cosine, nothing], 1)

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        map_B6 = self.maps(draws_BD)
        return changed(
            pixels_BCHW,
            chosen(draws_BD[:, 0], self.probability),
            lambda pixels, rows: warped(pixels, map_B6[rows], self.interpolation, self.fill),
        )
