"""Resizes rendered pixels to the size that a network takes, on the pixels' device."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)


@dataclass(frozen=True)
class Resizing:
    """Turns square pixels of any size into pixels of `size` × `size`.

    A row of the result depends on that row of pixels alone, whatever else is in the batch.
    """

    size: int
    interpolation: Interpolation

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """Resize pixels, uint8 (B, C, H, W), to float32 (B, C, size, size) from 0 to 255.

        Values are not rounded to grey levels, because rounding would turn last-bit differences between devices into
        differences of a whole level. Raises `ConfigError` for pixels that are not square.
        """
        height, width = pixels_BCHW.shape[2:]
        if height != width:
            raise ConfigError(
                f"teacher.size: expected square views, which can be resized to {self.size}×{self.size} pixels, got"
                f" {width}×{height}; leave it out, or use views.kind=random-resized-crop"
            )
        pixels = pixels_BCHW.float().contiguous()
        if height == self.size:
            return pixels
        # Antialiased as in the transforms of torchvision and timm. Bicubic overshoots at edges, hence the clamp.
        return F.interpolate(pixels, (self.size, self.size), mode=self.interpolation, antialias=True).clamp_(0, 255)
