"""Grayscale: all channels get an image's grey values."""

from dataclasses import dataclass

from dhkd.data.draws.keyed import chosen
from dhkd.data.draws.philox import Domain
from dhkd.data.images.channels import grey_of
from dhkd.data.recipes.operations.base import Operation, require_probability
from dhkd.data.recipes.operations.drawn import changed
from torch import Tensor


@dataclass(frozen=True)
class Grayscale(Operation):
    """Turns colours into grey with this probability, as torchvision's `RandomGrayscale`; grey images stay as they are.

    The grey values are Pillow's.
    """

    probability: float

    domain = Domain.GRAYSCALE

    def __post_init__(self) -> None:
        require_probability("grayscale", self.probability)

    @property
    def num_draws(self) -> int:
        """1, which decides whether colours change."""
        return 1

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        chosen_B = chosen(draws_BD[:, 0], self.probability)
        return changed(pixels_BCHW, chosen_B, lambda pixels, _: _grey(pixels))


def _grey(pixels_BCHW: Tensor) -> Tensor:
    return pixels_BCHW if pixels_BCHW.shape[1] == 1 else grey_of(pixels_BCHW).expand_as(pixels_BCHW)
