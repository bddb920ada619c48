"""A student whose last map is projected to the teacher's width and classified by the teacher's own classifier.

Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv
2203.14001. The student's own classifier, and what it has between its last stage and its pooling, are gone.
"""

import copy

import torch
import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from dhkd.stages.models.foreign import INNER, ForeignNetwork
from dhkd.stages.models.network import Network, Outputs, StagedNetwork, StageMap
from torch import Tensor, nn

PROBE = 32  # pixels of the image that tells the ratio of the last maps' resolutions, which is the same at any size
NARROWING = 2  # how many times fewer channels than the teacher's the projector has in the middle


class ProjectedNetwork(Network):
    """`trunk`'s last map, averaged over `shrink` × `shrink` positions, a projector, pooling, and a classifier.

    The last of its maps is the projected one, (B, width, H, W).
    """

    def __init__(self, trunk: Network, channels: int, head: nn.Linear, shrink: int) -> None:
        super().__init__()
        self.trunk, self._shrink = trunk, shrink
        self.embedding_dim = width = head.in_features
        middle = width // NARROWING
        self.projector = nn.Sequential(
            *_convolution(channels, middle, 1), *_convolution(middle, middle, 3), *_convolution(middle, width, 1)
        )
        self.classifier = head

    @property
    def head(self) -> nn.Module:
        """The teacher's classifier."""
        return self.classifier

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Everything of one forward over images (B, 3, H, W); `maps` changes no other output and no statistics."""
        before = self.trunk.outputs(images_BCHW, maps=True).maps
        last_BCHW = before[-1].after
        if self._shrink > 1:
            last_BCHW = F.avg_pool2d(last_BCHW, self._shrink)
        final_BDHW: Tensor = self.projector(last_BCHW)
        embedding_BD = final_BDHW.mean(dim=(2, 3))
        kept = (*before[:-1], StageMap(final_BDHW, final_BDHW)) if maps else ()
        return Outputs(self.classifier(embedding_BD), embedding_BD, kept, final_BDHW)

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """The last batch norm of each of the maps, found by a forward over any images."""
        last = self.projector[-2]
        assert isinstance(last, nn.BatchNorm2d)
        return [*self.trunk.batch_norms(images_BCHW)[:-1], last]


def projected_network(student: Network, teacher: Network) -> ProjectedNetwork:
    """`student`, changed in place, before a copy of `teacher`'s classifier, which isn't trained.

    Raises `ConfigError` for a teacher that has more than pooling between its last stage and its classifier.
    """
    if (isinstance(teacher, StagedNetwork) and teacher.tail_names) or not isinstance(teacher.head, nn.Linear):
        raise ConfigError(
            "simkd: expected a teacher whose last stage is pooled and classified; this one has more layers"
        )
    (_, channels, mine, _), (_, width, theirs, _) = _last_shape(student), _last_shape(teacher)
    assert width == teacher.embedding_dim
    if isinstance(student, ForeignNetwork):
        gone = [INNER + student.head_path]
    else:
        assert isinstance(student, StagedNetwork)
        gone = [student.head_name, *student.tail_names]
    for path in gone:
        student.set_submodule(path, nn.Identity())
    head = copy.deepcopy(teacher.head).requires_grad_(False)
    return ProjectedNetwork(student, channels, head, max(1, mine // theirs))


def _last_shape(network: Network) -> torch.Size:
    copied = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad():
        return copied.outputs(torch.empty(1, 3, PROBE, PROBE, device="meta"), maps=True).maps[-1].after.shape


def _convolution(channels: int, out: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, size, padding=size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
