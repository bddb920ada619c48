"""The objective `reviewkd`: each stage of the student, fused with the later stages, imitates the teacher's stage.

Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044. The student's feature
maps are taken as each stage puts them out (or, for ImageNet, before the stage's last activation), the teacher's maps
before the stage's last activation. A level is a stage or, as the last level, the pooled feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.signals import in_order, map_name, parse
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import (
    Objective,
    Setting,
    require_at_least,
    require_weights,
    warm_up,
)
from torch import Tensor, nn

PREFIX = "review-"
EMBEDDING = "embedding"
POOLED_TO = (4, 2, 1)  # side lengths of the pooled maps in the pyramid

Level = tuple[int, int, int]  # channels, height, width


def hierarchical_context_loss(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Compute the weighted mean squared difference of two maps and of both maps pooled to 4 × 4, 2 × 2 and 1 × 1.

    Only pooled sizes smaller than the maps are used. Each pooled size weighs half as much as the size before, and the
    weights sum to 1. Chen et al., section 3.4.
    """
    student, teacher = losses.widened(student_BCHW), losses.widened(teacher_BCHW)
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for side in POOLED_TO:
        if side < student.shape[2]:
            weight /= 2
            weights += weight
            pooled = F.adaptive_avg_pool2d(student, side), F.adaptive_avg_pool2d(teacher, side)
            total = total + weight * F.mse_loss(*pooled)
    return total / weights


class Fusion(nn.Module):
    """Attention-based fusion of one level with the fused result of the later levels.

    The last level has no later levels and is not fused. Both inputs of the fusion have `middle` channels. Two attention
    maps, computed from both inputs, weight them at each position.
    """

    def __init__(self, student: Level, teacher: Level, middle: int, *, is_last: bool) -> None:
        super().__init__()
        self._student_size, self._teacher_size = student[1:], teacher[1:]
        self.narrow = nn.Sequential(nn.Conv2d(student[0], middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.attention = None if is_last else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        self.out = nn.Sequential(nn.Conv2d(middle, teacher[0], 3, padding=1, bias=False), nn.BatchNorm2d(teacher[0]))
        for layers in (self.narrow, self.out):
            assert isinstance(layers[0], nn.Conv2d)
            nn.init.kaiming_uniform_(layers[0].weight, a=1)

    def forward(self, feature: Tensor, behind: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the map that imitates the teacher's map at this level, and the fused result.

        `feature` is the student's map at this level. `behind` is the fused result of the later levels; it is None for
        the last level.
        """
        fused: Tensor = self.narrow(feature)
        if self.attention is not None:
            assert behind is not None
            behind = F.interpolate(behind, self._student_size, mode="nearest")
            attention_B2HW = self.attention(torch.cat([fused, behind], dim=1))
            fused = fused * attention_B2HW[:, :1] + behind * attention_B2HW[:, 1:]
        if self._student_size != self._teacher_size:
            fused = F.interpolate(fused, self._teacher_size, mode="nearest")
        return self.out(fused), fused


class Review(nn.Module):
    """The fusions of all levels, from the pooled feature back to the first stage.

    `names` are the student's signals of the levels. The fusions are as wide as the pooled feature, but not wider than
    `widest`.
    """

    def __init__(
        self, names: Sequence[str], student: Sequence[Level], teacher: Sequence[Level], widest: int = 512
    ) -> None:
        super().__init__()
        self._names = list(names)
        middle = min(widest, student[-1][0])
        self.fusions = nn.ModuleList(
            Fusion(student_level, teacher_level, middle, is_last=position == len(names) - 1)
            for position, (student_level, teacher_level) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute, for each level, a map that imitates the teacher's map at that level and has its shape."""
        imitations: dict[str, Tensor] = {}
        behind: Tensor | None = None
        for name, fusion in zip(reversed(self._names), reversed(self.fusions), strict=True):
            feature = features[name]
            out, behind = fusion(feature[:, :, None, None] if name == EMBEDDING else feature, behind)
            imitations[PREFIX + name] = out
        return imitations


@dataclass(frozen=True)
class ReviewKD(Objective):
    """ce_weight · CE + review_weight · the sum of `hierarchical_context_loss` over the levels.

    The published review_weight differs between teacher–student pairs; the default is the value for resnet32x4 →
    resnet8x4. Over the first `warmup_epochs` epochs, review_weight grows linearly to its full value. The published
    ImageNet runs have `student_before_activation`, and for MobileNetV1 `fusion_width` 256.
    """

    ce_weight: float = 1.0
    review_weight: float = 5.0
    warmup_epochs: int = 20
    fusion_width: int = 512
    student_before_activation: bool = False

    of_logits = False

    def __post_init__(self) -> None:
        require_weights("reviewkd", ce_weight=self.ce_weight, review_weight=self.review_weight)
        require_at_least("reviewkd", 0, warmup_epochs=self.warmup_epochs)
        require_at_least("reviewkd", 1, fusion_width=self.fusion_width)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's maps before each stage's last activation, and its pooled feature."""
        return dict.fromkeys([*(map_name(stage, before=True) for _, stage in setting.stages("reviewkd")), EMBEDDING])

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the student's maps and its pooled feature."""
        before = self.student_before_activation
        out = not before and setting.student.bare_sums
        return [*(map_name(stage, before=before, out=out) for stage, _ in setting.stages("reviewkd")), EMBEDDING]

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 if the student puts out bare sums; the first definition took its maps after the next activation."""
        return {"reviewkd": 2} if setting.student.bare_sums and not self.student_before_activation else {}

    def adapter(self, setting: Setting) -> nn.Module:
        """Build the fusions of all levels."""
        student, teacher = (
            [*(shapes.maps[pair[side]] for pair in setting.stages("reviewkd")), (shapes.embedding_dim, 1, 1)]
            for side, shapes in enumerate((setting.student, setting.teacher))
        )
        return Review(self.reads(setting), student, teacher, self.fusion_width)

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `review`."""
        total = student.task.new_zeros(())
        maps = in_order(name.removeprefix(PREFIX) for name in student.features if name.startswith(PREFIX + "map"))
        targets = in_order(name for name in teacher if parse(name).before and not parse(name).batch)
        pooled = teacher[EMBEDDING][:, :, None, None]
        total = total + hierarchical_context_loss(student.features[PREFIX + EMBEDDING], pooled)
        for name, target in zip(reversed(maps), reversed(targets), strict=True):
            total = total + hierarchical_context_loss(student.features[PREFIX + name], teacher[target])
        return {"ce": losses.task_loss(student.task, labels), "review": total}

    def weights(self, epoch: int) -> dict[str, float]:
        """Return review_weight, multiplied by the warm-up factor, and the constant weight of cross-entropy."""
        return {"ce": self.ce_weight, "review": warm_up(epoch, self.warmup_epochs) * self.review_weight}
