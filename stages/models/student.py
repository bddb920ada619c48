"""The student: a network with its task head and, in training, what its objective puts beside it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from dhkd.data.stream.batches import Batch
from dhkd.stages.models.network import Network, Outputs
from dhkd.stages.models.signals import needs_maps, signals_of_outputs
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

AuxiliaryHead = Literal["linear", "nonlinear"]


class StudentOutputs(NamedTuple):
    """Logits of the task head and of the head that imitates the teacher, (B, K) each, and features, (B, …), by name."""

    task: Tensor
    distill: Tensor
    features: Mapping[str, Tensor] = {}  # never written to


class Student(nn.Module):
    """`backbone` alone is what inference uses; `auxiliary` maps the pooled feature to a second set of logits.

    `reads` names the student's own signals that the objective compares, `adapter` computes more of them from those and
    the batch: {name: (B, …)} and a `Batch` to {name: (B, …)}.
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
        self._compiled: Callable[..., Outputs] | None = None
        # Every process computes these alike; DDP would send them from the first to the others before each step.
        shared = getattr(adapter, "same_in_every_process", ())
        self._ddp_params_and_buffers_to_ignore = [f"adapter.{name}" for name in shared]

    def forward(self, images_BCHW: Tensor, batch: Batch | None = None) -> StudentOutputs:
        """Both heads' logits from one forward, without an auxiliary head the same tensor twice, and the features."""
        outputs = self._compiled or self.backbone.outputs
        out = outputs(images_BCHW, maps=needs_maps(self._reads))
        distill = out.logits if self.auxiliary is None else self.auxiliary(out.embedding)
        features = signals_of_outputs(self.backbone, out, self._reads)
        if self.adapter is not None:
            features |= self.adapter(features, batch)
        return StudentOutputs(out.logits, distill, features)

    def compile_backbone(self) -> None:
        """Train with kernels that torch.compile makes of the backbone at its first batch; weights keep their names."""
        self._compiled = torch.compile(self.backbone.outputs, dynamic=False)

    def seed_dropout(self, seed: int) -> None:
        """Make what our own dropout draws next a function of `seed`; foreign networks' draws from torch's generator."""
        for generator in self.generators():
            generator.manual_seed(seed)

    def generators(self) -> list[torch.Generator]:
        """What our own dropout draws from."""
        device = next(self.parameters()).device
        return [module.generator_on(device) for module in self.modules() if isinstance(module, SeededDropout)]

    def draws_from_torch(self) -> bool:
        """Whether a foreign network's dropout, or stochastic depth, draws from torch's own generator."""
        drawing = (_DropoutNd, nn.RReLU)
        return any(
            isinstance(module, drawing) or type(module).__name__ in ("DropPath", "StochasticDepth")
            for module in self.modules()
        )


class SeededDropout(nn.Module):
    """`nn.Dropout` that draws from a generator of its own, whatever other threads draw meanwhile."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._generator: torch.Generator | None = None

    def forward(self, values: Tensor) -> Tensor:
        """As it is in eval mode; in training a share p of the elements is 0, the others are divided by 1 - p."""
        if not self.training:
            return values
        kept = torch.empty_like(values).bernoulli_(1 - self.p, generator=self.generator_on(values.device))
        return values * kept.div_(1 - self.p)

    def generator_on(self, device: torch.device) -> torch.Generator:
        """Its generator, which lives where it draws."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        return self._generator


def auxiliary_head(kind: AuxiliaryHead, embedding_dim: int, num_classes: int) -> nn.Module:
    """The head for the logit-level loss, (B, embedding_dim) to (B, num_classes).

    Yang et al., "Dual-Head Knowledge Distillation", arXiv 2411.08937; `nonlinear` is the one of its CIFAR-100 runs.
    """
    if kind == "linear":
        return nn.Linear(embedding_dim, num_classes)
    hidden = 200
    return nn.Sequential(
        nn.Linear(embedding_dim, hidden),
        SeededDropout(0.1),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
