"""A network that takes pixels: what is written to files for other programs, so that nobody has to normalise for it.

Its input is uint8. Programs that run such files check the type of their input, so images that were normalised already
are refused instead of being classified wrongly.
"""

from collections.abc import Sequence

import torch
from dhkd.data.images.channels import BITS, BLUE, GREEN, HALF, RED
from dhkd.data.images.resizing import Resizing
from dhkd.stages.models.network import Network
from torch import Tensor, nn


class OnPixels(nn.Module):
    """Computes the logits (B, K) of pixels, uint8 (B, `channels`, H, W), as `Normalization` and then `network` do.

    `mean` and `std` are those of each channel of the network's input, where full scale is 1.
    """

    scale: Tensor
    shift: Tensor
    grey: Tensor

    def __init__(
        self,
        network: Network,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int,
        resizing: Resizing | None = None,
    ) -> None:
        super().__init__()
        self.network, self._channels, self._inputs, self._resizing = network, channels, len(mean), resizing
        means, deviations = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", (1 / (255 * deviations)).float())
        self.register_buffer("shift", (-means / deviations).float())
        self.register_buffer("grey", torch.tensor([RED, GREEN, BLUE], dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Compute the logits (B, K), float32."""
        pixels = pixels_BCHW.float()
        if self._channels > self._inputs:
            # Exact in float32, since all values are integers below 2^24; `channels.grey_of` has the same in integers.
            weighted = (pixels * self.grey).sum(dim=1, keepdim=True) + HALF
            pixels = torch.floor(weighted / (1 << BITS))
        elif self._channels < self._inputs:
            pixels = pixels.expand(-1, self._inputs, -1, -1)
        if self._resizing is not None:
            pixels = self._resizing(pixels)
        return self.network.logits_of(pixels * self.scale + self.shift)
