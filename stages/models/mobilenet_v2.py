"""The half-wide MobileNetV2 for small images, with the published CIFAR-100 checkpoints' parameter names.

Sandler et al., 2018, table 2, with half the channels, expansion 6, and no stride in the second group of blocks.
"""

from collections.abc import Iterator
from types import MappingProxyType

from dhkd.stages.models.network import (
    SECOND_HEADS,
    StagedNetwork,
    StageMap,
    activated,
    start_convolutions,
    start_linear_small,
)
from torch import Tensor, nn

STEM = 16
# For each group of blocks: expansion (a block's inner channels, divided by its input channels), output channels, number
# of blocks, and the stride of the group's first block.
GROUPS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
STAGE_ENDS = (1, 2, 4, 6)  # the last group at each resolution; groups are counted from 0


class InvertedResidual(nn.Module):
    """A 1×1 convolution that widens, a depthwise 3×3 convolution, and a 1×1 convolution without activation."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.has_shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's map, without a last activation."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(StagedNetwork):
    """A MobileNetV2 over images (B, 3, H, W), with five maps; only the stem ends with an activation."""

    head_name = "classifier"
    tail_names = ("conv2",)
    published_names = MappingProxyType({"classifier.0.": "classifier.", **SECOND_HEADS})

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, STEM, 3, 2, padding=1, bias=False), nn.BatchNorm2d(STEM))
        self.blocks = nn.ModuleList()
        in_channels = STEM
        for expansion, channels, blocks, stride in GROUPS:
            first = InvertedResidual(in_channels, channels, expansion, stride)
            rest = (InvertedResidual(channels, channels, expansion, 1) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            in_channels = channels
        self.embedding_dim = 1280
        self.conv2 = nn.Sequential(
            nn.Conv2d(in_channels, self.embedding_dim, 1, bias=False), nn.BatchNorm2d(self.embedding_dim), nn.ReLU()
        )
        self.classifier = nn.Linear(self.embedding_dim, num_classes)
        start_convolutions(self)
        self.start_linear(self.classifier)

    def start_linear(self, layer: nn.Linear) -> None:
        """Draw the weights from N(0, 0.01²) and set the bias to 0."""
        start_linear_small(layer)

    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the maps of the stem and of the last group of blocks at each resolution."""
        stem = activated(self.conv1(images_BCHW))
        yield stem
        x = stem.after
        for number, group in enumerate(self.blocks):
            x = group(x)
            if number in STAGE_ENDS:
                yield StageMap(x, x, x)

    def final_map(self, last_BCHW: Tensor) -> Tensor:
        """Compute the feature map before pooling, by a last 1×1 convolution."""
        out: Tensor = self.conv2(last_BCHW)
        return out
