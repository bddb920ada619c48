"""Rendering of keys (view, index) to pixels, and normalization of pixels to a network's input.

Each kind of image set has its own renderer: `images/in_memory.py` gathers a whole batch on the images' device, while
`images/decoding_workers.py` decodes in worker processes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from dhkd.data.images.base import Images
from dhkd.data.images.channels import grey_of
from dhkd.data.images.resizing import Resizing
from dhkd.data.recipes.base import Recipe
from torch import Tensor

Keys = tuple[Tensor, Tensor]  # view_B and index_B, int64 on the CPU


class Normalization:
    """Turns pixels, 0 to 255, into a network's input: (pixel / 255 - mean) / std, with each channel's mean and std.

    The input has as many channels as `mean` has numbers. Grey pixels are repeated for a network of three channels, and
    colours become grey for a network of one. If `resizing` is not None, the pixels are also resized before.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], resizing: Resizing | None = None) -> None:
        self.mean, self.std, self.resizing = tuple(mean), tuple(std), resizing
        self._constants: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """Convert pixels, uint8 (B, C, H, W), to float32 in as many channels as `mean` has, channels last in memory.

        Height and width stay the same, unless `resizing` changes them.
        """
        if pixels_BCHW.shape[1] != len(self.mean):
            pixels_BCHW = (
                grey_of(pixels_BCHW) if len(self.mean) == 1 else pixels_BCHW.expand(-1, len(self.mean), -1, -1)
            )
        if self.resizing is not None:
            pixels_BCHW = self.resizing(pixels_BCHW)
        batch, channels, height, width = pixels_BCHW.shape
        scale, shift = self._rows(pixels_BCHW.device, width)
        rows = pixels_BCHW.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        # The innermost axis is a whole image row, because a loop over only three channels would not be vectorised.
        return rows.float().mul_(scale).add_(shift).view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _rows(self, device: torch.device, width: int) -> tuple[Tensor, Tensor]:
        if (device, width) not in self._constants:
            mean, std = np.array(self.mean), np.array(self.std)
            constants = (np.tile(1 / (255 * std), width), np.tile(-mean / std, width))
            scale, shift = (torch.tensor(c, dtype=torch.float32, device=device) for c in constants)
            self._constants[device, width] = (scale, shift)
        return self._constants[device, width]


class Renderer(Protocol):
    """Renders any key of one data set with one recipe."""

    @property
    def in_memory(self) -> bool:
        """Whether any batch can be rendered again at little cost, because nothing has to be decoded."""

    @property
    def exact(self) -> bool:
        """Whether the pixels are the same with all versions of all libraries."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The files that were replaced by black images: each file's name and the reason why it could not be decoded."""

    @property
    def images(self) -> Images:
        """The data set."""

    @property
    def recipe(self) -> Recipe:
        """The recipe. If it mixes, the renderer mixes the pictures."""

    @property
    def device(self) -> torch.device:
        """The device of the pixels."""

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """Yield the pixels of each batch of keys, in order: uint8 (B, C, H, W) on the device.

        The renderer may read several batches of keys before it yields the first pixels.
        """

    def render_twice(self, batches: Iterable[Keys], other: Recipe | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each batch its pixels as `render` does, and those that the recipe `other` makes of the same keys.

        Every image is decoded once for both. If `other` is None, both are the same tensor.
        """
