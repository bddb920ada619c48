"""The objective `dist`: correlation of student and teacher probabilities over the classes and over the samples.

Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_temperature, require_weights
from torch import Tensor


def correlation_distance(first_RC: Tensor, second_RC: Tensor) -> Tensor:
    """Compute 1 − Pearson's correlation of each row with the same row of the other matrix, averaged over rows.

    The correlation of a constant row counts as 0. The result is between 0 and 2. Scaling a row by a positive factor or
    shifting it does not change the result. Huang et al., equations 7 and 8.
    """
    first_RC, second_RC = _variation(losses.widened(first_RC)), _variation(losses.widened(second_RC))
    return 1 - (first_RC * second_RC).sum(dim=1).mean()


def _variation(x_RC: Tensor) -> Tensor:
    """Centre each row at 0 and scale the row to length 1; a constant row becomes zeros, without a gradient."""
    centred_RC = x_RC - x_RC.mean(dim=1, keepdim=True)
    # Rounding may leave small values in a constant row, and scaling would turn them into a meaningless direction.
    rounding_R1 = 8 * torch.finfo(x_RC.dtype).eps * x_RC.abs().amax(dim=1, keepdim=True)
    varies_R1 = centred_RC.abs().amax(dim=1, keepdim=True) > rounding_R1
    return F.normalize(torch.where(varies_R1, centred_RC, 0.0), dim=1)


@dataclass(frozen=True)
class DIST(Objective):
    """ce_weight · CE + inter_weight · inter + intra_weight · intra, all on the task head.

    Both `inter` and `intra` compare student with teacher probabilities: `inter` correlates the probabilities of each
    sample over the classes; `intra` correlates the probabilities of each class over the joint batch of all processes.
    The probabilities are computed at `temperature`, and both terms are multiplied by temperature².
    """

    temperature: float = 4.0
    ce_weight: float = 1.0
    inter_weight: float = 2.0
    intra_weight: float = 2.0

    couples_rows = True

    def __post_init__(self) -> None:
        require_temperature("dist", self.temperature)
        require_weights(
            "dist", ce_weight=self.ce_weight, inter_weight=self.inter_weight, intra_weight=self.intra_weight
        )

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's probabilities."""
        return {"logits": self.temperature}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce`, `inter` and `intra`."""
        student_BK, teacher_BK = (
            F.softmax(losses.widened(logits) / self.temperature, dim=1) for logits in (student.task, teacher["logits"])
        )
        return {
            "ce": losses.task_loss(student.task, labels),
            "inter": self.temperature**2 * correlation_distance(student_BK, teacher_BK),
            "intra": self.temperature**2 * correlation_distance(student_BK.T, teacher_BK.T),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "inter": self.inter_weight, "intra": self.intra_weight}
