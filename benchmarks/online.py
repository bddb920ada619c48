"""A reference for dhkd's speed: the same training without a cache, as a careful researcher would write it.

Images are transformed one at a time by torchvision in a DataLoader, the teacher runs in every step, and the gradients
are aligned as flat vectors. The script uses dhkd's networks and losses, so that both compute the same losses, but a
separate training loop, data loading and gradient alignment.
"""

from collections.abc import Iterator
from itertools import count

import torch
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.stream.labels import Labels
from dhkd.stages.models import build_network
from dhkd.stages.models.student import auxiliary_head
from dhkd.stages.train.objectives import losses
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

TEMPERATURE = 2.0


class PictureSet(Dataset[tuple[Tensor, int]]):
    """A data set like torchvision's CIFAR classes, which transforms one PIL image at a time."""

    def __init__(self, images: ImageSet) -> None:
        from torchvision import transforms  # importing it takes as long as torch, and some processes don't need it

        self._images_NHWC = images.images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        assert images.labels_N is not None
        self._labels = images.labels_N.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(images.mean, images.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images_NHWC[index])), self._labels[index]


def online(
    images: ImageSet,
    *,
    student: str,
    teacher: str | None,
    aligned: bool = False,
    batch_size: int,
    workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[None]:
    """Train with cross-entropy, and with BinaryKL-Norm if there is a `teacher`; yield after every step.

    With `aligned`, BinaryKL-Norm has a separate head, and the gradients of the two losses are aligned.
    """
    device = device or torch.device("cpu")
    network = build_network(student, images.num_classes).to(device).train()
    head = auxiliary_head("nonlinear", network, images.num_classes).to(device) if aligned else None
    live = build_network(teacher, images.num_classes).to(device).eval() if teacher else None
    parameters = [*network.parameters(), *(head.parameters() if head else ())]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(PictureSet(images), batch_size, shuffle=True, num_workers=workers)
    for _ in count():
        for batch in loader:
            images_BCHW, labels_B = (tensor.to(device) for tensor in batch)
            outputs = network.outputs(images_BCHW)
            assert outputs.logits is not None, "our networks classify"
            kept = losses.cross_entropy(outputs.logits, Labels(labels_B))
            against = None
            if live is not None:
                with torch.no_grad():
                    teacher_BK = live(images_BCHW)
                distill_BK = head(outputs.embedding) if head else outputs.logits
                against = losses.binary_kl_norm(distill_BK, teacher_BK, TEMPERATURE)
            optimizer.zero_grad()
            if against is None:
                torch.autograd.backward(kept)
            elif head is None:
                torch.autograd.backward(kept + against)
            else:
                for parameter, gradient in zip(parameters, aligned_gradients(kept, against, parameters), strict=True):
                    parameter.grad = gradient
            optimizer.step()
            yield


def aligned_gradients(kept: Tensor, against: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Add the gradients of the losses `kept` and `against`.

    If the gradients conflict, the second gradient's component along the first is removed before the addition.
    """
    g1 = torch.cat([g.flatten() for g in _gradient(kept, parameters, retain_graph=True)])
    g2 = torch.cat([g.flatten() for g in _gradient(against, parameters, retain_graph=False)])
    dot = torch.dot(g1, g2)
    if dot < 0:
        g2 = g2 - dot / torch.dot(g1, g1) * g1
    parts = torch.split(g1 + g2, [parameter.numel() for parameter in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]


def _gradient(loss: Tensor, parameters: list[nn.Parameter], *, retain_graph: bool) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
