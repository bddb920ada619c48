"""The ResNet-50 for small images, with the published CIFAR-100 checkpoint's parameter names.

He et al., 2016, table 1, with a 3×3 stem that keeps the resolution and no pooling after it.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from dhkd.stages.models.network import (
    ReluBlock,
    StagedNetwork,
    StageMap,
    activated,
    start_convolutions,
    through_relu_blocks,
)
from torch import Tensor, nn

EXPANSION = 4  # channels of a block's output, divided by the channels of its 3×3 convolution


class Bottleneck(ReluBlock):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut, which is a 1×1 convolution if the shape changes."""

    def __init__(self, in_channels: int, inner: int, stride: int) -> None:
        super().__init__()
        channels = EXPANSION * inner
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def before(self, x: Tensor) -> Tensor:
        """Compute the block's map before its last activation."""
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        summed: Tensor = self.bn3(self.conv3(x)) + shortcut
        return summed


class ResNet50(StagedNetwork):
    """A ResNet-50 over images (B, 3, H, W), with five maps."""

    head_name = "linear"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)
        self.embedding_dim = 2048
        self.linear = nn.Linear(self.embedding_dim, num_classes)
        start_convolutions(self)

    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the maps of the stem and of the four stages."""
        stem = activated(self.bn1(self.conv1(images_BCHW)))
        return through_relu_blocks(stem, (self.layer1, self.layer2, self.layer3, self.layer4))


def _stage(in_channels: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, inner, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * inner, inner, 1) for _ in range(blocks - 1)))
