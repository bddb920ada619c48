"""`kd`: classical distillation on one head (Hinton, Vinyals, Dean, 2015, arXiv 1503.02531)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dhkd.stages.models.student import StudentLogits
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import require_temperature, require_weights
from torch import Tensor


@dataclass(frozen=True)
class KD:
    """ce_weight · CE + kd_weight · KD of the task head; the defaults are the usual ones of CIFAR-100."""

    temperature: float = 4.0
    ce_weight: float = 0.1
    kd_weight: float = 0.9

    auxiliary: ClassVar[None] = None
    protected: ClassVar[None] = None

    def __post_init__(self) -> None:
        require_temperature("kd", self.temperature)
        require_weights("kd", ce_weight=self.ce_weight, kd_weight=self.kd_weight)

    @property
    def needs(self) -> Mapping[str, float | None]:
        """The teacher's probabilities."""
        return {"logits": self.temperature}

    def terms(self, student: StudentLogits, labels_B: Tensor, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`ce` and `kd`."""
        return {
            "ce": losses.cross_entropy(student.task, labels_B),
            "kd": losses.kd(student.task, teacher["logits"], self.temperature),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """The same in every epoch."""
        return {"ce": self.ce_weight, "kd": self.kd_weight}
