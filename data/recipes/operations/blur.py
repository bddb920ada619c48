"""Gaussian blur of random strength."""

from dataclasses import dataclass, replace

import torch
from dhkd.data.draws.keyed import chosen
from dhkd.data.draws.philox import Domain
from dhkd.data.errors import ConfigError
from dhkd.data.recipes.kernels.functions import at, gaussians
from dhkd.data.recipes.operations.base import Operation, require, require_probability, require_range
from dhkd.data.recipes.operations.drawn import changed
from torch import Tensor

WEIGHT = 14  # fractional bits of a weight
BETWEEN = 8  # fractional bits of grey levels between the two passes; products of both fit into 31 bits


@dataclass(frozen=True)
class Blur(Operation):
    """Blurs with this probability, as torchvision's `GaussianBlur`.

    The deviation `sigma`, in pixels, is uniform between its bounds; the kernel has `kernel_size` pixels on a side, and
    the image is reflected at its borders.
    """

    probability: float
    kernel_size: int = 23
    sigma: tuple[float, float] = (0.1, 2.0)

    domain = Domain.BLUR

    def __post_init__(self) -> None:
        require_probability("blur", self.probability)
        odd = 3 <= self.kernel_size <= 255 and self.kernel_size % 2 == 1
        require("blur", "kernel_size", odd, "an odd number of pixels, 3 to 255", self.kernel_size)
        require_range("blur", "sigma", self.sigma, 0.01, 100)

    @property
    def num_draws(self) -> int:
        """2: whether pixels change, and sigma."""
        return 2

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W). Raises `ConfigError` for images smaller than the kernel."""
        side = min(pixels_BCHW.shape[2:])
        if self.kernel_size // 2 >= side:
            raise ConfigError(
                f"views.blur: kernel_size: expected at most {2 * side - 1} for images with a side of {side} pixels, got"
                f" {self.kernel_size}"
            )
        weights_BK = at(gaussians(*self.sigma, self.kernel_size // 2, WEIGHT), draws_BD[:, 1])
        changes_B = chosen(draws_BD[:, 0], self.probability)
        return changed(pixels_BCHW, changes_B, lambda pixels, rows: blurred(pixels, weights_BK[rows]))

    def at_size(self, before: int, after: int) -> "Blur":
        """Return the blur with a kernel and sigma in proportion to the size."""
        half = max(1, min(round(self.kernel_size // 2 * after / before), 127))
        low, high = (value * after / before for value in self.sigma)
        return replace(self, kernel_size=2 * half + 1, sigma=(max(low, 0.01), min(high, 100.0)))


def blurred(pixels_BCHW: Tensor, weights_BK: Tensor) -> Tensor:
    """Blur with symmetric kernels, given from the centre on with `WEIGHT` fractional bits: columns first, then rows."""
    levels = _pass(pixels_BCHW.contiguous().int(), weights_BK, 2, WEIGHT - BETWEEN)
    return _pass(levels, weights_BK, 3, WEIGHT + BETWEEN).to(torch.uint8)


def _pass(levels: Tensor, weights_BK: Tensor, axis: int, shift: int) -> Tensor:
    """Return the weighted sums along an axis, rounded after a shift to the right."""
    side, half = levels.shape[axis], weights_BK.shape[1] - 1
    place = torch.arange(-half, side + half, device=levels.device).abs()
    place = torch.where(place < side, place, 2 * side - 2 - place)  # reflected, without the border twice
    padded = levels.index_select(axis, place)
    weight_KB111 = weights_BK.T[:, :, None, None, None]
    total = levels * weight_KB111[0]
    for apart in range(1, half + 1):
        pair = padded.narrow(axis, half - apart, side) + padded.narrow(axis, half + apart, side)
        total += pair.mul_(weight_KB111[apart])
    return total.add_(1 << shift - 1) >> shift
