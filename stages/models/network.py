"""What every network gives in one forward: logits, the pooled feature before them and, on request, the stages' maps."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class StageMap(NamedTuple):
    """A stage's map before and after its last activation, (B, C, H, W) each; the same tensor twice if there is none."""

    before: Tensor
    after: Tensor


class Outputs(NamedTuple):
    """What one forward gives: `logits` (B, K), and the `embedding` (B, embedding_dim) that the classifier gets.

    `maps` holds the stem's map and every stage's, in order; it is empty unless they were asked for. `final` (B,
    embedding_dim, H, W) is the map whose mean over positions is the embedding; None if it is unknown.
    """

    logits: Tensor
    embedding: Tensor
    maps: tuple[StageMap, ...]
    final: Tensor | None


class Network(nn.Module, ABC):
    """A classification network; `embedding_dim` is the width of the pooled feature.

    `head_name` is the path of the classifier, `tail_names` are those of the layers between the last stage and the
    pooling. `published_names` maps the start of a name in published files to our own; None: the entry is left out.
    """

    embedding_dim: int
    head_name: str
    tail_names: tuple[str, ...] = ()
    published_names: Mapping[str, str | None] = MappingProxyType({})

    @property
    def head(self) -> nn.Module:
        """The classifier, linear or a convolution."""
        return self.get_submodule(self.head_name)

    @abstractmethod
    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """All outputs of one forward over images (B, 3, H, W); `maps` changes no other output and no statistics."""

    @abstractmethod
    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """The last batch norm before each map, found by a forward over images of any content."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W)."""
        return self.outputs(images_BCHW).logits


class StagedNetwork(Network):
    """A stem and stages one after the other, then pooling and a linear classifier."""

    @abstractmethod
    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """The stem's map and every stage's, each computed from the one before as the iterator reaches it."""

    def final_map(self, last_BCHW: Tensor) -> Tensor:
        """The map (B, embedding_dim, H, W) that is pooled, computed from the last stage's map."""
        return last_BCHW

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """All outputs of one forward over images (B, 3, H, W); `maps` changes no other output and no statistics."""
        stage_maps: list[StageMap] = []
        for stage_map in self.stages(images_BCHW):
            if maps:
                stage_maps.append(stage_map)
        final_BDHW = self.final_map(stage_map.after)
        embedding_BD = final_BDHW.mean(dim=(2, 3))
        return Outputs(self.head(embedding_BD), embedding_BD, tuple(stage_maps), final_BDHW)

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """The last batch norm before each map, found by a forward over images of any content."""
        with batch_norms_called(self) as called:
            return [called[-1] for _ in self.stages(images_BCHW)]


@contextlib.contextmanager
def batch_norms_called(network: nn.Module) -> Iterator[list[nn.BatchNorm2d]]:
    """A list to which a forward of the network appends each batch norm that it calls."""
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
    """The stem's map, then those of `stages`, each an `nn.Sequential` of `ReluBlock`."""
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
    """The number of a module's parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())
