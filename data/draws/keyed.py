"""Draws for any keys (view, index) at once, on the keys' device: the numbers of `philox.raw_rows`, without its order.

A training batch asks for keys in any order, so `raw_rows`, which needs one call for each of them, would be slow. Here
Philox itself is computed with tensors, or on a CPU with arrays of NumPy. Torch has no unsigned 64-bit arithmetic, but
sums, products and exclusive ors of int64 have the same bits; only shifts to the right have to be masked.
"""

from collections.abc import Sequence
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
    columns = [column for block in blocks for column in _columns(block)]
    if not columns:
        return [index_B.new_empty((len(index_B), 0)) for _ in blocks]
    stride_S, step_S, domain_S = torch.tensor(columns, device=index_B.device).unbind(1)
    counter_BS = index_B[:, None] * stride_S + step_S
    zeros_BS = torch.zeros_like(counter_BS)
    # Numpy's generator adds 1 to the counter first.
    evens = torch.stack([counter_BS + 1, zeros_BS + domain_S])
    odds = torch.stack([zeros_BS + view_B[:, None], zeros_BS])
    multipliers, keys = (torch.tensor(values, device=index_B.device) for values in (_MULTIPLIERS, _keys(seed)))
    arguments = (evens, odds, multipliers[:, None, None], keys[:, :, None, None])
    if evens.device.type == "cpu":  # NumPy needs a third of the time: batches are small, and its calls are cheaper
        even_words, odd_words = (torch.from_numpy(words) for words in _philox(*(one.numpy() for one in arguments)))
    else:
        even_words, odd_words = _philox(*arguments)
    raw_BSR = torch.stack([even_words, odd_words], dim=-1).permute(1, 2, 0, 3)
    halves_BD = torch.stack([_upper(raw_BSR), raw_BSR & _HALF_MASK], dim=-1).flatten(1)
    widths = [len(_columns(block)) * _PER_STEP for block in blocks]
    return [draws_BD[:, : block.num] for block, draws_BD in zip(blocks, halves_BD.split(widths, dim=1), strict=True)]


def _columns(block: DrawBlock) -> list[tuple[int, int, int]]:
    """Return, for each counter that a key needs: the number of counters in a row, its place among them, the domain."""
    stride = -(-(block.row or block.num) // _PER_STEP)
    return [(stride, step, int(block.domain)) for step in range(-(-block.num // _PER_STEP))]


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
