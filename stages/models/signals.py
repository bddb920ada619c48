"""Signals, i.e. the outputs and features of a network for one sample, by name.

    logits                      (K,)      before the softmax
    embedding                   (D,)      the pooled feature
    cam-2x2                     (K, 2, 2) class activation maps, pooled to a 2×2 grid
    attention1-16x16            (256,)    attention map of stage 1, i.e. how active each of 16×16 positions is
    map2, map2-before           (C, H, W) stage 2's map after and before its last activation; map0 is the stem's map
    map2-out                    (C, H, W) stage 2's map as the stage puts it out: the bare sum in a wide ResNet, before
                                          the next batch norm and activation; map2 in all other networks
    attention1-16x16-out        (256,)    the attention map of map1-out
    last_map                    (C, H, W) the last stage's map, after its activation
    map2-before-batch           (C, H, W) map2-before with batch norm in training mode; depends on the rest of the batch

K is the number of classes, D the width of the embedding; a map has C channels and H×W positions. The stem is the layers
before stage 1.

The same code computes the signals of teacher and student. The objective chooses a signal's resolution, which is part of
the signal's name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from dhkd.stages.models import build_network, own_networks
from dhkd.stages.models.architecture import Named, as_architecture
from dhkd.stages.models.network import Network, Outputs
from dhkd.stages.models.on_meta import network_on_meta, outputs_on_meta
from dhkd.stages.models.sound import require_sound
from torch import Tensor, nn

Shape = tuple[int, ...]

_NAME = re.compile(
    r"(?P<kind>logits|embedding|last_map|cam(?=-)|attention(?=\d)|map(?=\d))(?P<stage>\d+)?"
    r"(-(?P<height>[1-9]\d*)x(?P<width>[1-9]\d*))?(?P<side>-before|-out)?(?P<batch>-batch)?"
)


class _Parts(NamedTuple):
    """The parts of a kind's names: every name has a stage and a resolution if these flags are true, else none has.

    A name may end in one of `sides`, and in -batch if that flag is true.
    """

    stage: bool = False
    size: bool = False
    sides: tuple[str, ...] = ()
    batch: bool = False


_PARTS = {
    "logits": _Parts(),
    "embedding": _Parts(),
    "last_map": _Parts(),
    "cam": _Parts(size=True),
    "attention": _Parts(stage=True, size=True, sides=("-out",)),
    "map": _Parts(stage=True, sides=("-before", "-out"), batch=True),
}
EXAMPLES = "logits, embedding, cam-2x2, attention1-16x16, map2, map2-before, map2-out, last_map"


@dataclass(frozen=True)
class Signal:
    """The parts of a signal's name.

    `stage` is None if the name has no stage, and `size`, i.e. (height, width), is None if the name has no resolution.
    `before`, `out` and `batch` tell whether the name has the suffixes -before, -out and -batch.
    """

    kind: str
    stage: int | None = None
    size: tuple[int, int] | None = None
    before: bool = False
    out: bool = False
    batch: bool = False


def parse(name: str) -> Signal:
    """Split a signal's name into its parts. Raises `ConfigError` if no signal has such a name."""
    match = _NAME.fullmatch(name)
    if match:
        stage, height, side, batch = (match[part] for part in ("stage", "height", "side", "batch"))
        parts = _PARTS[match["kind"]]
        has_parts = (stage is not None, height is not None) == (parts.stage, parts.size)
        if has_parts and (side is None or side in parts.sides) and (batch is None or parts.batch):
            size = (int(height), int(match["width"])) if height else None
            number = int(stage) if stage else None
            return Signal(match["kind"], number, size, side == "-before", side == "-out", bool(batch))
    raise ConfigError(f"signal {name!r}: expected one such as {EXAMPLES}")


def cam_name(grid: int) -> str:
    """Return the name of class activation maps on `grid` × `grid` positions."""
    return f"cam-{grid}x{grid}"


def attention_name(stage: int, size: tuple[int, int], *, out: bool = False) -> str:
    """Return the name of a stage's attention map at this height and width, with the suffix -out if that is set."""
    return f"attention{stage}-{size[0]}x{size[1]}{'-out' * out}"


def map_name(stage: int, *, before: bool = False, out: bool = False, batch: bool = False) -> str:
    """Return the name of a stage's map, with the suffixes -before, -out and -batch if these are set."""
    return f"map{stage}{'-before' * before}{'-out' * out}{'-batch' * batch}"


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names of maps by their stages."""
    return sorted(names, key=lambda name: parse(name).stage or 0)


def needs_maps(names: Iterable[str]) -> bool:
    """Return whether these signals need a forward pass that keeps the stages' maps."""
    return any(parse(name).kind not in ("logits", "embedding") for name in names)


