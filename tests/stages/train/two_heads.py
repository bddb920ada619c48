"""A network with two heads, a batch and two terms, whose gradients agree or oppose each other."""

import torch
import torch.nn.functional as F
from dhkd.stages.train.gradients import Alignment
from torch import Tensor, nn

WEIGHTS = {"ce": 0.8, "kl": 1.7}
KEEP_CE = Alignment(kept=("ce",))


class TwoHeads(nn.Module):
    """A body, two heads and a parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 6, 3)
        self.pointwise = nn.Conv2d(6, 6, 1)
        self.task = nn.Linear(6, 5)
        self.auxiliary = nn.Linear(6, 5)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        pooled_BD = self.pointwise(F.relu(self.body(images_BCHW))).mean((2, 3))
        return self.task(pooled_BD), self.auxiliary(pooled_BD)


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 6, 6, generator=generator), torch.randint(5, (size,), generator=generator)


def two_terms(model: nn.Module, images_BCHW: Tensor, labels_B: Tensor, *, opposed: bool) -> dict[str, Tensor]:
    """The cross-entropies of both heads; if `opposed`, the auxiliary head is trained to be wrong, against the task."""
    task_BK, auxiliary_BK = model(images_BCHW)
    sign = -1 if opposed else 1
    return {"ce": F.cross_entropy(task_BK, labels_B), "kl": sign * F.cross_entropy(auxiliary_BK, labels_B)}


def agreeing_heads(model: TwoHeads) -> TwoHeads:
    """The model with the same weights in both heads, so that only the terms' signs decide whether they conflict."""
    model.auxiliary.load_state_dict(model.task.state_dict())
    return model


def uneven_batch() -> tuple[Tensor, Tensor]:
    """Eight rows in two halves, so different that projecting each half's gradients is not projecting their mean."""
    images_BCHW, labels_B = batch(8)
    images_BCHW = images_BCHW.double()
    images_BCHW[4:] *= 3
    images_BCHW[4:] += 2
    return images_BCHW, labels_B
