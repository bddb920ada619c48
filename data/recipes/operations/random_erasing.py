"""Random erasing: a random box of the image gets one colour, or noise (Zhong et al., 2020)."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from dhkd.data.draws.keyed import BITS, chosen
from dhkd.data.draws.philox import Domain
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import PerChannel
from dhkd.data.recipes.kernels.functions import at, log_uniform
from dhkd.data.recipes.operations.base import Operation, require, require_probability, require_range
from dhkd.data.recipes.operations.drawn import between, changed
from torch import Tensor

ATTEMPTS = 10  # boxes that are tried; if none fits, nothing is erased
SHARE, RATIO = 16, 14  # fractional bits of a box's share of the image, and of its height / width
LENGTH = 10  # fractional bits of its height and width before they are rounded

_MASK = (1 << BITS) - 1

# Filling: one grey level, or one for each channel; noise; or the data set's mean.
Value = int | tuple[int, ...] | Literal["random", "mean"]


@dataclass(frozen=True)
class RandomErasing(Operation):
    """Erases with this probability a box of the image, as torchvision's `RandomErasing`.

    The box's share of the image's area is uniform between the bounds in `scale`; the logarithm of height / width is
    uniform between the logarithms of the bounds in `ratio`. Of ten boxes, the first that fits is filled with `value`:
    0 to 255 for all channels or for each; `random`, uniform noise; or `mean`, the data set's mean colour, which
    normalization turns into about 0.
    """

    probability: float
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: Value = 0

    domain = Domain.ERASING

    def __post_init__(self) -> None:
        require_probability("random_erasing", self.probability)
        require_range("random_erasing", "scale", self.scale, 1e-4, 1)
        require_range("random_erasing", "ratio", self.ratio, 0.01, 100)
        levels = self.value if isinstance(self.value, tuple) else (self.value,)
        require("random_erasing", "value", len(levels) in (1, 3), "1 or 3 numbers", self.value)
        possible = all(isinstance(level, str) or 0 <= level <= 255 for level in levels)
        require("random_erasing", "value", possible, "0 to 255, random or mean", self.value)
        # A square image has room for the smallest box with the ratio that is nearest to 1.
        nearest = min(max(1.0, self.ratio[0]), self.ratio[1])
        fits = self.scale[0] * max(nearest, 1 / nearest) < 1
        require("random_erasing", "scale", fits, "boxes that fit into a square image", list(self.scale))

    @property
    def num_draws(self) -> int:
        """42: whether pixels change, four of each attempt (area, ratio, top, left), and the noise's seed."""
        return 2 + 4 * ATTEMPTS

    def boxes(self, draws_BD: Tensor, height: int, width: int) -> Tensor:
        """Return the box (top, left, height, width) of each row of draws, int64 (B, 4); 0 × 0 pixels if none fits."""
        area, ratio, top, left = draws_BD[:, 1:-1].reshape(-1, ATTEMPTS, 4).unbind(2)
        share = between(area, *self.scale, SHARE)
        aspect = at(log_uniform(*self.ratio, RATIO), ratio)
        # The squares of the sides in units of 2^-20 pixels, below 2^52, so that float64 gives the root's whole part.
        squares = share[..., None] * aspect * (height * width) >> SHARE + RATIO - 2 * LENGTH
        sides = squares.double().sqrt().long() + (1 << LENGTH - 1) >> LENGTH
        fits = (sides[..., 0] < height) & (sides[..., 1] < width)
        first_B1 = fits.int().argmax(1, keepdim=True)
        down, across, top, left = (
            drawn.gather(1, first_B1)[:, 0] for drawn in (sides[..., 0], sides[..., 1], top, left)
        )
        top, left = top * (height - down + 1) >> BITS, left * (width - across + 1) >> BITS
        box = torch.stack([top, left, down, across], 1)
        return torch.where(fits.any(1)[:, None], box, 0)

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        height, width = pixels_BCHW.shape[2:]
        return self._erased(pixels_BCHW, draws_BD, height, width)

    def at_size(self, before: int, after: int) -> "ErasingAtSize":
        """Return the operation that erases the boxes of images with the side `before`, scaled to the side `after`."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return ErasingAtSize(**{**settings, "side": settings.get("side", before)})

    def for_mean(self, mean: PerChannel) -> "RandomErasing":
        """Return the operation with the mean's grey levels in the place of `mean`."""
        return replace(self, value=tuple(round(255 * level) for level in mean)) if self.value == "mean" else self

    def _erased(self, pixels_BCHW: Tensor, draws_BD: Tensor, height: int, width: int) -> Tensor:
        """Erase boxes that are drawn for images of `height` × `width` pixels, and scaled to the pixels given."""
        rows, columns = pixels_BCHW.shape[2:]
        box_B4 = self.boxes(draws_BD, height, width)
        changes_B = chosen(draws_BD[:, 0], self.probability) & (box_B4[:, 2:] > 0).all(1)
        # Pixel (y, x) shows what pixel (y', x') of an image of the size drawn for shows; each has its own number.
        y = torch.arange(rows, device=pixels_BCHW.device)[:, None] * height // rows
        x = torch.arange(columns, device=pixels_BCHW.device) * width // columns

        def erase(pixels: Tensor, chosen_rows: Tensor) -> Tensor:
            top, left, box_height, box_width = box_B4[chosen_rows, :, None, None].unbind(1)
            inside = (y >= top) & (y < top + box_height) & (x >= left) & (x < left + box_width)
            filling = self._filling(pixels, draws_BD[chosen_rows, -1], y * width + x)
            return torch.where(inside[:, None], filling, pixels)

        return changed(pixels_BCHW, changes_B, erase)

    def _filling(self, pixels_BCHW: Tensor, seed_B: Tensor, place_HW: Tensor) -> Tensor:
        """Return what fills the boxes, uint8, of the shape of the pixels or one that expands to it."""
        channels = pixels_BCHW.shape[1]
        if self.value == "random":
            return _noise(seed_B, place_HW, channels)
        if isinstance(self.value, str):
            raise ConfigError("views.random_erasing: value: expected the data set's mean to be known; give the colour")
        levels = self.value if isinstance(self.value, tuple) else (self.value,)
        if len(levels) > 1 and channels == 1:
            raise ConfigError(f"views.random_erasing: value: expected one number for grey images, got {list(levels)}")
        return torch.tensor(levels, dtype=torch.uint8, device=pixels_BCHW.device)[:, None, None]


@dataclass(frozen=True)
class ErasingAtSize(RandomErasing):
    """Erases the boxes of a `RandomErasing` of images with another side, for a network that takes larger images."""

    side: int = 0

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        return self._erased(pixels_BCHW, draws_BD, self.side, self.side)


def _noise(seed_B: Tensor, place_HW: Tensor, channels: int) -> Tensor:
    """Return uniform noise, uint8 (B, C, H, W), by the last step of MurmurHash3, which mixes 32 bits."""
    mixed = (seed_B[:, None, None] + place_HW * 0x9E3779B9) & _MASK
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ mixed >> shift) * multiplier & _MASK
    mixed ^= mixed >> 16
    return torch.stack([mixed >> 8 * channel & 255 for channel in range(channels)], 1).to(torch.uint8)