def signals_of_outputs(network: Network, outputs: Outputs, names: Iterable[str]) -> dict[str, Tensor]:
    """Compute the named signals, (B, …) each, from the outputs of one forward pass of `network`.

    Raises `ConfigError` if the network lacks a named stage, or if class activation maps are named and it is unknown
    which map the network pools.
    """
    return {name: _compute(parse(name), name, network, outputs) for name in names}


def _compute(signal: Signal, name: str, network: Network, outputs: Outputs) -> Tensor:
    if signal.kind in ("logits", "embedding"):
        return _required(outputs.logits if signal.kind == "logits" else outputs.embedding, name)
    if signal.kind == "cam":
        if outputs.final is None:
            raise ConfigError(f"signal {name}: the network doesn't tell which map it pools, so that it has none")
        assert signal.size is not None
        return class_activation_maps(outputs.final, network.linear_head, signal.size)
    first, last = network.first_stage, network.first_stage + len(outputs.maps) - 1
    stage = last if signal.kind == "last_map" else signal.stage
    assert stage is not None
    if not first <= stage <= last:
        raise ConfigError(f"signal {name}: expected a stage from {first} to {last}, got {stage}")
    stage_map = outputs.maps[stage - first]
    map_BCHW = stage_map.before if signal.before else stage_map.out if signal.out else stage_map.after
    if signal.kind == "attention":
        assert signal.size is not None
        return attention(map_BCHW, signal.size)
    return map_BCHW


def _required(output: Tensor | None, name: str) -> Tensor:
    if output is not None:
        return output
    if name == "logits":
        raise ConfigError("signal logits: expected a network with a classifier, got one that gives features alone")
    raise ConfigError(
        f"signal {name}: expected to find the layer that classifies, whose input it is, found none or several; name it"
        f" with student.head or teacher.head"
    )


