"""Which view a student sees of each sample in each epoch, and in what order: functions of (seed, epoch, index)."""

from collections.abc import Callable

import torch
from dhkd.data.philox import Domain, below, permutations, raw_rows
from torch import Tensor


def independent(seed: int, epoch: int, num_samples: int, num_views: int) -> Tensor:
    """Each sample draws one of the views anew in every epoch: int64 (N,). Needs every view at hand.

    Over an exhaustive cache this is the distribution of online training.
    """
    raw = raw_rows(seed, Domain.SCHEDULE, epoch, 0, num_samples)[:, 0]
    return torch.from_numpy(below(raw, num_views))


def cycle(seed: int, epoch: int, num_samples: int, num_views: int) -> Tensor:
    """All samples show view `epoch mod num_views`, so a cache is read plane by plane: int64 (N,)."""
    return torch.full((num_samples,), epoch % num_views, dtype=torch.int64)


SCHEDULES: dict[str, Callable[[int, int, int, int], Tensor]] = {"independent": independent, "cycle": cycle}


def order_of_epoch(seed: int, epoch: int, num_samples: int) -> Tensor:
    """The samples' order in an epoch, a permutation, int64 (N,)."""
    raw = raw_rows(seed, Domain.ORDER, epoch, 0, num_samples)[:, 0]
    return torch.from_numpy(permutations(raw))
