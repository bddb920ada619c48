"""The objective `cat-kd`: the student imitates the teacher's class activation maps.

Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.network import Network
from dhkd.stages.models.signals import cam_name
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_at_least, require_weights
from torch import Tensor, nn

PUBLISHED_WEIGHT, PUBLISHED_CLASSES = 15.0, 100  # for resnet32x4 → resnet8x4 on CIFAR-100


def cam_loss(student_BKHW: Tensor, teacher_BKHW: Tensor, *, normalize: bool) -> Tensor:
    """Compute the mean squared difference of class activation maps.

    If `normalize` is true, the map of each sample and class is first scaled to length 1. Guo et al., equation 4.
    """
    student, teacher = losses.widened(student_BKHW).flatten(2), losses.widened(teacher_BKHW).flatten(2)
    if normalize:
        student, teacher = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
    return F.mse_loss(student, teacher)


@dataclass(frozen=True)
class CATKD(Objective):
    """ce_weight · CE + cam_weight · the mean squared difference of class activation maps, pooled to `grid` × `grid`.

    The published values of cam_weight, grid and normalize differ between teacher–student pairs; the defaults are the
    values for resnet32x4 → resnet8x4, which were found for 100 classes. The loss is a mean over classes; so the fewer
    there are, the harder it pulls at each class's map, and with ten classes the published weight diverges. Therefore,
    if cam_weight is None, the term `cam` is multiplied by classes / 100 where there are fewer than 100, and weighs 15.
    A cam_weight that is given is used as it is.

    The authors classify by a 1×1 convolution without bias before the pooling. That equals a linear classifier whose
    bias stays 0 and whose weights start as a convolution's. With `bias`, the classifier keeps its bias and its own
    start.
    """

    ce_weight: float = 1.0
    cam_weight: float | None = None
    grid: int = 2
    normalize: bool = False
    bias: bool = False

    of_logits = False

    def __post_init__(self) -> None:
        require_weights("cat-kd", ce_weight=self.ce_weight, cam_weight=self._weight)
        require_at_least("cat-kd", 1, grid=self.grid)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's class activation maps."""
        return {cam_name(self.grid): None}

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the student's class activation maps."""
        return [cam_name(self.grid)]

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 without `bias`; in the first definition every classifier kept its bias and its own start."""
        return {} if self.bias else {"cat-kd": 2}

    def start(self, network: Network, setting: Setting) -> None:
        """Start the classifier as a convolution without bias."""
        head = network.head
        if self.bias or not isinstance(head, nn.Linear) or not head.weight.requires_grad:  # SimKD's is the teacher's
            return
        if network.fan_out_start:
            nn.init.kaiming_normal_(head.weight, mode="fan_out", nonlinearity="relu")
        if head.bias is not None:
            nn.init.zeros_(head.bias).requires_grad_(False)

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `cam`."""
        name = cam_name(self.grid)
        loss = cam_loss(student.features[name], teacher[name], normalize=self.normalize)
        if self.cam_weight is None:
            loss = loss * min(1.0, student.task.shape[1] / PUBLISHED_CLASSES)
        return {"ce": losses.task_loss(student.task, labels), "cam": loss}

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "cam": self._weight}

    @property
    def _weight(self) -> float:
        return PUBLISHED_WEIGHT if self.cam_weight is None else self.cam_weight
