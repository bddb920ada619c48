"""Which view a student sees of each sample in each epoch, and in what order: functions of (seed, epoch, index).

Schedules and orders know of blocks, the runs of `block_rows` consecutive indices that a cache is read in, so that a
cache larger than memory can be read block by block.
"""

from collections.abc import Callable

import numpy as np
import torch
from dhkd.data.philox import Domain, below, permutations, raw_rows
from torch import Tensor

# From seed, epoch, num_samples, num_views and block_rows to the view of each sample, int64 (N,).
Schedule = Callable[[int, int, int, int, int], Tensor]


def independent(seed: int, epoch: int, num_samples: int, num_views: int, block_rows: int) -> Tensor:
    """Each sample draws one of the views anew in every epoch: int64 (N,). Needs every view at hand.

    Over an exhaustive cache this is the distribution of online training.
    """
    raw = raw_rows(seed, Domain.SCHEDULE, epoch, 0, num_samples)[:, 0]
    return torch.from_numpy(below(raw, num_views))


def cycle(seed: int, epoch: int, num_samples: int, num_views: int, block_rows: int) -> Tensor:
    """All samples show view `epoch mod num_views`, so a cache is read plane by plane: int64 (N,)."""
    return torch.full((num_samples,), epoch % num_views, dtype=torch.int64)


def block(seed: int, epoch: int, num_samples: int, num_views: int, block_rows: int) -> Tensor:
    """Each block draws one of the views anew in every epoch, for all of its samples: int64 (N,)."""
    raw = raw_rows(seed, Domain.BLOCK_VIEW, epoch, 0, -(-num_samples // block_rows))[:, 0]
    return torch.from_numpy(below(raw, num_views).repeat(block_rows)[:num_samples])


SCHEDULES: dict[str, Schedule] = {"independent": independent, "cycle": cycle, "block": block}


def order_of_epoch(seed: int, epoch: int, num_samples: int) -> Tensor:
    """The samples' order in an epoch, a permutation, int64 (N,)."""
    raw = raw_rows(seed, Domain.ORDER, epoch, 0, num_samples)[:, 0]
    return torch.from_numpy(permutations(raw))


def windowed_order(seed: int, epoch: int, num_samples: int, block_rows: int, window: int) -> Tensor:
    """An order for reading in blocks, int64 (N,): blocks shuffled, then the samples of each window of blocks.

    A window is as many whole blocks as `window` samples hold, at least one. A permutation of all samples; how far it is
    from a full shuffle depends on how well blocks mix classes.
    """
    num_blocks = -(-num_samples // block_rows)
    block_order = permutations(raw_rows(seed, Domain.BLOCK_ORDER, epoch, 0, num_blocks)[:, 0])
    window_of_block = np.empty(num_blocks, dtype=np.int64)
    window_of_block[block_order] = np.arange(num_blocks) // max(1, window // block_rows)
    raw = raw_rows(seed, Domain.ORDER, epoch, 0, num_samples)[:, 0]
    return torch.from_numpy(np.lexsort((raw, window_of_block.repeat(block_rows)[:num_samples])))
