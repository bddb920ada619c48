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
from dhkd.stages.models.signals import map_name, parse, resized
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_at_least, require_weights
from torch import Tensor, nn

HINT = "fitnet"

Map = tuple[int, int, int]  # channels, height, width


class Regressor(nn.Module):
    """A convolution that brings the student's map to the teacher's shape, batch norm and ReLU.

    The convolution is the one of Tian et al., "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699,
    and of later comparisons: 1×1 for maps of one size; 3×3 of stride 2 if the student's map is twice as large; a
    transposed one, 4×4 of stride 2, if it is half as large; and if it is larger otherwise, without padding, of the size
    that leaves the teacher's. These leave out other smaller maps; here they are repeated to the teacher's size first.
    """

    def __init__(self, name: str, student: Map, teacher: Map) -> None:
        super().__init__()
        self._name, self._size = name, teacher[1:]
        self._repeats, convolution = _convolution(student, teacher)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(teacher[0]), nn.ReLU())

    def forward(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute the imitation, in the shape of the teacher's map."""
        feature = features[self._name]
        return {HINT: self.layers(resized(feature, self._size) if self._repeats else feature)}


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
        """Request the teacher's map, as the stage puts it out."""
        return {self._names(setting)[1]: None}

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the student's map, as the stage puts it out."""
        return [self._names(setting)[0]]

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 if a network puts out bare sums or the maps differ in size.

        The first definition took the maps after the next activation, and averaged or repeated the student's to the
        teacher's size before a 1×1 convolution.
        """
        student, teacher = self._shapes(setting)
        bare = setting.student.bare_sums or setting.teacher.bare_sums
        return {"fitnet": 2} if bare or student[1:] != teacher[1:] else {}

    def adapter(self, setting: Setting) -> nn.Module:
        """Build the regressor."""
        return Regressor(self._names(setting)[0], *self._shapes(setting))

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `hint`."""
        hint = next(value for name, value in teacher.items() if _is_hint(name))
        return {
            "ce": losses.task_loss(student.task, labels),
            "hint": F.mse_loss(losses.widened(student.features[HINT]), hint),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "hint": self.hint_weight}

    def _names(self, setting: Setting) -> tuple[str, str]:
        """Return the names of the student's map and of the teacher's map."""
        student, teacher = setting.pair("fitnet", self.hint_stage)
        return map_name(student, out=setting.student.bare_sums), map_name(teacher, out=setting.teacher.bare_sums)

    def _shapes(self, setting: Setting) -> tuple[Map, Map]:
        student, teacher = self._names(setting)
        return _map_shape(setting.student.row(student)), _map_shape(setting.teacher.row(teacher))


def _is_hint(name: str) -> bool:
    """Return whether a signal is a map that this objective may compare, i.e. not a map before its activation."""
    signal = parse(name)
    return signal.kind == "map" and not signal.before


def _convolution(student: Map, teacher: Map) -> tuple[bool, nn.Module]:
    """Return whether the student's map is repeated first, and the convolution between maps of shapes (C, H, W)."""
    (channels, height, width), (channels_out, height_out, width_out) = student, teacher
    if (height, width) == (2 * height_out, 2 * width_out):
        return False, nn.Conv2d(channels, channels_out, 3, stride=2, padding=1)
    if (2 * height, 2 * width) == (height_out, width_out):
        return False, nn.ConvTranspose2d(channels, channels_out, 4, stride=2, padding=1)
    if height >= height_out and width >= width_out:
        return False, nn.Conv2d(channels, channels_out, (1 + height - height_out, 1 + width - width_out))
    return True, nn.Conv2d(channels, channels_out, 1)


def _map_shape(row: tuple[int, ...]) -> Map:
    channels, height, width = row
    return channels, height, width