def class_activation_maps(final_BDHW: Tensor, head: nn.Linear | nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Compute class activation maps (B, K, h, w): apply the classifier without its bias at every position.

    The maps are pooled to `size`, i.e. (h, w). If h divides H and w divides W, the maps' mean over positions is logits
    − bias. Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777, section
    3.1.
    """
    weight_KD = head.weight.flatten(1)
    # Pooling and classifier are both linear, so they can be swapped; pooling first leaves less to multiply.
    return torch.einsum("bdhw,kd->bkhw", resized(final_BDHW, size), weight_KD)


def attention(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute the mean square over channels at each position, scaled to a vector (B, h·w) of norm 1.

    The map is first pooled to `size`, i.e. (h, w). Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR
    2017, arXiv 1612.03928, equation 2 with p = 2.
    """
    map_BCHW = map_BCHW.to(torch.promote_types(map_BCHW.dtype, torch.float32))  # squares would overflow fp16
    return F.normalize(resized(map_BCHW, size).square().mean(dim=1).flatten(1), dim=1)


def resized(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map to another height and width: average a larger map, repeat the values of a smaller one."""
    if tuple(map_BCHW.shape[2:]) == size:
        return map_BCHW
    return F.adaptive_avg_pool2d(map_BCHW, size)


class Shapes:
    """The shapes of a network's signals for one image, found on the meta device without computing any values."""

    def __init__(self, wanted: Named, num_classes: int, image: tuple[int, int], channels: int = 3) -> None:
        """Store what the shapes depend on; `image` is the height and width of the images."""
        self.wanted, self.num_classes, self.image = as_architecture(wanted), num_classes, image
        self.channels = channels

    def of(self, wanted: Named) -> "Shapes":
        """Return the shapes of another network's signals for the same images."""
        return Shapes(wanted, self.num_classes, self.image, self.channels)

    @property
    def architecture(self) -> str:
        """The network's name."""
        return self.wanted.name

    def row(self, name: str) -> Shape:
        """Return the shape of the signal called `name`, for one sample."""
        if parse(name).kind == "cam":
            self.require_pooled(f"signal {name}")
        outputs = self._outputs if needs_maps([name]) else self._without_maps
        return tuple(_compute(parse(name), name, self._network, outputs).shape[1:])

    def require_runs(self) -> None:
        """Run a network of a user's own once. Raises what it raises, and `ConfigError` for outputs that don't fit."""
        if own_networks(self.architecture):
            _ = self._network

    @property
    def gives_logits(self) -> bool:
        """Whether the network has a classifier."""
        return self._without_maps.logits is not None

    @property
    def bare_sums(self) -> bool:
        """Whether the network's stages end in a sum without an activation, as in wide ResNets."""
        return self._network.bare_sums

    @property
    def embedding_dim(self) -> int:
        """The width D of the embedding. Raises `ConfigError` if the network has none."""
        (width,) = self.row("embedding")
        return width

    @cached_property
    def maps(self) -> Mapping[int, tuple[int, int, int]]:
        """The shape (C, H, W) of each map, by the number of its stage; the stem, if it has a map, is stage 0.

        Raises `ConfigError` for a network without maps.
        """
        shapes = {}
        for stage, stage_map in enumerate(self._outputs.maps, self._network.first_stage):
            _, channels, height, width = stage_map.after.shape
            shapes[stage] = (channels, height, width)
        return shapes

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of the stages that methods compare: those that settings name, or else all but the stem."""
        return self._network.compared_stages or tuple(stage for stage in self.maps if stage > 0)

    @property
    def may_leave_out_stages(self) -> bool:
        """Whether methods may compare the last stages alone, because no setting names them."""
        return self._network.may_leave_out_stages

    @property
    def chooses_stages(self) -> bool:
        """Whether settings or a library name the maps, so that the numbers of stages are only positions in a list."""
        return bool(self._network.map_paths or self._network.compared_stages)

    def map_path(self, name: str) -> str | None:
        """Return the path of the module whose output is the map of the signal `name`; None if the name is enough."""
        signal = parse(name)
        if signal.kind in ("logits", "embedding") or not self._network.map_paths:
            return None
        paths = dict(enumerate(self._network.map_paths, self._network.first_stage))
        return paths.get(max(paths) if signal.stage is None else signal.stage)

    @property
    def device(self) -> str:
        """The device on which the network can be built: meta, if it needs no values, or else the CPU."""
        return "cpu" if "timm:" in self.architecture or own_networks(self.architecture) else "meta"

    @cached_property
    def _network(self) -> Network:
        if own_networks(self.architecture):  # own code may make tensors on the CPU, or look at values
            network = build_network(self.wanted, self.num_classes, self.channels).eval()
            require_sound(network, self.random_images())
            return network
        if self.device == "meta":
            return network_on_meta(self.wanted, self.num_classes, self.channels)
        with torch.device(self.device):  # some networks of timm can't be built on the meta device
            return build_network(self.wanted, self.num_classes, self.channels).to("meta").eval()

    def random_images(self) -> Tensor:
        """Return two images of random values, (2, C, H, W), on the CPU."""
        return torch.rand(2, self.channels, *self.image, generator=torch.Generator().manual_seed(0))

    @cached_property
    def _outputs(self) -> Outputs:
        return self._forward(maps=True)

    @cached_property
    def _without_maps(self) -> Outputs:
        return self._forward(maps=False)

    def _forward(self, *, maps: bool) -> Outputs:
        if self.device == "meta":
            return outputs_on_meta(self.wanted, self.num_classes, self.channels, self.image, maps=maps)
        network, images_BCHW = self._network, self.random_images()
        if not own_networks(self.architecture):
            images_BCHW = images_BCHW.to("meta")
        with torch.no_grad():
            return network.outputs(images_BCHW, maps=maps)

    def require_pooled(self, purpose: str) -> None:
        """Raise `ConfigError` unless the classifier is a linear layer whose input is the mean of a map over positions.

        The message begins with `purpose`. The map is found by a forward pass of two images.
        """
        network = self._network
        if network.pools_last_map:
            return
        try:
            head = network.linear_head
        except ConfigError as error:
            raise ConfigError(f"{purpose}: network {self.architecture}: {error}") from error
        if not self._pools_final:
            widths = ", ".join(f"{channels}×{height}×{width}" for channels, height, width in self.maps.values())
            raise ConfigError(
                f"{purpose}: expected that {self.architecture} classifies the mean over positions of one of its maps"
                f" ({widths}), got a classifier of {head.weight.shape[1]} other features; choose another network, or"
                f" name the map before its pooling last in maps"
            )

    @cached_property
    def _pools_final(self) -> bool:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            outputs = (
                build_network(self.wanted, self.num_classes, self.channels)
                .eval()
                .outputs(self.random_images(), maps=True)
            )
        if outputs.final is None or outputs.embedding is None:
            return False
        return torch.allclose(outputs.final.mean(dim=(2, 3)), outputs.embedding, rtol=1e-3, atol=1e-5)
