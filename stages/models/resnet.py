"""ResNets for small images: three stages of basic blocks, with the published CIFAR-100 checkpoints' parameter names.

He et al., 2016, section 4.2: depth 6n + 2, n blocks a stage. The wide variants (8x4, 32x4) have four times as many
channels in the stages and twice as many in the stem. Global average pooling allows images of any size. `resnet50.py`
has the deeper network of bottleneck blocks.
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

NARROW = (16, 16, 32, 64)  # channels of the stem and of the three stages
WIDE = (32, 64, 128, 256)


class BasicBlock(ReluBlock):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution if the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def before(self, x: Tensor) -> Tensor:
        """Compute the block's map before its last activation."""
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        summed: Tensor = self.bn2(self.conv2(x)) + shortcut
        return summed


class ResNet(StagedNetwork):
    """A ResNet of `depth` layers over images (B, 3, H, W), H and W at least 4, with four maps."""

    head_name = "fc"

    def __init__(self, depth: int, channels: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        assert rest == 0, f"depth {depth} is not 6n + 2"
        stem, *stages = channels
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, stages[0], blocks, stride=1)
        self.layer2 = _stage(stages[0], stages[1], blocks, stride=2)
        self.layer3 = _stage(stages[1], stages[2], blocks, stride=2)
        self.embedding_dim = stages[2]
        self.fc = nn.Linear(self.embedding_dim, num_classes)
        start_convolutions(self)

    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the maps of the stem and of the three stages."""
        stem = activated(self.bn1(self.conv1(images_BCHW)))
        return through_relu_blocks(stem, (self.layer1, self.layer2, self.layer3))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
