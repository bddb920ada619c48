"""The objective `fitnet`: a regressor turns one of the student's maps into an imitation of one of the teacher's maps.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550.
Cross-entropy and the hint loss, which compares map and imitation, are minimised together, as in later comparisons; the
paper minimises the hint loss first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.signals import map_name, resized
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_at_least, require_weights
from torch import Tensor, nn

HINT = "fitnet"


class Regressor(nn.Module):
    """A 1×1 convolution, batch norm and ReLU, applied to the student's map at the teacher's resolution."""

    def __init__(self, name: str, student: tuple[int, int, int], teacher: tuple[int, int, int]) -> None:
        super().__init__()
        self._name, self._size = name, teacher[1:]
        self.layers = nn.Sequential(nn.Conv2d(student[0], teacher[0], 1), nn.BatchNorm2d(teacher[0]), nn.ReLU())

    def forward(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute the imitation, in the shape of the teacher's map."""
        return {HINT: self.layers(resized(features[self._name], self._size))}


@dataclass(frozen=True)
class FitNet(Objective):
    """ce_weight · CE + hint_weight · the mean squared difference of the teacher's map and its imitation.

    The imitated map and the student's map are from stage `hint_stage`; stage 0 is the stem.
    """

    ce_weight: float = 1.0
    hint_weight: float = 100.0
    hint_stage: int = 2

    of_logits = False

    def __post_init__(self) -> None:
        require_weights("fitnet", ce_weight=self.ce_weight, hint_weight=self.hint_weight)
        require_at_least("fitnet", 0, hint_stage=self.hint_stage)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's map."""
        return {map_name(self.hint_stage): None}

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the student's map."""
        return [map_name(self.hint_stage)]

    def adapter(self, setting: Setting) -> nn.Module:
        """Build the regressor."""
        name = map_name(self.hint_stage)
        student, teacher = (_map_shape(shapes.row(name)) for shapes in (setting.student, setting.teacher))
        return Regressor(name, student, teacher)

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `hint`."""
        return {
            "ce": losses.cross_entropy(student.task, labels),
            "hint": F.mse_loss(losses.widened(student.features[HINT]), teacher[map_name(self.hint_stage)]),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "hint": self.hint_weight}


def _map_shape(row: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = row
    return channels, height, width
