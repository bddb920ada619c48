"""The order in which an epoch visits the samples: a function of (seed, epoch).

An order may know of blocks, the runs of `block_rows` consecutive indices that a cache is read in, so that a cache
larger than memory can be read block by block.
"""

import numpy as np
import torch
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from torch import Tensor


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
