"""Holds out a part of a split for testing, class by class.

The choice is a pure function of (labels, fraction, seed): it depends on no machine, process or version of a library.
"""

from fractions import Fraction

import numpy as np
import torch
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import Images
from numpy.typing import NDArray
from torch import Tensor

SAMPLES, CLASSES = 0, 1  # planes of the draws
VAL = "val"  # the name of a held-out part, in place of "test"


def parted(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Split a set in two: return what is left of it, and the held-out part; both keep the set's order.

    The first part's split gets a name with the fraction and the seed, so that caches of other parts are refused. Raises
    `ConfigError` if nothing would be held out, or if fewer than two samples would be left.
    """
    is_held_N = held_out(images.labels_N, len(images), fraction, seed)
    held = int(is_held_N.sum())
    if held == 0 or len(images) - held < 2:
        raise ConfigError(
            f"data.val_fraction: expected a part of at least 1 and at most {len(images) - 2:,} of the"
            f" {len(images):,} samples of {images.name}, got {fraction:g}, which holds out {held:,}, since each class"
            f" keeps a sample; choose another fraction"
        )
    left = images.subset(torch.nonzero(~is_held_N)[:, 0]).named(f"{images.split} without {fraction:g}, seed {seed}")
    return left, images.subset(torch.nonzero(is_held_N)[:, 0]).named(VAL)


def held_out(labels_N: Tensor | None, num_samples: int, fraction: float, seed: int) -> Tensor:
    """Return which samples are held out, bool (N,); images without labels all count as one class.

    The samples of each class are put into a drawn order. Of n samples, the first fraction · n are held out, rounded up
    or down so that the rounding errors of all classes cancel out. Each class keeps at least one sample.
    """
    label_N = np.zeros(num_samples, dtype=np.int64) if labels_N is None else labels_N.numpy()
    draws_N = raw_rows(seed, Domain.HELD_OUT, SAMPLES, 0, num_samples)[:, 0]
    by_class_N = np.lexsort((draws_N, label_N))  # a stable sort: samples by class, and by draw within a class
    sizes_K = np.bincount(label_N)
    starts_K = np.cumsum(sizes_K) - sizes_K
    is_held_N = torch.zeros(num_samples, dtype=torch.bool)
    for label, count in enumerate(_counts(sizes_K, fraction, seed).tolist()):
        is_held_N[torch.from_numpy(by_class_N[starts_K[label] : starts_K[label] + count])] = True
    return is_held_N


def _counts(sizes_K: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """Return how many samples of each class are held out.

    The classes are taken in a drawn order, so that the numbers of classes don't decide which are rounded up. After
    each class, the number held out so far is the rounded fraction of the samples so far, unless a class would lose its
    last sample.
    """
    exact = Fraction(repr(fraction))  # 0.1 means exactly a tenth, which no float equals
    order_K = permutations(raw_rows(seed, Domain.HELD_OUT, CLASSES, 0, len(sizes_K))[:, 0])
    ends = [0, *np.cumsum(sizes_K[order_K]).tolist()]
    rounded = np.array([int(exact * end + Fraction(1, 2)) for end in ends])
    counts_K = np.zeros_like(sizes_K)
    counts_K[order_K] = np.minimum(np.diff(rounded), np.maximum(sizes_K[order_K] - 1, 0))
    return counts_K
