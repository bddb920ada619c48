"""Vertical flip: turns images upside down."""

from dataclasses import dataclass

import torch
from dhkd.data.draws.keyed import chosen
from dhkd.data.draws.philox import Domain
from dhkd.data.recipes.operations.base import Operation, require_probability
from torch import Tensor


@dataclass(frozen=True)
class VerticalFlip(Operation):
    """Mirrors images top to bottom with this probability, as torchvision's `RandomVerticalFlip`."""

    probability: float

    domain = Domain.VERTICAL_FLIP

    def __post_init__(self) -> None:
        require_probability("vertical_flip", self.probability)

    @property
    def num_draws(self) -> int:
        """1, which decides whether images are mirrored."""
        return 1

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        changes_B111 = chosen(draws_BD[:, 0], self.probability)[:, None, None, None]
        return torch.where(changes_B111, pixels_BCHW.flip(2), pixels_BCHW)
