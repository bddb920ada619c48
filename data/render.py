"""From keys to pixels to what a network is shown.

How pixels are made is the image sets' affair: `images/in_memory.py` renders a whole batch with one gather on the device
where the images are, `images/encoded.py` decodes in worker processes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from dhkd.data.images.base import Images
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


class Renderer(Protocol):
    """Pixels of any key of one data set under one recipe."""

    @property
    def in_memory(self) -> bool:
        """Whether any batch can be rendered at any time at little cost, because nothing has to be decoded."""

    @property
    def exact(self) -> bool:
        """Whether the pixels are the same with every version of every library."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """By its name, what was wrong with each file that a black image stands in for."""

    @property
    def images(self) -> Images:
        """The data set."""

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """For each batch of keys, in order, uint8 (B, C, H, W) on the device; it may look ahead for keys."""
