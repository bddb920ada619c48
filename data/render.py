"""From keys to pixels to what a network eats: a whole batch with one gather, on the device where the images live."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from dhkd.data.image_set import ImageSet
from dhkd.data.views import CropFlip
from numpy.typing import NDArray
from torch import Tensor


class Normalization:
    """Pixels 0 to 255 to a network's input: (pixel / 255 - mean) / std for each channel, mean and std in 0 to 1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._constants: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """float32 (B, C, H, W), channels last in memory, from uint8 of the same shape."""
        batch, channels, height, width = pixels_BCHW.shape
        scale, shift = self._rows(pixels_BCHW.device, width)
        rows = pixels_BCHW.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        # A whole image row is the innermost axis: with the three channels there, the loop would not vectorise.
        return rows.float().mul_(scale).add_(shift).view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _rows(self, device: torch.device, width: int) -> tuple[Tensor, Tensor]:
        if (device, width) not in self._constants:
            mean, std = np.array(self.mean), np.array(self.std)
            constants = (np.tile(1 / (255 * std), width), np.tile(-mean / std, width))
            scale, shift = (torch.tensor(c, dtype=torch.float32, device=device) for c in constants)
            self._constants[device, width] = (scale, shift)
        return self._constants[device, width]


class Renderer:
    """Pixels of any key of one data set under one recipe.

    Holds the padded images on `device` (CIFAR-100's 50,000 with flips: 480 MB) and the views' order of every sample.
    """

    def __init__(self, images: ImageSet, recipe: CropFlip, device: torch.device) -> None:
        self.images, self.recipe, self.device = images, recipe, device
        self._windows = recipe.windows(images.images_NCHW.to(device))
        self._orders = recipe.orders(0, len(images)).to(device)

    def pixels(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """uint8 (B, C, H, W) on the renderer's device; keys are int64 (B,), on any device."""
        view_B, index_B = view_B.to(self.device), index_B.to(self.device)
        draws = self.recipe.decode(self._orders[index_B, view_B])
        return self.recipe.gather(self._windows, index_B, draws)


def witnesses(pixels_BCHW: Tensor) -> NDArray[np.uint32]:
    """zlib.crc32 of each image's pixels as bytes in (C, H, W) order, uint32 (B,): what a cache remembers of a view."""
    rows = pixels_BCHW.contiguous().cpu().numpy().reshape(len(pixels_BCHW), -1)
    return np.fromiter((zlib.crc32(row.data) for row in rows), dtype=np.uint32, count=len(rows))
