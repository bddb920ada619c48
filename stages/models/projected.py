"""A student whose last map is projected to the teacher's width and classified by the teacher's classifier (SimKD).

Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv
2203.14001. The student's classifier is dropped, and so are the student's layers between the last stage and the pooling.
"""

import copy

import torch
import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from dhkd.stages.models.network import Network, Outputs, StageMap
from torch import Tensor, nn

PROBE = 32  # pixels; the student's and the teacher's last maps have the same size ratio for images of any size
NARROWING = 2  # the teacher's width, divided by the width of the projector's 3×3 convolution


class ProjectedNetwork(Network):
    """A student's layers (`trunk`), a projector, pooling and the teacher's classifier (`head`).

    The trunk's last map has `channels` channels. The map is averaged over `shrink` × `shrink` positions and projected
    to the input width D of `head`. The projected map (B, D, H, W) is the last of this network's maps.
    """

    head_name = "classifier"

    def __init__(self, trunk: Network, channels: int, head: nn.Linear, shrink: int) -> None:
        super().__init__()
        self.trunk, self._shrink = trunk, shrink
        self.bare_sums = trunk.bare_sums
        self.embedding_dim = width = head.in_features
        middle = width // NARROWING
        self.projector = nn.Sequential(
            *_convolution(channels, middle, 1), *_convolution(middle, middle, 3), *_convolution(middle, width, 1)
        )
        self.classifier = head

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Return the outputs for images (B, 3, H, W), including the stage maps if `maps` is set.

        `maps` changes neither the other outputs nor batch-norm statistics.
        """
        trunk_maps = self.trunk.outputs(images_BCHW, maps=True).maps
        last_BCHW = trunk_maps[-1].after
        if self._shrink > 1:
            last_BCHW = F.avg_pool2d(last_BCHW, self._shrink)
        final_BDHW: Tensor = self.projector(last_BCHW)
        embedding_BD = final_BDHW.mean(dim=(2, 3))
        stage_maps = (*trunk_maps[:-1], StageMap(final_BDHW, final_BDHW, final_BDHW)) if maps else ()
        return Outputs(self.classifier(embedding_BD), embedding_BD, stage_maps, final_BDHW)

    def start_linear(self, layer: nn.Linear) -> None:
        """Initialise a linear layer as the published code of the trunk does."""
        self.trunk.start_linear(layer)

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """Return, for the map of the stem and of every stage, the last batch norm that runs before that map.

        The batch norms are found by a forward pass of these images, whose pixel values don't matter.
        """
        last = self.projector[-2]
        assert isinstance(last, nn.BatchNorm2d)
        return [*self.trunk.batch_norms(images_BCHW)[:-1], last]


def projected_network(student: Network, teacher: Network) -> ProjectedNetwork:
    """Build one network from `student`, a projector and a frozen copy of `teacher`'s classifier.

    `student` is changed in place. Raises `ConfigError` for a teacher that has layers other than pooling between the
    last stage and the classifier.
    """
    if teacher.tail_names or not isinstance(teacher.head, nn.Linear):
        raise ConfigError(
            "simkd: expected a teacher whose last stage is pooled and classified; this one has more layers"
        )
    _, channels, student_height, _ = _last_shape(student)
    _, width, teacher_height, _ = _last_shape(teacher)
    assert width == teacher.embedding_dim
    for path in (student.head_name, *student.tail_names):
        student.set_submodule(path, nn.Identity())
    head = copy.deepcopy(teacher.head).requires_grad_(False)
    return ProjectedNetwork(student, channels, head, max(1, student_height // teacher_height))


def _last_shape(network: Network) -> torch.Size:
    on_meta = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad():
        return on_meta.outputs(torch.empty(1, 3, PROBE, PROBE, device="meta"), maps=True).maps[-1].after.shape


def _convolution(channels: int, out: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, size, padding=size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
