"""The objective `rkd`: the student imitates the distances and angles among the teacher's embeddings of a batch.

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import Objective, Setting, require_weights
from torch import Tensor


def distance_loss(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Compute smooth L1 between the two networks' pairwise distances, averaged over all N² ordered pairs of samples.

    N is the batch size. Each network's distances are divided by their mean over the pairs with a distance above 0. Park
    et al., equations 5 to 7.
    """
    student_BB, teacher_BB = (_distances(losses.widened(embedding)) for embedding in (student_BD, teacher_BE))
    return F.smooth_l1_loss(_over_mean(student_BB), _over_mean(teacher_BB))


def angle_loss(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Compute smooth L1 between the two networks' cosines of angles, averaged over all N³ triples of samples.

    N is the batch size. Each angle lies at one sample, between the directions to two other samples. Rotating, shifting
    or scaling the embeddings does not change the loss. Park et al., equations 8 to 10.
    """
    student_BBB, teacher_BBB = (_cosines(losses.widened(embedding)) for embedding in (student_BD, teacher_BE))
    return F.smooth_l1_loss(student_BBB, teacher_BBB)


def _distances(embedding_BD: Tensor) -> Tensor:
    # Computed from differences, because matrix products would lose digits of small distances. The gradient at 0 is 0.
    return torch.cdist(embedding_BD, embedding_BD, compute_mode="donot_use_mm_for_euclid_dist")


def _over_mean(distance_BB: Tensor) -> Tensor:
    apart = distance_BB > 0
    mean = distance_BB[apart].mean() if bool(apart.any()) else distance_BB.new_tensor(1.0)
    return distance_BB / mean


def _cosines(embedding_BD: Tensor) -> Tensor:
    """Compute, at each sample, the cosines between the directions to any two samples: (B, B, B)."""
    difference_BBD = embedding_BD[None] - embedding_BD[:, None]
    distance_BB1 = _distances(embedding_BD)[..., None]
    direction_BBD = difference_BBD / torch.where(distance_BB1 > 0, distance_BB1, 1.0)
    with torch.autocast(direction_BBD.device.type, enabled=False):  # autocast would compute the products in bf16
        return torch.bmm(direction_BBD, direction_BBD.transpose(1, 2))


@dataclass(frozen=True)
class RKD(Objective):
    """ce_weight · CE + distance_weight · `distance_loss` + angle_weight · `angle_loss`, both of the pooled features.

    Distances and angles are computed over the joint batch of all processes.
    """

    ce_weight: float = 1.0
    distance_weight: float = 25.0
    angle_weight: float = 50.0

    couples_rows = True
    of_logits = False

    def __post_init__(self) -> None:
        require_weights(
            "rkd", ce_weight=self.ce_weight, distance_weight=self.distance_weight, angle_weight=self.angle_weight
        )

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's pooled feature, which may be wider or narrower than the student's pooled feature."""
        return {"embedding": None}

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the student's pooled feature."""
        return ["embedding"]

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce`, `distance` and `angle`."""
        embeddings = student.features["embedding"], teacher["embedding"]
        return {
            "ce": losses.task_loss(student.task, labels),
            "distance": distance_loss(*embeddings),
            "angle": angle_loss(*embeddings),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "distance": self.distance_weight, "angle": self.angle_weight}
