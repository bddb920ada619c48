"""The objective `at`: the student's stages learn to be active at the same positions as the teacher's stages.

Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.signals import attention_name, in_order
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_weights
from torch import Tensor

PREFIX = "attention"


@dataclass(frozen=True)
class AttentionTransfer(Objective):
    """ce_weight · CE + at_weight · the mean squared differences of normalised attention maps, summed over the stages.

    `signals.attention` computes the attention of the maps that the stages put out, at the smaller of the two networks'
    resolutions. The stem is left out.
    """

    ce_weight: float = 1.0
    at_weight: float = 1000.0

    of_logits = False

    def __post_init__(self) -> None:
        require_weights("at", ce_weight=self.ce_weight, at_weight=self.at_weight)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request an attention map of every teacher stage after the stem."""
        return dict.fromkeys(name for _, name in _names(setting))

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the student's attention maps of the same stages and resolutions."""
        return [name for name, _ in _names(setting)]

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 if a network puts out bare sums; the first definition took the maps after the next activation."""
        return {"at": 2} if setting.student.bare_sums or setting.teacher.bare_sums else {}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `at`."""
        pairs = zip(_by_stage(student.features), _by_stage(teacher), strict=True)
        differences = [F.mse_loss(losses.widened(of_student), of_teacher) for of_student, of_teacher in pairs]
        return {"ce": losses.task_loss(student.task, labels), "at": sum(differences[1:], differences[0])}

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "at": self.at_weight}


def _names(setting: Setting) -> list[tuple[str, str]]:
    """Return the names of the student's and the teacher's attention maps, which have the same resolutions."""
    names = []
    for student, teacher in setting.stages("at"):
        _, student_height, student_width = setting.student.maps[student]
        _, teacher_height, teacher_width = setting.teacher.maps[teacher]
        size = min(student_height, teacher_height), min(student_width, teacher_width)
        names.append(
            (
                attention_name(student, size, out=setting.student.bare_sums),
                attention_name(teacher, size, out=setting.teacher.bare_sums),
            )
        )
    return names


def _by_stage(signals: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the attention maps among these signals, in the order of their stages."""
    return [signals[name] for name in in_order(name for name in signals if name.startswith(PREFIX))]
