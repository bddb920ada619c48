"""The outputs that every network gives in one forward pass: logits, embedding and, on request, feature maps.

The embedding is the pooled feature that the classifier gets. A *stage* is a group of consecutive layers, the *stem* is
the layers before the first stage, and a *map* is the feature map of the stem or of a stage. Shapes are given for B
images, K classes and maps of C channels and H×W positions.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from dhkd.stages.models.architecture import AUTO, Architecture
from dhkd.stages.models.checkpointing import blocks_of, checkpoint_method, keep_buffers_in_backward
from torch import Tensor, nn

# Published students may also hold the auxiliary head of their training, under one of these names. It is left out,
# because networks are used without it.
SECOND_HEADS: Mapping[str, str | None] = MappingProxyType(dict.fromkeys(("fc2.", "linear2.", "classifier2.")))


class StageMap(NamedTuple):
    """A stage's map before and after its last activation, and as the stage puts it `out`, (B, C, H, W) each.

    If the stage doesn't end with an activation, `before` and `after` are the same tensor. `out` is the map that
    published comparisons call the stage's: the one `after` the activation, except in networks with `bare_sums`.
    """

    before: Tensor
    after: Tensor
    out: Tensor


class Outputs(NamedTuple):
    """The outputs of one forward pass: `logits` (B, K), and the `embedding` (B, D) before the classifier.

    `logits` is None for a network without a classifier; `embedding` is None if the classifier is unknown. `maps` holds
    the map of the stem and of every stage, in order; it is empty unless maps were requested. `final` (B, D, H, W) is
    the map whose mean over positions is the embedding; it is None if that map is unknown.
    """

    logits: Tensor | None
    embedding: Tensor | None
    maps: tuple[StageMap, ...]
    final: Tensor | None


class Network(nn.Module, ABC):
    """A classification network; `embedding_dim` is the width of the pooled feature, or None if it is unknown.

    `head_name` is the path of the classifier, None if there is none or it is unknown, and `tail_names` are the paths of
    the layers between the last stage and the pooling. `published_names` maps prefixes of parameter names in published
    files to our prefixes; tensors whose prefix is mapped to None are left out.
    """

    embedding_dim: int | None
    head_name: str | None
    tail_names: tuple[str, ...] = ()
    published_names: Mapping[str, str | None] = SECOND_HEADS
    # Whether stages end in plain sums, which the batch norm and activation of the next layers follow. Then a map `out`
    # is such a sum.
    bare_sums: bool = False
    # Whether a loss may leave parameters without a gradient, such as those of layers that the forward pass leaves out.
    may_leave_parameters_out: bool = False
    # Whether the published code draws the weights of all convolutions from N(0, 2 / fan out); else they are torch's.
    fan_out_start: bool = False
    # The stage number of the first map: 0 if the stem has a map, else 1.
    first_stage: int = 0
    # The numbers of the stages that methods compare; None stands for all but the stem.
    compared_stages: tuple[int, ...] | None = None
    # The paths of the modules whose outputs are the maps, if settings or a library name them.
    map_paths: tuple[str, ...] = ()
    # Whether the classifier's input is known to be the mean of the last map over its positions, after `tail_names`.
    pools_last_map: bool = True
    # Whether methods may leave out the first stages, so that as many remain as the other network has.
    may_leave_out_stages: bool = False

    @property
    def head(self) -> nn.Module:
        """The classifier. Raises `ConfigError` if there is none or it is unknown."""
        if self.head_name is None:
            raise ConfigError("expected a classifier, found none; name it with student.head or teacher.head")
        return self.get_submodule(self.head_name)

    @property
    def linear_head(self) -> nn.Linear | nn.Conv2d:
        """The classifier, whose weights apply to each position of a map. Raises `ConfigError` if it isn't linear."""
        head = self.head
        if not isinstance(head, nn.Linear | nn.Conv2d):
            raise ConfigError(f"expected a linear classifier, got a {type(head).__name__} ({self.head_name})")
        return head

    def prepare_maps(self) -> None:  # most have nothing to prepare
        """Prepare the network for outputs with maps; this changes no values."""

    def checkpoint_activations(self) -> None:
        """Let a training step keep fewer activations and compute the others again in the backward pass.

        Outputs, gradients and buffers stay the same. Raises `ConfigError` for a network that can't.
        """
        raise ConfigError(f"checkpointing: expected a network that can, got a {type(self).__name__}; leave it out")

    def drop_head(self) -> None:
        """Remove the classifier, and the layers between the last map and the classifier."""
        for path in (self.head_name, *self.tail_names):
            assert path is not None
            self.set_submodule(path, nn.Identity())

    @abstractmethod
    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Return the outputs for images (B, 3, H, W), including the stage maps if `maps` is set.

        `maps` changes neither the other outputs nor batch-norm statistics.
        """

    @abstractmethod
    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """Return, for the map of the stem and of every stage, the last batch norm that runs before that map.

        The batch norms are found by a forward pass of these images, whose pixel values don't matter.
        """

    def start_linear(self, layer: nn.Linear) -> None:  # most networks keep torch's values
        """Initialise a linear layer as the published code of this network initialises all its linear layers."""

    def logits_of(self, images_BCHW: Tensor) -> Tensor:
        """Compute the logits as `forward` does, by operations of torch alone, so that they can be traced.

        A network whose `outputs` does more than that overrides this.
        """
        return self(images_BCHW)  # type: ignore[no-any-return]  # torch's calls are untyped

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute the logits (B, K) of images (B, 3, H, W)."""
        logits_BK = self.outputs(images_BCHW).logits
        if logits_BK is None:
            raise ConfigError("expected a network with a classifier, got one that gives features alone")
        return logits_BK


