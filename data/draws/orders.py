"""The order in which an epoch visits the samples: a function of (seed, epoch).

A cache larger than memory is read in blocks, runs of `block_rows` consecutive indices. A windowed order keeps the
samples of a block close together.
"""

import numpy as np
import torch
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from torch import Tensor


def order_of_epoch(seed: int, epoch: int, num_samples: int) -> Tensor:
    """Draw the order of an epoch, a permutation of all samples, int64 (N,)."""
    raw = raw_rows(seed, Domain.ORDER, epoch, 0, num_samples)[:, 0]
    return torch.from_numpy(permutations(raw))


def windowed_order(seed: int, epoch: int, num_samples: int, block_rows: int, window: int) -> Tensor:
    """Draw a permutation of all samples, int64 (N,): blocks are shuffled, then the samples in each window of blocks.

    A window holds as many whole blocks as fit into `window` samples, but at least one. The better the blocks mix
    classes, the closer the order is to a full shuffle.
    """
    num_blocks = -(-num_samples // block_rows)
    block_order = permutations(raw_rows(seed, Domain.BLOCK_ORDER, epoch, 0, num_blocks)[:, 0])
    window_of_block = np.empty(num_blocks, dtype=np.int64)
    window_of_block[block_order] = np.arange(num_blocks) // max(1, window // block_rows)
    raw = raw_rows(seed, Domain.ORDER, epoch, 0, num_samples)[:, 0]
    return torch.from_numpy(np.lexsort((raw, window_of_block.repeat(block_rows)[:num_samples])))
