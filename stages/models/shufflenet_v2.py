"""ShuffleNetV2 ×1 for small images, with the published CIFAR-100 checkpoints' parameter names.

Ma et al., 2018, table 5, with a 1×1 stem that keeps the resolution and no pooling after it. The channels that a block
passes on unchanged have been through a ReLU already. Applying ReLU to all channels is therefore the same as applying it
only to the new channels.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from dhkd.stages.models.network import ReluBlock, StagedNetwork, StageMap, activated, through_relu_blocks
from torch import Tensor, nn

STEM = 24


class ShufflingBlock(ReluBlock):
    """A block that shuffles the channels after its last activation."""

    def activate(self, before_BCHW: Tensor) -> Tensor:
        """Compute the block's map after its last activation, with shuffled channels, from the unshuffled one."""
        return F.channel_shuffle(F.relu(before_BCHW), 2)


class KeepingBlock(ShufflingBlock):
    """1×1, depthwise 3×3 and 1×1 convolutions of one half of the channels; the other half stays as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def before(self, x: Tensor) -> Tensor:
        """Compute the block's map before its last activation, the kept half of the channels first."""
        kept, changed = x.chunk(2, dim=1)
        changed = F.relu(self.bn1(self.conv1(changed)))
        changed = self.bn2(self.conv2(changed))
        return torch.cat([kept, self.bn3(self.conv3(changed))], dim=1)


class HalvingBlock(ShufflingBlock):
    """Two paths of stride 2, each over all channels, whose outputs are concatenated."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def before(self, x: Tensor) -> Tensor:
        """Compute the block's map before its last activation, one path's channels after the other's."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return torch.cat([left, right], dim=1)


class ShuffleNetV2(StagedNetwork):
    """A ShuffleNetV2 over images (B, 3, H, W), with four maps."""

    head_name = "linear"
    tail_names = ("conv2", "bn2")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, 116, 4)
        self.layer2 = _stage(116, 232, 8)
        self.layer3 = _stage(232, 464, 4)
        self.embedding_dim = 1024
        self.conv2 = nn.Conv2d(464, self.embedding_dim, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(self.embedding_dim)
        self.linear = nn.Linear(self.embedding_dim, num_classes)

    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the maps of the stem and of the three stages."""
        stem = activated(self.bn1(self.conv1(images_BCHW)))
        return through_relu_blocks(stem, (self.layer1, self.layer2, self.layer3))

    def final_map(self, last_BCHW: Tensor) -> Tensor:
        """Compute the feature map before pooling, by a last 1×1 convolution."""
        return F.relu(self.bn2(self.conv2(last_BCHW)))


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(HalvingBlock(in_channels, channels), *(KeepingBlock(channels) for _ in range(blocks - 1)))
