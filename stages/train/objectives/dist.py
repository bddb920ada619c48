"""`dist`: how probabilities correlate over the classes and over the samples.

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
    """1 − Pearson's correlation of each row with its counterpart, mean over rows; that of a constant row counts as 0.

    The result is in 0 to 2, and no positive affine map of a row changes it. Huang et al., equations 7 and 8.
    """
    first_RC, second_RC = _variation(losses.widened(first_RC)), _variation(losses.widened(second_RC))
    return 1 - (first_RC * second_RC).sum(dim=1).mean()


def _variation(x_RC: Tensor) -> Tensor:
    """Each row minus its mean, scaled to length 1; a constant row becomes zeros, without a gradient."""
    centred_RC = x_RC - x_RC.mean(dim=1, keepdim=True)
    # Rounding may leave something of a constant row, which would be scaled up to a meaningless direction.
    rounding_R1 = 8 * torch.finfo(x_RC.dtype).eps * x_RC.abs().amax(dim=1, keepdim=True)
    varies_R1 = centred_RC.abs().amax(dim=1, keepdim=True) > rounding_R1
    return F.normalize(torch.where(varies_R1, centred_RC, 0.0), dim=1)


@dataclass(frozen=True)
class DIST(Objective):
    """ce_weight · CE + inter_weight · inter + intra_weight · intra, of the task head.

    `inter` correlates each sample's probabilities over the classes, `intra` each class's over the batch. Both are at
    `temperature` and multiplied by its square. The batch is that of all processes together.
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
        """The teacher's probabilities."""
        return {"logits": self.temperature}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`ce`, `inter` and `intra`."""
        student_BK, teacher_BK = (
            F.softmax(losses.widened(logits) / self.temperature, dim=1) for logits in (student.task, teacher["logits"])
        )
        return {
            "ce": losses.cross_entropy(student.task, labels),
            "inter": self.temperature**2 * correlation_distance(student_BK, teacher_BK),
            "intra": self.temperature**2 * correlation_distance(student_BK.T, teacher_BK.T),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """The same in every epoch."""
        return {"ce": self.ce_weight, "inter": self.inter_weight, "intra": self.intra_weight}
