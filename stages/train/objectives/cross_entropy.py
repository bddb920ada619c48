"""The objectives `ce` and `label-smoothing`, which train on the labels alone. Teachers are trained with `ce`."""

from collections.abc import Mapping
from dataclasses import dataclass

from dhkd.data.errors import ConfigError
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective
from torch import Tensor


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy of the task head. This objective has no options."""

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the only term, `ce`; `teacher` may be empty."""
        return {"ce": losses.cross_entropy(student.task, labels)}

    def weights(self, epoch: int) -> dict[str, float]:
        """Return weight 1 in every epoch."""
        return {"ce": 1.0}


@dataclass(frozen=True)
class LabelSmoothing(Objective):
    """Cross-entropy with a share `smoothing` of the target spread over all classes; a teacher-free baseline.

    If it is 0, the share is that of the labels, as in every other objective.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 1:
            raise ConfigError(f"objective 'label-smoothing': smoothing: expected 0 to 1, got {self.smoothing!r}")

    @property
    def label_smoothing(self) -> float:  # type: ignore[override]
        """The share of the target that is spread over all classes."""
        return self.smoothing

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the only term, `ce`, with smoothed labels; `teacher` may be empty."""
        return {"ce": losses.smoothed_cross_entropy(student.task, labels, self.smoothing or labels.smoothing)}

    def weights(self, epoch: int) -> dict[str, float]:
        """Return weight 1 in every epoch."""
        return {"ce": 1.0}
