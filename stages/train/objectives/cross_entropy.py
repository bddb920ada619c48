"""`ce`: plain training on the labels, the objective of teachers and of students alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dhkd.stages.models.student import StudentLogits
from dhkd.stages.train.objectives import losses
from torch import Tensor


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the task head; without options."""

    needs: ClassVar[Mapping[str, float | None]] = {}
    auxiliary: ClassVar[None] = None
    protected: ClassVar[None] = None

    def terms(self, student: StudentLogits, labels_B: Tensor, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`ce` alone; `teacher` may be empty."""
        return {"ce": losses.cross_entropy(student.task, labels_B)}

    def weights(self, epoch: int) -> dict[str, float]:
        """1 in every epoch."""
        return {"ce": 1.0}
