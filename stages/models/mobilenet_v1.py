"""MobileNetV1 for ImageNet, with the parameter names of the published distilled students.

Howard et al., 2017, table 1. Global average pooling allows images of any size.
"""

from collections.abc import Iterator
from types import MappingProxyType

from dhkd.stages.models.network import SECOND_HEADS, StagedNetwork, StageMap, activated
from torch import Tensor, nn

STEM = 32
# The channels and the stride of each separable convolution after the stem.
SEPARABLE = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *(((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)
STAGE_ENDS = (0, 3, 5, 11, 13)  # numbers of the layers whose maps the published distillation uses; 0 is the stem


class MobileNetV1(StagedNetwork):
    """A MobileNetV1 over images (B, 3, H, W), with five maps."""

    head_name = "fc"
    published_names = MappingProxyType({"classifier.": "fc.", **SECOND_HEADS})

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Sequential(nn.Conv2d(3, STEM, 3, 2, padding=1, bias=False), nn.BatchNorm2d(STEM)))
        in_channels = STEM
        for channels, stride in SEPARABLE:
            self.model.append(_separable(in_channels, channels, stride))
            in_channels = channels
        self.embedding_dim = in_channels
        self.fc = nn.Linear(self.embedding_dim, num_classes)

    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the maps of the stem and of the last layer at each resolution below the stem's."""
        x = images_BCHW
        for number, layer in enumerate(self.model):
            stage_map = activated(layer(x))
            if number in STAGE_ENDS:
                yield stage_map
            x = stage_map.after


def _separable(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """Build a depthwise and a 1×1 convolution; the caller applies the last ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )
