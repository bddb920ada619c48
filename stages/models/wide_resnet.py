"""Wide ResNets for small images, with the published CIFAR-100 checkpoints' parameter names.

Zagoruyko and Komodakis, 2016: depth 6n + 4, n blocks a stage, batch norm and ReLU before each convolution, no dropout.
A stage therefore ends with a sum, and the activation of that sum is the first activation of the next block. The batch
norm before that activation runs once; the activation's output is both the stage's map and the next block's input.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from dhkd.stages.models.checkpointing import checkpoint_method, keep_buffers_in_backward
from dhkd.stages.models.network import StagedNetwork, StageMap, start_convolutions
from torch import Tensor, nn


class PreActivationBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def residual(self, x: Tensor, activated_x: Tensor) -> Tensor:
        """Compute the block's output from the input `x`; `activated_x` is `x` after batch norm and ReLU."""
        # If the shape changes, the published networks take the shortcut after the activation.
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(activated_x)
        summed: Tensor = shortcut + self.conv2(F.relu(self.bn2(self.conv1(activated_x))))
        return summed

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output, the sum of convolutions and shortcut, which has no last activation."""
        return self.residual(x, F.relu(self.bn1(x)))


class Stage(nn.Module):
    """A stage whose blocks have the published parameter names, which start with `layer`."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1)))


class WideResNet(StagedNetwork):
    """A wide ResNet of `depth` layers over images (B, 3, H, W), with four maps.

    The three stages have 16, 32 and 64 times `width` channels.
    """

    head_name = "fc"
    bare_sums = True

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        assert rest == 0, f"depth {depth} is not 6n + 4"
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * width, blocks, stride=1)
        self.block2 = Stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = Stage(32 * width, 64 * width, blocks, stride=2)
        self.embedding_dim = 64 * width
        self.bn1 = nn.BatchNorm2d(self.embedding_dim)
        self.fc = nn.Linear(self.embedding_dim, num_classes)
        start_convolutions(self)
        self.start_linear(self.fc)

    def start_linear(self, layer: nn.Linear) -> None:
        """Set the bias to 0."""
        nn.init.zeros_(layer.bias)

    def checkpoint_activations(self) -> None:
        """Let a training step keep the activations between blocks alone, and compute the others again."""
        for stage in (self.block1, self.block2, self.block3):
            first, *blocks = stage.layer.children()
            checkpoint_method(first, "residual")  # the loop over stages calls its first batch norm
            for block in blocks:
                checkpoint_method(block)
        keep_buffers_in_backward(self)

    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the maps of the stem and of the three stages: before and after the activation that follows, and bare.

        The bare map is the sum (for the stem, the convolution) that goes into the next batch norm.
        """
        x = self.conv1(images_BCHW)
        for stage in (self.block1, self.block2, self.block3):
            first, *blocks = stage.layer.children()
            assert isinstance(first, PreActivationBlock)
            stage_map = _followed(first.bn1, x)
            yield stage_map
            x = first.residual(x, stage_map.after)
            for block in blocks:
                x = block(x)
        yield _followed(self.bn1, x)


def _followed(batch_norm: nn.Module, bare_BCHW: Tensor) -> StageMap:
    """Apply the batch norm and the activation that follow a stage, and return its map on all sides."""
    before: Tensor = batch_norm(bare_BCHW)
    return StageMap(before, F.relu(before), bare_BCHW)
