"""Accuracy of a network on a test set, shared out over the processes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from dhkd.data.image_set import ImageSet
from dhkd.data.render import Normalization
from dhkd.stages.processes import Processes
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy in percent."""

    top1: float
    top5: float


@torch.no_grad()
def evaluate(
    logits_of: Callable[[Tensor], Tensor],
    images: ImageSet,
    normalize: Normalization,
    *,
    batch_size: int,
    processes: Processes,
) -> Accuracy:
    """Accuracy over all of `images`, unaugmented; `logits_of` maps float32 (B, C, H, W) to (B, K), in eval mode.

    Batches are the same for any number of processes and are dealt by their number, so that the counts are too.
    """
    hits = torch.zeros(2, dtype=torch.int64, device=processes.device)
    for start in range(processes.rank * batch_size, len(images), processes.world_size * batch_size):
        pixels_BCHW = images.images_NCHW[start : start + batch_size].to(processes.device)
        labels_B = images.labels_N[start : start + batch_size].to(processes.device)
        with processes.autocast():
            logits_BK = logits_of(normalize(pixels_BCHW)).float()
        ranked = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices == labels_B[:, None]
        hits += torch.stack([ranked[:, 0].sum(), ranked.sum()])
    top1, top5 = processes.sum(hits).tolist()
    return Accuracy(100 * top1 / len(images), 100 * top5 / len(images))
