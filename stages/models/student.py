"""The student: a network with its task head and, in training, perhaps an auxiliary head beside it."""

from typing import Literal, NamedTuple

from dhkd.stages.models.network import Network
from torch import Tensor, nn

AuxiliaryHead = Literal["linear", "nonlinear"]


class StudentLogits(NamedTuple):
    """Logits of the task head and of the head that imitates the teacher, (B, K) each."""

    task: Tensor
    distill: Tensor


class Student(nn.Module):
    """`backbone` alone is what inference uses; `auxiliary` maps the pooled feature to a second set of logits."""

    def __init__(self, backbone: Network, auxiliary: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.auxiliary = auxiliary

    def forward(self, images_BCHW: Tensor) -> StudentLogits:
        """Both heads' logits from one forward; without an auxiliary head the same tensor twice."""
        out = self.backbone.outputs(images_BCHW)
        return StudentLogits(out.logits, out.logits if self.auxiliary is None else self.auxiliary(out.embedding))


def auxiliary_head(kind: AuxiliaryHead, embedding_dim: int, num_classes: int) -> nn.Module:
    """The head for the logit-level loss, (B, embedding_dim) to (B, num_classes).

    Yang et al., "Dual-Head Knowledge Distillation", arXiv 2411.08937; `nonlinear` is the one of its CIFAR-100 runs.
    """
    if kind == "linear":
        return nn.Linear(embedding_dim, num_classes)
    hidden = 200
    return nn.Sequential(
        nn.Linear(embedding_dim, hidden),
        nn.Dropout(0.1),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
