"""The objective `ofd`: the student imitates the teacher's maps before activation, clipped at a negative margin.

Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.network import Network, input_channels
from dhkd.stages.models.signals import in_order, map_name, parse, resized
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_weights
from torch import Tensor, nn

FEATURE, MARGIN = "ofd", "ofd-margin"
NEVER_NEGATIVE = 0.001  # if the share of a channel's negative responses is smaller, their mean is meaningless


def partial_l2(student_BCHW: Tensor, teacher_BCHW: Tensor, margin_C: Tensor) -> Tensor:
    """Compute the squared differences of s and max(t, margin), summed over C, H and W and averaged over the batch.

    s and t are the values of the student's and the teacher's map. Positions with s ≤ max(t, margin) ≤ 0 add nothing.
    `margin_C` is below 0. Heo et al., equations 2 and 4.
    """
    student, teacher = losses.widened(student_BCHW), losses.widened(teacher_BCHW)
    target = torch.maximum(teacher, margin_C.view(1, -1, 1, 1))
    counts = (student > target) | (target > 0)
    return ((student - target).square() * counts).flatten(1).sum(dim=1).mean()


def negative_mean(batch_norm: nn.BatchNorm2d) -> Tensor:
    """Compute each channel's mean negative response E[x | x < 0], (C,), assuming normally distributed responses x.

    With the batch norm's shift μ and scale σ, the mean is μ − σ·φ(μ/σ) / Φ(−μ/σ), or −3σ if hardly any response is
    negative; φ and Φ are the density and the distribution function of the standard normal distribution. Heo et al.,
    equation 3.
    """
    mean, deviation = batch_norm.bias.detach().double(), batch_norm.weight.detach().double().abs().clamp(min=1e-30)
    share = torch.special.ndtr(-mean / deviation)
    density = torch.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
    margin = torch.where(share > NEVER_NEGATIVE, mean - deviation * density / share.clamp(min=1e-30), -3 * deviation)
    return margin.float()


class Connectors(nn.Module):
    """For each stage, a 1×1 convolution and batch norm, which bring the student's map to the teacher's width."""

    def __init__(
        self,
        stages: Sequence[int],
        student: Sequence[int],
        teacher: Sequence[int],
        margins: Sequence[Tensor],
    ) -> None:
        """Build a layer for each student stage in `stages`; `student` and `teacher` are the channels of each pair."""
        super().__init__()
        self._stages = list(stages)
        self.layers = nn.ModuleDict()
        for stage, narrow, wide, margin in zip(stages, student, teacher, margins, strict=True):
            convolution = nn.Conv2d(narrow, wide, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            self.layers[str(stage)] = nn.Sequential(convolution, nn.BatchNorm2d(wide))
            self.register_buffer(f"margin{stage}", margin)

    def forward(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute each stage's imitation, of the student's resolution. Return imitations, and margins (B, C)."""
        imitations = {}
        for stage in self._stages:
            student = features[map_name(stage, before=True)]
            imitations[f"{FEATURE}{stage}"] = self.layers[str(stage)](student)
            imitations[f"{MARGIN}{stage}"] = self.get_buffer(f"margin{stage}").expand(len(student), -1)
        return imitations


@dataclass(frozen=True)
class OFD(Objective):
    """ce_weight · CE + ofd_weight · the weighted sum of `partial_l2` over the stages.

    If the maps of a stage differ in size, the teacher's is averaged to the student's size. Each stage weighs half as
    much as the next stage; the last stage has weight 1. With `teacher_batch_norm` "train", as
    in the authors' code, the teacher's batch norm uses the statistics of each batch; each process normalises its rows
    separately. With "eval", the batch norm uses running statistics.
    """

    ce_weight: float = 1.0
    ofd_weight: float = 1e-3
    teacher_batch_norm: Literal["train", "eval"] = "train"

    of_logits = False
    takes_of_teacher = "batch norm"

    def __post_init__(self) -> None:
        require_weights("ofd", ce_weight=self.ce_weight, ofd_weight=self.ofd_weight)

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's map before each stage's last activation."""
        return {self._signal(stage): None for _, stage in setting.stages("ofd")}

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the student's map before each stage's last activation."""
        return [map_name(stage, before=True) for stage, _ in setting.stages("ofd")]

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 if maps differ in size; the first definition resized the student's to the teacher's size."""
        student, teacher = setting.student.maps, setting.teacher.maps
        pairs = setting.stages("ofd")
        return {"ofd": 2} if any(student[one][1:] != teacher[other][1:] for one, other in pairs) else {}

    def adapter(self, setting: Setting) -> nn.Module:
        """Build the connectors, with margins computed from the teacher's batch norms.

        Raises `ConfigError` for a teacher whose maps don't come from one batch norm each, such as a ShuffleNetV2.
        """
        assert setting.teacher_network is not None
        pairs = setting.stages("ofd")
        batch_norms = _batch_norms(setting.teacher_network, [stage for _, stage in pairs], setting.teacher.image)
        for (_, stage), batch_norm in zip(pairs, batch_norms, strict=True):
            channels = setting.teacher.maps[stage][0]
            if batch_norm.num_features != channels or not batch_norm.affine:
                raise ConfigError(
                    f"objective 'ofd': the margins of stage {stage} of {setting.teacher.architecture} follow from the"
                    f" batch norm before its activation: expected {channels} channels, got {batch_norm.num_features};"
                    f" choose another teacher or objective"
                )
        stages = [stage for stage, _ in pairs]
        student, teacher = (
            [shapes.maps[pair[side]][0] for pair in pairs]
            for side, shapes in enumerate((setting.student, setting.teacher))
        )
        return Connectors(stages, student, teacher, [negative_mean(n) for n in batch_norms])

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` and `ofd`."""
        margins = {name.removeprefix(MARGIN): m for name, m in student.features.items() if name.startswith(MARGIN)}
        total = student.task.new_zeros(())
        batch = self.teacher_batch_norm == "train"
        targets = in_order(name for name in teacher if parse(name).before and parse(name).batch == batch)
        pairs = zip(margins.items(), targets, strict=True)
        for position, ((stage, margin_BC), name) in enumerate(pairs):
            imitation = student.features[f"{FEATURE}{stage}"]
            _, _, height, width = imitation.shape
            target = resized(teacher[name], (height, width))
            total = total + partial_l2(imitation, target, margin_BC[0]) / 2 ** (len(margins) - position - 1)
        return {"ce": losses.task_loss(student.task, labels), "ofd": total}

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "ofd": self.ofd_weight}

    def _signal(self, stage: int) -> str:
        return map_name(stage, before=True, batch=self.teacher_batch_norm == "train")


def _batch_norms(teacher: Network, stages: Sequence[int], image: tuple[int, int]) -> list[nn.BatchNorm2d]:
    weight = next(teacher.parameters())
    with torch.no_grad():
        zeros = torch.zeros(1, input_channels(teacher) or 3, *image, dtype=weight.dtype, device=weight.device)
        batch_norms = teacher.batch_norms(zeros)
    return [batch_norms[stage - teacher.first_stage] for stage in stages]
