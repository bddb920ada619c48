"""From keys to pixels to what a network eats.

Images held in memory are rendered here, a whole batch with one gather, on the device where they live; photographs are
decoded in `images/photographs.py`. Both give batches of pixels for batches of keys.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from dhkd.data.images.in_memory import ImageSet, Triple
from dhkd.data.recipes.crop_flip import CropFlip
from torch import Tensor

Keys = tuple[Tensor, Tensor]  # view_B and index_B, int64 on the CPU


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


class DataSet(Protocol):
    """What the stages know of a split, however its images are kept: `ImageSet` and `PhotoSet` are such."""

    @property
    def name(self) -> str:
        """The data set's name."""

    @property
    def split(self) -> str:
        """ "train" or "test"."""

    @property
    def labels_N(self) -> Tensor:  # noqa: N802 - a shape suffix
        """int64 (N,), each in [0, num_classes)."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def mean(self) -> Triple:
        """Of each channel, in units of full scale."""

    @property
    def std(self) -> Triple:
        """Of each channel, in units of full scale."""

    def __len__(self) -> int:
        """N."""

    def fingerprint(self) -> str:
        """Equal fingerprints mean the same data set in the same order."""


class Renderer(Protocol):
    """Pixels of any key of one data set under one recipe."""

    @property
    def images(self) -> DataSet:
        """The data set."""

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """For each batch of keys, in order, uint8 (B, C, H, W) on the device; it may look ahead for keys."""


class ResidentRenderer:
    """Any view of images held in memory.

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

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """For each batch of keys, in order, uint8 (B, C, H, W) on the renderer's device."""
        return (self.pixels(view_B, index_B) for view_B, index_B in batches)


class UnaugmentedRenderer:
    """Images held in memory, as they are: for test sets; the view has no meaning."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self.images, self.device = images, device
        self._images_NCHW = images.images_NCHW.to(device)

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """For each batch of keys, in order, uint8 (B, C, H, W) on the renderer's device."""
        return (self._images_NCHW[index_B.to(self.device)] for _, index_B in batches)
