"""The student: a network with its task head and, in training, the modules that the objective adds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch
from dhkd.stages.models.network import Network, Outputs
from dhkd.stages.models.signals import needs_maps, signals_of_outputs
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

AuxiliaryHead = Literal["linear", "nonlinear"]


class StudentOutputs(NamedTuple):
    """Logits (B, K) of the task head and of the head that imitates the teacher, and features (B, …) by name."""

    task: Tensor
    distill: Tensor
    features: Mapping[str, Tensor] = {}  # this shared default is never changed


class Student(nn.Module):
    """A `backbone`, and an `auxiliary` head that computes separate logits from the pooled feature.

    Inference uses only the backbone. `reads` names the student's signals (outputs such as "logits" or "map2") that the
    objective compares. `adapter` maps these signals, {name: (B, …)}, and the `Batch` to further features
    {name: (B, …)}; if `adapter` is None, there are no further features.
    """

    def __init__(
        self,
        backbone: Network,
        auxiliary: nn.Module | None,
        reads: Sequence[str] = (),
        adapter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.auxiliary = auxiliary
        self.adapter = adapter
        self._reads = list(reads)
        if needs_maps(self._reads):
            backbone.prepare_maps()
        self._compiled: Callable[..., Outputs] | None = None
        # Every process computes the same values for these buffers, so DDP needn't broadcast them before each step.
        shared = getattr(adapter, "same_in_every_process", ())
        self._ddp_params_and_buffers_to_ignore = [f"adapter.{name}" for name in shared]

    def forward(self, images_BCHW: Tensor, batch: Batch | None = None) -> StudentOutputs:
        """Compute features and the logits of both heads; without an auxiliary head, both logits are one tensor."""
        forward = self._compiled or self.backbone.outputs
        outputs = forward(images_BCHW, maps=needs_maps(self._reads))
        if outputs.logits is None:
            raise ConfigError("student: expected a network with a classifier, got one that gives features alone")
        distill_BK = outputs.logits if self.auxiliary is None else self.auxiliary(outputs.embedding)
        features = signals_of_outputs(self.backbone, outputs, self._reads)
        if self.adapter is not None:
            features |= self.adapter(features, batch)
        return StudentOutputs(outputs.logits, distill_BK, features)

    def compile_backbone(self) -> None:
        """Let torch.compile compile the backbone at the first batch; parameter names stay the same."""
        self._compiled = torch.compile(self.backbone.outputs, dynamic=False)

    def seed_dropout(self, seed: int) -> None:
        """Seed all `SeededDropout` modules; dropout in foreign networks uses torch's global generator."""
        for generator in self.generators():
            generator.manual_seed(seed)

    def generators(self) -> list[torch.Generator]:
        """Return the generators of all `SeededDropout` modules."""
        device = next(self.parameters()).device
        return [module.generator_on(device) for module in self.modules() if isinstance(module, SeededDropout)]

    def adapter_draws_from_torch(self) -> bool:
        """Return whether the adapter has a layer, such as dropout, that draws from torch's global generator."""
        if self.adapter is None:
            return False
        return any(isinstance(module, _DropoutNd | nn.RReLU) for module in self.adapter.modules())


class SeededDropout(nn.Module):
    """`nn.Dropout` with a separate generator, which is not affected when other threads draw random numbers."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._generator: torch.Generator | None = None

    def forward(self, values: Tensor) -> Tensor:
        """In training, set a share p of the elements to 0 and divide the rest by 1 - p; in eval mode, do nothing."""
        if not self.training:
            return values
        kept = torch.empty_like(values).bernoulli_(1 - self.p, generator=self.generator_on(values.device))
        return values * kept.div_(1 - self.p)

    def generator_on(self, device: torch.device) -> torch.Generator:
        """Return the module's generator; if it is missing or on another device, create a new one first."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        return self._generator


def auxiliary_head(kind: AuxiliaryHead, backbone: Network, num_classes: int, width: int | None = None) -> nn.Module:
    """Build the auxiliary head, from (B, width) to (B, num_classes), whose logits imitate the teacher's.

    If `width` is None, it is the backbone's `embedding_dim`. The head's linear layers are initialised as those of
    `backbone` are. Yang et al., "Dual-Head Knowledge Distillation", arXiv 2411.08937, whose CIFAR-100 runs use
    `nonlinear`.
    """

    def linear(width_in: int, width_out: int) -> nn.Linear:
        layer = nn.Linear(width_in, width_out)
        backbone.start_linear(layer)
        return layer

    width = width or backbone.embedding_dim
    assert width is not None, "where it isn't known before a forward, the caller gives it"
    if kind == "linear":
        return linear(width, num_classes)
    hidden = 200
    return nn.Sequential(
        linear(width, hidden),
        SeededDropout(0.1),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        linear(hidden, num_classes),
    )
