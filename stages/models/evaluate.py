"""Accuracy of a network on a test set, computed by all processes together."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from dhkd.data.progress import progress
from dhkd.data.render import Normalization, Renderer
from dhkd.stages.processes import Processes
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy in percent; `top_N` is the most probable class of each sample, int64 on the CPU."""

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
) -> Accuracy:
    """Compute the accuracy over all images of `renderer`.

    `logits_of` maps float32 images (B, C, H, W) to logits (B, K), with the network in eval mode. The images are split
    into the same batches for any number of processes, so the result doesn't depend on the number of processes.
    """
    labels_N = renderer.images.labels_N
    dealt = torch.split(torch.arange(len(labels_N)), batch_size)[processes.rank :: processes.world_size]
    hits = torch.zeros(2, dtype=torch.int64, device=processes.device)
    top_N = torch.zeros(len(labels_N), dtype=torch.int64, device=processes.device)
    batches = renderer.render((torch.zeros_like(index_B), index_B) for index_B in dealt)
    # Not a bar: networks of several students are evaluated at the same time.
    with progress("evaluating", sum(map(len, dealt)), visible=processes.is_first, bar=False) as advance:
        for index_B, pixels_BCHW in zip(dealt, batches, strict=True):
            labels_B = labels_N[index_B].to(processes.device)
            with processes.autocast():
                logits_BK = logits_of(normalize(pixels_BCHW)).float()
            best_B5 = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
            top_N[index_B.to(processes.device)] = best_B5[:, 0]
            is_label = best_B5 == labels_B[:, None]
            hits += torch.stack([is_label[:, 0].sum(), is_label.sum()])
            advance(len(index_B))
    top1, top5 = processes.sum(hits).tolist()
    top_N = processes.sum(top_N).cpu()
    return Accuracy(100 * top1 / len(labels_N), 100 * top5 / len(labels_N), top_N)
