"""The objectives `kd`, classical distillation on one head, and `mse`, regression of the raw logits.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_temperature, require_weights
from torch import Tensor


@dataclass(frozen=True)
class KD(Objective):
    """ce_weight · CE + kd_weight · `losses.kd`, both on the task head; the defaults are the usual values for CIFAR-100.

    With `standardize`, the logits of both networks are standardised first (`losses.standardized`).
    """

    temperature: float = 4.0
    ce_weight: float = 0.1
    kd_weight: float = 0.9
    standardize: bool = False

    def __post_init__(self) -> None:
        require_temperature("kd", self.temperature)
        require_weights("kd", ce_weight=self.ce_weight, kd_weight=self.kd_weight)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's probabilities, or its raw logits if they are to be standardised."""
        return {"logits": None if self.standardize else self.temperature}

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 with `standardize`; the first definition divided by the population standard deviation."""
        return {"kd": 2} if self.standardize else {}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `kd`."""
        prepared = losses.standardized if self.standardize else losses.widened
        return {
            "ce": losses.task_loss(student.task, labels),
            "kd": losses.kd(prepared(student.task), prepared(teacher["logits"]), self.temperature),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "kd": self.kd_weight}


@dataclass(frozen=True)
class LogitMSE(Objective):
    """ce_weight · CE + mse_weight · the mean squared error of the raw logits, both on the task head."""

    ce_weight: float = 0.1
    mse_weight: float = 0.9

    def __post_init__(self) -> None:
        require_weights("mse", ce_weight=self.ce_weight, mse_weight=self.mse_weight)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's raw logits."""
        return {"logits": None}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `mse`."""
        return {
            "ce": losses.task_loss(student.task, labels),
            "mse": losses.logit_mse(student.task, teacher["logits"]),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "mse": self.mse_weight}
