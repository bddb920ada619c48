"""The objective `simkd`: the student imitates the teacher's last feature map and reuses the teacher's classifier.

Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv
2203.14001. The network that is trained, evaluated and exported consists of the student, a projector and the
teacher's classifier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.architecture import Architecture, projected
from dhkd.stages.models.network import Network
from dhkd.stages.models.signals import resized
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_weights
from torch import Tensor

MAP = "last_map"


@dataclass(frozen=True)
class SimKD(Objective):
    """ce_weight · CE + map_weight · the mean squared difference of the projected map and the teacher's last map.

    The projector turns the student's last map into the projected map. The larger of the two maps is averaged to the
    resolution of the smaller map.
    """

    ce_weight: float = 0.0
    map_weight: float = 1.0

    of_logits = False
    takes_of_teacher = "classifier"

    def __post_init__(self) -> None:
        require_weights("simkd", ce_weight=self.ce_weight, map_weight=self.map_weight)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's last map."""
        return {MAP: None}

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the projected map, which is the last map of the trained network."""
        return [MAP]

    def architecture(self, setting: Setting) -> Architecture:
        """Return the network that consists of student, projector and the teacher's classifier."""
        setting.teacher.require_pooled("objective 'simkd'")
        return projected(setting.student.wanted, setting.teacher.wanted)

    def start(self, network: Network, setting: Setting) -> None:
        """Copy the teacher's classifier."""
        assert setting.teacher_network is not None
        network.head.load_state_dict(setting.teacher_network.head.state_dict())

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `map`."""
        projected = losses.widened(student.features[MAP])
        _, _, height, width = projected.shape
        return {
            "ce": losses.task_loss(student.task, labels),
            "map": F.mse_loss(projected, resized(teacher[MAP], (height, width))),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "map": self.map_weight}
