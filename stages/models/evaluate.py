"""Accuracy of a network on a test set, computed by all processes together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from dhkd.data.progress import progress
from dhkd.data.render import Normalization, Renderer
from dhkd.stages.processes import Processes
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy in percent; `top_N` is the most probable class of each sample, int64 on the CPU.

    If predictions are compared with a teacher's classes instead of labels, the figures are the agreement with that
    teacher.
    """

    top1: float
    top5: float
    top_N: Tensor | None = field(default=None, compare=False, repr=False)


@torch.no_grad()
def evaluate(
    logits_of: Callable[[Tensor], Tensor],
    renderer: Renderer,
    normalize: Normalization,
    *,
    batch_size: int,
    processes: Processes,
    classes_N: Tensor | None = None,
) -> Accuracy:
    """Compute the accuracy over all images of `renderer`.

    `logits_of` maps float32 images (B, C, H, W) to logits (B, K), with the network in eval mode. The images are split
    into the same batches for any number of processes, so the result doesn't depend on the number of processes.
    `classes_N`, int64, takes the place of the images' labels, for example a teacher's most probable classes.
    """
    labels_N = renderer.images.labels_N if classes_N is None else classes_N
    assert labels_N is not None, "images without labels are compared with given classes"
    hits = torch.zeros(2, dtype=torch.int64, device=processes.device)
    top_N = torch.zeros(len(labels_N), dtype=torch.int64, device=processes.device)
    for index_B, best_B5 in _predicted(logits_of, renderer, normalize, batch_size, processes):
        top_N[index_B.to(processes.device)] = best_B5[:, 0]
        is_label = best_B5 == labels_N[index_B].to(processes.device)[:, None]
        hits += torch.stack([is_label[:, 0].sum(), is_label.sum()])
    top1, top5 = processes.sum(hits).tolist()
    top_N = processes.sum(top_N).cpu()
    return Accuracy(100 * top1 / len(labels_N), 100 * top5 / len(labels_N), top_N)


@torch.no_grad()
def top_classes(
    logits_of: Callable[[Tensor], Tensor],
    renderer: Renderer,
    normalize: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    processes: Processes,
) -> Tensor:
    """Return the most probable class of every image of `renderer`, int64 (N,) on the CPU; see `evaluate`."""
    top_N = torch.zeros(len(renderer.images), dtype=torch.int64, device=processes.device)
    for index_B, best_B5 in _predicted(logits_of, renderer, normalize, batch_size, processes):
        top_N[index_B.to(processes.device)] = best_B5[:, 0]
    return processes.sum(top_N).cpu()


def _predicted(
    logits_of: Callable[[Tensor], Tensor],
    renderer: Renderer,
    normalize: Callable[[Tensor], Tensor],
    batch_size: int,
    processes: Processes,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices of this process's batches, and for each image the (up to) five most probable classes."""
    num_samples = len(renderer.images)
    dealt = torch.split(torch.arange(num_samples), batch_size)[processes.rank :: processes.world_size]
    batches = renderer.render((torch.zeros_like(index_B), index_B) for index_B in dealt)
    # Not a bar: networks of several students are evaluated at the same time.
    with progress("evaluating", sum(map(len, dealt)), visible=processes.is_first, bar=False) as advance:
        for index_B, pixels_BCHW in zip(dealt, batches, strict=True):
            with processes.autocast():
                logits_BK = logits_of(normalize(pixels_BCHW)).float()
            yield index_B, logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
            advance(len(index_B))
