"""What every network offers out of one forward: logits, the pooled feature behind them and, on request, stage maps."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class StageMap(NamedTuple):
    """A stage's map before and after its last activation, (B, C, H, W) each; the same tensor twice without one."""

    before: Tensor
    after: Tensor


class Outputs(NamedTuple):
    """What one forward gives: `logits` (B, K) and the `embedding` (B, embedding_dim) that the classifier makes them of.

    `maps` are the stem's and every stage's, in order, where they were asked for, else none. `final` (B, embedding_dim,
    H, W) is the map whose mean over positions is the embedding; None where the network doesn't tell, or wasn't asked.
    """

    logits: Tensor
    embedding: Tensor
    maps: tuple[StageMap, ...]
    final: Tensor | None


class Network(nn.Module, ABC):
    """A classification network; `embedding_dim` is the pooled feature's width.

    `published_names` leads from the start of a name in published files to what stands there in ours, None where such
    an entry has no place here.
    """

    embedding_dim: int
    published_names: Mapping[str, str | None] = MappingProxyType({})

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The classifier."""

    @abstractmethod
    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Everything of one forward over images (B, 3, H, W); `maps` changes no other output and no statistics."""

    @abstractmethod
    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """The last batch norm of each of the maps, found by a forward over any images."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W)."""
        return self.outputs(images_BCHW).logits


class StagedNetwork(Network):
    """A stem and stages one after the other, pooling, and a linear classifier under the name `head_name`.

    `tail_names` are the modules between the last stage and the pooling.
    """

    head_name: ClassVar[str]
    tail_names: ClassVar[tuple[str, ...]] = ()

    @property
    def head(self) -> nn.Module:
        """The linear classifier."""
        return self.get_submodule(self.head_name)

    @abstractmethod
    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """The stem's map and every stage's, each computed from the one before when it is asked for."""

    def final_map(self, last_BCHW: Tensor) -> Tensor:
        """The map (B, embedding_dim, H, W) that is pooled, of the last stage's."""
        return last_BCHW

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Everything of one forward over images (B, 3, H, W); `maps` changes no other output and no statistics."""
        kept: list[StageMap] = []
        for stage_map in self.stages(images_BCHW):
            if maps:
                kept.append(stage_map)
        final_BDHW = self.final_map(stage_map.after)
        embedding_BD = final_BDHW.mean(dim=(2, 3))
        return Outputs(self.head(embedding_BD), embedding_BD, tuple(kept), final_BDHW)

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """The last batch norm of each of the maps, found by a forward over any images."""
        with batch_norms_called(self) as called:
            return [called[-1] for _ in self.stages(images_BCHW)]


@contextlib.contextmanager
def batch_norms_called(network: nn.Module) -> Iterator[list[nn.BatchNorm2d]]:
    """A list that grows by each batch norm that a forward of the network calls."""
    called: list[nn.BatchNorm2d] = []

    def remember(module: nn.Module, *_: object) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        called.append(module)

    handles = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


class ReluBlock(nn.Module, ABC):
    """A block whose last step is a ReLU."""

    @abstractmethod
    def before(self, x: Tensor) -> Tensor:
        """The block's map before its last activation."""

    def forward(self, x: Tensor) -> Tensor:
        """The block's map after its last activation."""
        return F.relu(self.before(x))


def activated(before: Tensor) -> StageMap:
    """A map and its ReLU."""
    return StageMap(before, F.relu(before))


def through_relu_blocks(stem: StageMap, stages: Iterable[nn.Module]) -> Iterator[StageMap]:
    """The stem's map and those of the stages that follow it, each an `nn.Sequential` of `ReluBlock`."""
    yield stem
    x = stem.after
    for stage in stages:
        *blocks, last = stage.children()
        for block in blocks:
            x = block(x)
        assert isinstance(last, ReluBlock)
        stage_map = activated(last.before(x))
        yield stage_map
        x = stage_map.after


def start_convolutions(network: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2 / fan out) (He et al., 2015), as most published networks do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module has that are or were trained."""
    return sum(parameter.numel() for parameter in module.parameters())
