"""Solarization: inverts the pixels at and above a threshold."""

from dataclasses import dataclass

import torch
from dhkd.data.draws.keyed import chosen
from dhkd.data.draws.philox import Domain
from dhkd.data.recipes.operations.base import Operation, require, require_probability
from torch import Tensor


@dataclass(frozen=True)
class Solarize(Operation):
    """With this probability, inverts all values of at least `threshold`, 0 to 255: torchvision's `RandomSolarize`."""

    probability: float
    threshold: int = 128

    domain = Domain.SOLARIZE

    def __post_init__(self) -> None:
        require_probability("solarize", self.probability)
        require("solarize", "threshold", 0 <= self.threshold <= 255, "0 to 255", self.threshold)

    @property
    def num_draws(self) -> int:
        """1, which decides whether pixels change."""
        return 1

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        changes_B111 = chosen(draws_BD[:, 0], self.probability)[:, None, None, None]
        return torch.where(changes_B111 & (pixels_BCHW >= self.threshold), 255 - pixels_BCHW, pixels_BCHW)