class StagedNetwork(Network):
    """A network of a stem and consecutive stages, then pooling and a linear classifier."""

    @abstractmethod
    def stages(self, images_BCHW: Tensor) -> Iterator[StageMap]:
        """Yield the map of the stem and of every stage, each computed only when the iterator reaches it."""

    def final_map(self, last_BCHW: Tensor) -> Tensor:
        """Compute, from the last stage's map, the feature map (B, embedding_dim, H, W) before pooling."""
        return last_BCHW

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Return the outputs for images (B, 3, H, W), including the stage maps if `maps` is set.

        `maps` changes neither the other outputs nor batch-norm statistics.
        """
        stage_maps: list[StageMap] = []
        for stage_map in self.stages(images_BCHW):
            if maps:
                stage_maps.append(stage_map)
        final_BDHW = self.final_map(stage_map.after)
        embedding_BD = final_BDHW.mean(dim=(2, 3))
        return Outputs(self.head(embedding_BD), embedding_BD, tuple(stage_maps), final_BDHW)

    def checkpoint_activations(self) -> None:
        """Let a training step keep the activations between blocks alone, and compute the others again."""
        for block in blocks_of(self):
            # The last block of a stage is not called, since its map before the activation is wanted as well.
            checkpoint_method(block, "before" if isinstance(block, ReluBlock) else "forward")
        keep_buffers_in_backward(self)

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """Return, for the map of the stem and of every stage, the last batch norm that runs before that map.

        The batch norms are found by a forward pass of these images, whose pixel values don't matter.
        """
        with batch_norms_called(self) as called:
            return [called[-1] for _ in self.stages(images_BCHW)]


@contextlib.contextmanager
def batch_norms_called(network: nn.Module) -> Iterator[list[nn.BatchNorm2d]]:
    """Record, in the list that the `with` statement gets, each batch norm that the network's forward passes call."""
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
    """A block whose last activation is a ReLU."""

    @abstractmethod
    def before(self, x: Tensor) -> Tensor:
        """Compute the block's map before its last activation."""

    def activate(self, before_BCHW: Tensor) -> Tensor:
        """Compute the block's map after its last activation from the map before it."""
        return F.relu(before_BCHW)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's map after its last activation."""
        return self.activate(self.before(x))


def activated(before: Tensor) -> StageMap:
    """Apply a ReLU to a map and return the map before and after it."""
    after = F.relu(before)
    return StageMap(before, after, after)


def through_relu_blocks(stem: StageMap, stages: Iterable[nn.Module]) -> Iterator[StageMap]:
    """Yield the stem's map, then the map of each of `stages`, which are `nn.Sequential`s of `ReluBlock`s."""
    yield stem
    x = stem.after
    for stage in stages:
        *blocks, last = stage.children()
        for block in blocks:
            x = block(x)
        assert isinstance(last, ReluBlock)
        before = last.before(x)
        x = last.activate(before)
        yield StageMap(before, x, x)


def start_convolutions(network: Network) -> None:
    """Draw every convolution's weights from N(0, 2 / fan out) (He et al., 2015), as most published networks do."""
    network.fan_out_start = True
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def start_linear_small(layer: nn.Linear) -> None:
    """Draw a linear layer's weights from N(0, 0.01²) and set its bias to 0."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)


def as_wanted(network: Network, wanted: Architecture) -> Network:
    """Apply the maps that `wanted` names to one of our networks, check the classifier it names, and return the network.

    Raises `ConfigError` if `wanted` names another classifier than the network's, or anything but stages in order.
    """
    if wanted.maps is not None:
        network.compared_stages = _stages_named(wanted)
    if wanted.head is not None and wanted.head != network.head_name:
        raise ConfigError(
            f"network {wanted.name}: head: expected {network.head_name}, got {wanted.head!r}; leave it out"
        )
    return network


def _stages_named(wanted: Architecture) -> tuple[int, ...] | None:
    """Return the numbers of the stages that `wanted.maps` names stem, stage1, stage2, …; None for auto."""
    if wanted.maps == AUTO:
        return None
    stages = []
    for name in wanted.maps or ():
        number = "0" if name == "stem" else name.removeprefix("stage")
        if not (number.isascii() and number.isdigit() and len(number) < 3 and name in ("stem", f"stage{number}")):
            raise ConfigError(f"network {wanted.name}: maps: expected stem, stage1, stage2, …, got {name!r}")
        stages.append(int(number))
    if sorted(set(stages)) != stages:
        raise ConfigError(f"network {wanted.name}: maps: expected rising stages, got {', '.join(wanted.maps or ())}")
    return tuple(stages)


def input_channels(network: nn.Module) -> int | None:
    """Return the number of channels that the first convolution takes; None for a network without convolutions."""
    return next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), None)


def with_input_channels(network: Network, channels: int, name: str) -> Network:
    """Change the first convolution from three input channels to one, and return the network, which `name` names.

    The kernel is the sum over the three channels. So the network computes for grey images what it computed for the same
    images repeated in three channels. Raises `ConfigError` if the first convolution can't be changed in this way.
    """
    if channels == 3 or input_channels(network) == channels:
        return network
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if channels != 1 or first is None or first.in_channels != 3 or first.groups != 1:
        found = "no convolution" if first is None else f"one of {first.in_channels} channels"
        raise ConfigError(
            f"network {name}: expected a first convolution of 3 channels, to change it to {channels}, found {found};"
            f" choose another network, or give its input 3 channels with teacher.channels or student.channels"
        )
    first.in_channels = channels
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
    for module in network.modules():
        if hasattr(module, "transform_input"):  # torchvision's Inception would convert three colours
            module.transform_input = False  # type: ignore[assignment]  # a plain attribute
    return network


def count_parameters(module: nn.Module) -> int:
    """Count a module's parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in module.parameters())
