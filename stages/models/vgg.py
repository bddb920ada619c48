"""VGGs with batch norm for small images, with the published CIFAR-100 checkpoints' parameter names.

Simonyan and Zisserman, 2015, table 1, networks A, B, D and E, and a smaller network with one convolution a stage. There
is max pooling between the stages and global average pooling after the last stage; the classifier is one linear layer.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from dhkd.stages.models.network import StagedNetwork, StageMap, activated, start_convolutions, start_linear_small
from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512, 512)  # of the five stages
CONVOLUTIONS = {  # the number of convolutions in each stage, by depth
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
FOURTH_POOLING_FROM = (
    64  # input height in pixels; the published code pools at exactly 64, and smaller images would shrink too far
)


class VGG(StagedNetwork):
    """A VGG of `depth` layers over images (B, 3, H, W), H and W at least 8.

    It has five maps, each taken before the pooling that follows the stage.
    """

    head_name = "classifier"

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        first, second, third, fourth, fifth = CONVOLUTIONS[depth]
        self.block0 = _stage(3, CHANNELS[0], first)
        self.block1 = _stage(CHANNELS[0], CHANNELS[1], second)
        self.block2 = _stage(CHANNELS[1], CHANNELS[2], third)
        self.block3 = _stage(CHANNELS[2], CHANNELS[3], fourth)
        self.block4 = _stage(CHANNELS[3], CHANNELS[4], fifth)
        self.embedding_dim = CHANNELS[4]
        self.classifier = nn.Linear(self.embedding_dim, num_classes)
        start_convolutions(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.start_linear(self.classifier)

    def start_linear(self, layer: nn.Linear) -> None:
        """Draw the weights from N(0, 0.01²) and set the bias to 0."""
        start_linear_small(layer)

    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the maps of the five stages; the first stage stands in for a stem."""
        x = images_BCHW
        for number, stage in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            stage_map = activated(stage(x))
            yield stage_map
            x = stage_map.after
            if number < 3 or (number == 3 and images_BCHW.shape[2] >= FOURTH_POOLING_FROM):
                x = F.max_pool2d(x, 2)


def _stage(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    """Build convolutions with batch norm and ReLU; the caller applies the last ReLU."""
    layers: list[nn.Module] = []
    for number in range(convolutions):
        if number:
            layers.append(nn.ReLU())
        layers += [nn.Conv2d(channels if number else in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers)
