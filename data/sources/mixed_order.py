"""Chooses the order of samples: the order of the files, unless that is sorted by label.

Every block of a cache, i.e. a run of consecutive samples, must hold mixed classes. People often store samples sorted by
label; these are put in a seeded random order instead, which depends only on how many samples there are.
"""

import logging

import numpy as np
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from numpy.typing import NDArray

log = logging.getLogger("dhkd")

SEED = 0  # of the permutation; constant, so that a data set has the same order for everyone

RUN = 256  # consecutive samples that should hold mixed classes
# A run must hold at least this fraction of the classes that a shuffled run would hold, not counting one class in both.
LEAST_MIXED = 0.5


def mixed_order(where: str, split: str, label_N: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the seeded permutation, and log that, if the split is train and sorted by label; otherwise return None."""
    runs = sorted_runs(label_N) if split == "train" else None
    if runs is None:
        return None
    log.info("%s: samples are sorted by label (%s), so they are numbered in a seeded random order", where, runs)
    return permutation(len(label_N))


def permutation(num_samples: int) -> NDArray[np.int64]:
    """Return the seeded permutation of `num_samples` samples."""
    return permutations(raw_rows(SEED, Domain.FILE_ORDER, 0, 0, num_samples)[:, 0])


def sorted_runs(label_N: NDArray[np.int64]) -> str | None:
    """Describe how few classes consecutive samples hold; return None unless that is far fewer than if shuffled."""
    run = min(RUN, max(2, len(label_N) // 4))
    runs = label_N[: len(label_N) // run * run].reshape(-1, run)
    if len(runs) < 2:
        return None
    distinct = float(np.mean([len(np.unique(labels)) for labels in runs]))
    share_K = np.bincount(label_N) / len(label_N)
    shuffled = float((1 - (1 - share_K) ** run).sum())
    if distinct - 1 < LEAST_MIXED * (shuffled - 1):
        return f"{run} consecutive ones hold {distinct:.1f} classes on average, shuffled ones would hold {shuffled:.1f}"
    return None
