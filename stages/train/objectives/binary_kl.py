"""The objectives `binary-kl` and `binary-kl-norm`: a logit-level loss and cross-entropy on a SINGLE head.

The paper reports that this combination collapses (Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation", KDD
2025, arXiv 2411.08937). The combination serves as a baseline for `dhkd`, which gives each loss a separate head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_temperature, require_weights
from torch import Tensor

LogitLoss = Literal["binary-kl", "binary-kl-norm"]

# Each loss takes (student_BK, teacher_BK, temperature) and returns a scalar. The key also names the loss's term.
LOGIT_LOSSES: dict[LogitLoss, Callable[[Tensor, Tensor, float], Tensor]] = {
    "binary-kl": losses.binary_kl,
    "binary-kl-norm": losses.binary_kl_norm,
}


@dataclass(frozen=True)
class BinaryKL(Objective):
    """ce_weight · CE + alpha · BinaryKL (`losses.binary_kl`), both on the task head."""

    alpha: float = 1.0
    temperature: float = 2.0
    ce_weight: float = 1.0

    loss: ClassVar[LogitLoss] = "binary-kl"

    def __post_init__(self) -> None:
        require_temperature(self.loss, self.temperature)
        require_weights(self.loss, alpha=self.alpha, ce_weight=self.ce_weight)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's raw logits."""
        return {"logits": None}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and the logit-level loss, which is named as in `LOGIT_LOSSES`."""
        return {
            "ce": losses.task_loss(student.task, labels),
            self.loss: LOGIT_LOSSES[self.loss](student.task, teacher["logits"], self.temperature),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, self.loss: self.alpha}


@dataclass(frozen=True)
class BinaryKLNorm(BinaryKL):
    """ce_weight · CE + alpha · BinaryKL-Norm (`losses.binary_kl_norm`), both on the task head."""

    loss: ClassVar[LogitLoss] = "binary-kl-norm"
