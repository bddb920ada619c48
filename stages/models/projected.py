"""A student whose last map is projected to the teacher's width and classified by the teacher's classifier (SimKD).

Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv
2203.14001. The student's classifier is dropped, and so are the student's layers between the last stage and the pooling.
"""

import copy
from fractions import Fraction

import torch
import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from dhkd.stages.models.network import Network, Outputs, StageMap
from torch import Tensor, nn

# Pixels; the student's and the teacher's last maps have the same size ratio for images of any size. Some networks take
# only images of their own size, or large ones.
PROBES = (32, 64, 224, 299)
NARROWING = 2  # the teacher's width, divided by the width of the projector's 3×3 convolution


class ProjectedNetwork(Network):
    """A student's layers (`trunk`), a projector, pooling and the teacher's classifier (`head`).

    The trunk's last map has `channels` channels. The map is averaged over `shrink` × `shrink` positions and projected
    to the input width D of `head`. The projected map (B, D, H, W) is the last of this network's maps.
    """

    head_name: str = "classifier"

    def __init__(self, trunk: Network, channels: int, head: nn.Linear, shrink: int) -> None:
        super().__init__()
        self.trunk, self._shrink = trunk, shrink
        self.bare_sums, self.first_stage, self.map_paths = trunk.bare_sums, trunk.first_stage, trunk.map_paths
        self.compared_stages, self.may_leave_out_stages = trunk.compared_stages, trunk.may_leave_out_stages
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

    def checkpoint_activations(self) -> None:
        """Let the trunk keep fewer activations in a training step."""
        self.trunk.checkpoint_activations()

    def prepare_maps(self) -> None:
        """Prepare the trunk for outputs with maps; this changes no values."""
        self.trunk.prepare_maps()

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
    head = teacher.head
    if teacher.tail_names or not isinstance(head, nn.Linear):
        raise ConfigError(
            "simkd: expected a teacher whose last stage is pooled and classified; this one has"
            f" {'more layers' if teacher.tail_names else f'a {type(head).__name__} as classifier'}"
        )
    channels, student_share = _last_map(student)
    width, teacher_share = _last_map(teacher)
    if width != head.in_features:
        raise ConfigError(
            f"simkd: expected a teacher whose last map is pooled and classified, got a map of {width} channels and a"
            f" classifier of {head.in_features}; choose another teacher, or its last map with teacher.maps"
        )
    student.drop_head()
    copied = copy.deepcopy(head).requires_grad_(False)
    return ProjectedNetwork(student, channels, copied, max(1, int(student_share / teacher_share)))


def _last_map(network: Network) -> tuple[int, Fraction]:
    """Return the channels of a network's last map, and its height divided by the image's."""
    on_meta = copy.deepcopy(network).to("meta").eval()
    refusals: list[ConfigError] = []
    for pixels in PROBES:
        try:
            with torch.no_grad():
                outputs = on_meta.outputs(torch.empty(1, 3, pixels, pixels, device="meta"), maps=True)
            _, channels, height, _ = outputs.maps[-1].after.shape
            return channels, Fraction(height, pixels)
        except ConfigError as error:
            refusals.append(error)
    raise refusals[0]


def _convolution(channels: int, out: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, size, padding=size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
