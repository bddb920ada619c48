"""Which view a student sees of each sample in each epoch, as a function of (seed, epoch, index).

A view is one augmentation draw of the whole data set.
"""

from collections.abc import Callable

import torch
from dhkd.data.draws.philox import Domain, below, raw_rows
from torch import Tensor

# Takes seed, epoch, num_samples, num_views and block_rows; returns the view of each sample, int64 (N,).
Schedule = Callable[[int, int, int, int, int], Tensor]


def independent(seed: int, epoch: int, num_samples: int, num_views: int, block_rows: int) -> Tensor:
    """Draw a view for each sample, anew in every epoch: int64 (N,).

    The teacher's signals (outputs such as logits) for all views have to be in memory. If a cache holds every view of a
    recipe, students see views with the same distribution as in online training.
    """
    raw = raw_rows(seed, Domain.SCHEDULE, epoch, 0, num_samples)[:, 0]
    return torch.from_numpy(below(raw, num_views))


def cycle(seed: int, epoch: int, num_samples: int, num_views: int, block_rows: int) -> Tensor:
    """Return view `epoch mod num_views` for all samples, int64 (N,), so that a cache is read view by view."""
    return torch.full((num_samples,), epoch % num_views, dtype=torch.int64)


def block(seed: int, epoch: int, num_samples: int, num_views: int, block_rows: int) -> Tensor:
    """Draw a view for each block, a run of `block_rows` samples, anew in every epoch: int64 (N,)."""
    raw = raw_rows(seed, Domain.BLOCK_VIEW, epoch, 0, -(-num_samples // block_rows))[:, 0]
    return torch.from_numpy(below(raw, num_views).repeat(block_rows)[:num_samples])


SCHEDULES: dict[str, Schedule] = {"independent": independent, "cycle": cycle, "block": block}
