"""Draws for any keys (view, index) at once, on the keys' device: the numbers of `philox.raw_rows`, without its order.

A training batch asks for keys in any order, so `raw_rows`, which needs one call for each of them, would be slow. Here
Philox itself is computed with tensors, or on a CPU with arrays of NumPy. Torch has no unsigned 64-bit arithmetic, but
sums, products and exclusive ors of int64 have the same bits; only shifts to the right have to be masked.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from dhkd.data.draws.philox import RAW_PER_COUNTER, Domain
from numpy.typing import NDArray
from torch import Tensor

BITS = 32  # of a draw: each 64-bit number of Philox gives two draws, the upper half first
_PER_STEP = 2 * RAW_PER_COUNTER  # draws that one step of the counter gives

Words = TypeVar("Words", Tensor, NDArray[np.int64])


def _signed(word: int) -> int:
    """Return the int64 that has the last 64 bits of a number."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


# Philox4x64: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3.
_ROUNDS = 10
_MULTIPLIERS = (_signed(0xD2E7470EE14C6C93), _signed(0xCA5A826395121157))
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_HALF_MASK = (1 << BITS) - 1


class DrawBlock(NamedTuple):
    """Which draws are asked for: the first `num` of a row of a domain.

    `row` is the length of the whole row, if that is more than `num`. A row doesn't depend on how many of its draws are
    asked for, but rows of different lengths are different.
    """

    domain: Domain
    num: int
    row: int | None = None


def keyed_draws(seed: int, domain: Domain, view_B: Tensor, index_B: Tensor, num: int) -> Tensor:
    """Return `num` draws for each key, integers in [0, 2³²) as int64 (B, num), on the device of the keys.

    For num > 2, row b holds both halves of `raw_rows(seed, domain, view_B[b], index_B[b], …, (num + 1) // 2)`.
    """
    return draws_of_blocks(seed, [DrawBlock(domain, num)], view_B, index_B)[0]


def draws_of_blocks(seed: int, blocks: Sequence[DrawBlock], view_B: Tensor, index_B: Tensor) -> list[Tensor]:
    """Return the draws of several blocks as `keyed_draws` does, int64 (B, num) each, at the cost of about one block."""
    on_cpu = index_B.device.type == "cpu"
    constants = _constants(seed, tuple(blocks), index_B.device)
    if on_cpu:  # NumPy needs a third of the time: batches are small, and its calls are cheaper
        arrays = _draws(view_B.numpy(), index_B.numpy(), [one.numpy() for one in constants], np.stack)
        draws_BD = torch.from_numpy(arrays)
    else:
        draws_BD = _draws(view_B, index_B, constants, torch.stack)
    widths = [len(_columns(block)) * _PER_STEP for block in blocks]
    return [
        part_BD[:, : block.num] for block, part_BD in zip(blocks, torch.split(draws_BD, widths, dim=1), strict=True)
    ]


def _columns(block: DrawBlock) -> list[tuple[int, int, int]]:
    """Return, for each counter that a key needs: the number of counters in a row, its place among them, the domain."""
    stride = -(-(block.row or block.num) // _PER_STEP)
    return [(stride, step, int(block.domain)) for step in range(-(-block.num // _PER_STEP))]


@lru_cache(maxsize=64)
def _constants(seed: int, blocks: tuple[DrawBlock, ...], device: torch.device) -> list[Tensor]:
    """Return the columns of all blocks, as three rows, then the multipliers (2, 1, 1) and keys (rounds, 2, 1, 1)."""
    columns = [column for block in blocks for column in _columns(block)]
    columns_S3 = torch.tensor(columns, dtype=torch.int64, device=device).view(-1, 3)
    multipliers, keys = (torch.tensor(values, device=device) for values in (_MULTIPLIERS, _keys(seed)))
    return [*columns_S3.unbind(1), multipliers[:, None, None], keys[:, :, None, None]]


def _draws(view_B: Words, index_B: Words, constants: list[Words], stack: Callable[[list[Words], int], Words]) -> Words:
    """Return the draws of all columns in turn, (B, 8 · columns)."""
    stride_S, step_S, domain_S, multipliers, keys = constants
    counter_BS = index_B[:, None] * stride_S + step_S
    zeros_BS = counter_BS * 0
    # Numpy's generator adds 1 to the counter first.
    evens = stack([counter_BS + 1, zeros_BS + domain_S], 0)
    odds = stack([zeros_BS + view_B[:, None], zeros_BS], 0)
    evens, odds = _philox(evens, odds, multipliers, keys)
    words = (evens[0], odds[0], evens[1], odds[1])
    halves = [half for word in words for half in (_upper(word), word & _HALF_MASK)]
    return stack(halves, 2).reshape(len(index_B), -1 if len(step_S) else 0)


def below(draws: Tensor, limit: int) -> Tensor:
    """Map draws in [0, 2³²) to integers in [0, limit); `limit` is at most 2³¹.

    The probabilities differ from uniform by less than limit / 2³².
    """
    assert 0 < limit <= 1 << 31
    return draws * limit >> BITS


def chosen(draws: Tensor, probability: float) -> Tensor:
    """Return which draws in [0, 2³²) are below `probability`, bool, of the same shape."""
    return draws < round(probability * (1 << BITS))


def _philox(evens: Words, odds: Words, multipliers: Words, keys: Words) -> tuple[Words, Words]:
    """Return words 0 and 2 and words 1 and 3 of the result, each (2, …), from those of the counter.

    Both products of a round are computed at once. `multipliers` is (2, 1, 1), `keys` holds one such pair a round.
    """
    for key in keys:
        high, low = _product(evens, multipliers)
        evens, odds = high[[1, 0]] ^ odds ^ key, low[[1, 0]]
    return evens, odds


def _product(factors: Words, multipliers: Words) -> tuple[Words, Words]:
    """Return the upper and the lower 64 bits of 128-bit products, from products of halves of 32 bits."""
    high, low = _upper(multipliers), multipliers & _HALF_MASK
    factors_high, factors_low = _upper(factors), factors & _HALF_MASK
    middle = factors_high * low + _upper(factors_low * low)
    other = factors_low * high + (middle & _HALF_MASK)
    return factors_high * high + _upper(middle) + _upper(other), factors * multipliers


def _upper(words: Words) -> Words:
    return (words >> BITS) & _HALF_MASK


def _keys(seed: int) -> list[list[int]]:
    """Return the pair of keys of each round."""
    return [
        [_signed(start + round_ * step) for start, step in zip((seed, 0), _KEY_STEPS, strict=True)]
        for round_ in range(_ROUNDS)
    ]
