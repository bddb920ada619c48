"""What a network says of a sample, by name: the teacher's signals, and what a student is compared with them by.

    logits                      (K,)      raw
    embedding                   (D,)      the pooled feature
    cam-2x2                     (K, 2, 2) class activation maps, pooled to a grid
    attention1-16x16            (256,)    where stage 1 is active, at a resolution
    map2, map2-before           (C, H, W) a stage's map after and before its last activation; 0 is the stem's
    last_map                    (C, H, W) the last of them, after its activation
    map2-before-batch           the same from batch norm in training mode: with other rows beside it, it is another

A student's and a teacher's signal of one name are computed by the same lines. Which resolution both have is the
objective's to choose, and part of the name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from dhkd.stages.models import build_network
from dhkd.stages.models.network import Network, Outputs
from torch import Tensor, nn

Shape = tuple[int, ...]

_NAME = re.compile(
    r"(?P<kind>logits|embedding|last_map|cam(?=-)|attention(?=\d)|map(?=\d))(?P<stage>\d+)?"
    r"(-(?P<height>[1-9]\d*)x(?P<width>[1-9]\d*))?(?P<before>-before)?(?P<batch>-batch)?"
)
# Which parts of a name each kind has: stage, resolution, and whether -before and -batch may follow.
_PARTS = {
    "logits": (False, False, False),
    "embedding": (False, False, False),
    "last_map": (False, False, False),
    "cam": (False, True, False),
    "attention": (True, True, False),
    "map": (True, False, True),
}
EXAMPLES = "logits, embedding, cam-2x2, attention1-16x16, map2, map2-before, last_map"


@dataclass(frozen=True)
class Signal:
    """A signal's name, taken apart; `size` is (height, width)."""

    kind: str
    stage: int | None = None
    size: tuple[int, int] | None = None
    before: bool = False
    batch: bool = False


def parse(name: str) -> Signal:
    """Raises `ConfigError` for what is no signal's name."""
    match = _NAME.fullmatch(name)
    if match:
        stage, height, before, batch = (match[part] for part in ("stage", "height", "before", "batch"))
        if (stage is not None, height is not None, bool(before or batch)) in _allowed(match["kind"]):
            size = (int(height), int(match["width"])) if height else None
            return Signal(match["kind"], int(stage) if stage else None, size, bool(before), bool(batch))
    raise ConfigError(f"signal {name!r}: expected one such as {EXAMPLES}")


def _allowed(kind: str) -> set[tuple[bool, bool, bool]]:
    stage, size, suffix = _PARTS[kind]
    return {(stage, size, False), (stage, size, suffix)}


def cam_name(grid: int) -> str:
    """Class activation maps on `grid` × `grid` positions."""
    return f"cam-{grid}x{grid}"


def attention_name(stage: int, size: tuple[int, int]) -> str:
    """The attention map of a stage at this height and width."""
    return f"attention{stage}-{size[0]}x{size[1]}"


def map_name(stage: int, *, before: bool = False, batch: bool = False) -> str:
    """A stage's map."""
    return f"map{stage}{'-before' * before}{'-batch' * batch}"


def needs_maps(names: Iterable[str]) -> bool:
    """Whether a forward has to keep its stage maps for these signals."""
    return any(parse(name).kind not in ("logits", "embedding") for name in names)


def signals_of_outputs(network: Network, outputs: Outputs, names: Iterable[str]) -> dict[str, Tensor]:
    """The named signals, (B, …) each, of what one forward of `network` gave.

    Raises `ConfigError` where the network has no such stage, or doesn't tell which map it pools.
    """
    return {name: _compute(parse(name), name, network, outputs) for name in names}


def _compute(signal: Signal, name: str, network: Network, outputs: Outputs) -> Tensor:
    if signal.kind == "logits":
        return outputs.logits
    if signal.kind == "embedding":
        return outputs.embedding
    if signal.kind == "cam":
        if outputs.final is None:
            raise ConfigError(f"signal {name}: the network doesn't tell which map it pools, so that it has none")
        assert signal.size is not None
        return class_activation_maps(outputs.final, network.head, signal.size)
    stage = len(outputs.maps) - 1 if signal.kind == "last_map" else signal.stage
    assert stage is not None
    if not 0 <= stage < len(outputs.maps):
        raise ConfigError(f"signal {name}: expected a stage from 0 to {len(outputs.maps) - 1}, got {stage}")
    if signal.kind == "attention":
        assert signal.size is not None
        return attention(outputs.maps[stage].after, signal.size)
    return outputs.maps[stage].before if signal.before else outputs.maps[stage].after


def class_activation_maps(final_BDHW: Tensor, head: nn.Module, size: tuple[int, int]) -> Tensor:
    """Where the evidence for each class lies: the classifier applied at every position, without its bias; (B, K, h, w).

    Pooled to `size`. Where that divides H × W, the mean over the map is logits − bias. Guo et al., "Class Attention
    Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777, section 3.1.
    """
    assert isinstance(head, nn.Linear | nn.Conv2d)
    weight_KD = head.weight.flatten(1)
    # Both are linear, so that pooling may come first: it leaves less to multiply.
    return torch.einsum("bdhw,kd->bkhw", resized(final_BDHW, size), weight_KD)


def attention(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean of the squares over channels at each position, as a vector of length 1: (B, h·w).

    The map is pooled to `size` before. Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv
    1612.03928, equation 2 with p = 2.
    """
    map_BCHW = map_BCHW.to(torch.promote_types(map_BCHW.dtype, torch.float32))  # squares would overflow fp16
    return F.normalize(resized(map_BCHW, size).square().mean(dim=1).flatten(1), dim=1)


def resized(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at another height and width: averaged where it is larger, repeated where it is smaller."""
    if tuple(map_BCHW.shape[2:]) == size:
        return map_BCHW
    return F.adaptive_avg_pool2d(map_BCHW, size)


class Shapes:
    """The shapes of what a network gives of one image, found without computing it."""

    def __init__(self, architecture: str, num_classes: int, image: tuple[int, int]) -> None:
        """`image` is the height and width of what it is shown."""
        self.architecture, self.num_classes, self._image = architecture, num_classes, image

    def of(self, architecture: str) -> "Shapes":
        """Those of another network, shown the same."""
        return Shapes(architecture, self.num_classes, self._image)

    def row(self, name: str) -> Shape:
        """The shape of one sample's signal."""
        outputs = self._outputs if needs_maps([name]) else self._without_maps
        return tuple(_compute(parse(name), name, self._network, outputs).shape[1:])

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self._network.embedding_dim

    @cached_property
    def maps(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of the stem's map and of every stage's; raises `ConfigError` for a network that gives none."""
        found = []
        for stage_map in self._outputs.maps:
            _, channels, height, width = stage_map.after.shape
            found.append((channels, height, width))
        return tuple(found)

    @cached_property
    def _network(self) -> Network:
        if self.architecture.startswith("timm:"):  # some of timm's can't be made without memory
            return build_network(self.architecture, self.num_classes).to("meta").eval()
        with torch.device("meta"):
            return build_network(self.architecture, self.num_classes).eval()

    @cached_property
    def _outputs(self) -> Outputs:
        return self._forward(maps=True)

    @cached_property
    def _without_maps(self) -> Outputs:
        return self._forward(maps=False)

    def _forward(self, *, maps: bool) -> Outputs:
        with torch.no_grad():
            return self._network.outputs(torch.empty(1, 3, *self._image, device="meta"), maps=maps)
