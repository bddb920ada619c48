"""ShuffleNet (version 1, three groups) for small images, with the published CIFAR-100 checkpoints' parameter names.

Zhang et al., 2018, table 1, with a 1×1 stem that keeps the resolution and no pooling after it.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from dhkd.stages.models.network import ReluBlock, StagedNetwork, StageMap, activated, through_relu_blocks
from torch import Tensor, nn

GROUPS = 3
STEM = 24


class ShuffleBlock(ReluBlock):
    """Grouped 1×1, depthwise 3×3 and grouped 1×1 convolutions; channels are shuffled after the first convolution.

    A block of stride 2 concatenates the convolutions' output and the pooled input; a block of stride 1 adds the
    convolutions' output and the input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        added = channels - in_channels if stride == 2 else channels
        inner = added // 4
        # The stem has too few channels to be split into groups.
        self.groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = nn.Conv2d(in_channels, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, added, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(added)

    def before(self, x: Tensor) -> Tensor:
        """Compute the block's map before its last activation."""
        out = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        added: Tensor = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat([added, F.avg_pool2d(x, 3, 2, padding=1)], dim=1)
        return added + x


class ShuffleNetV1(StagedNetwork):
    """A ShuffleNet over images (B, 3, H, W), with four maps."""

    head_name = "linear"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, 240, 4)
        self.layer2 = _stage(240, 480, 8)
        self.layer3 = _stage(480, 960, 4)
        self.embedding_dim = 960
        self.linear = nn.Linear(self.embedding_dim, num_classes)

    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the maps of the stem and of the three stages."""
        stem = activated(self.bn1(self.conv1(images_BCHW)))
        return through_relu_blocks(stem, (self.layer1, self.layer2, self.layer3))


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = ShuffleBlock(in_channels, channels, 2)
    return nn.Sequential(first, *(ShuffleBlock(channels, channels, 1) for _ in range(blocks - 1)))
