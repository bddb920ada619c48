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

# Philox4x64: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3.
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
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
    plane_BS, domain_BS = view_B[:, None].expand_as(counter_BS), domain_S.expand_as(counter_BS)
    if counter_BS.device.type == "cpu":  # NumPy needs a third of the time: batches are small, and its calls are cheaper
        words = _philox(seed, counter_BS.numpy(), plane_BS.numpy(), domain_BS.numpy())
        raw_BSR = torch.from_numpy(np.stack(words, axis=-1))
    else:
        raw_BSR = torch.stack(_philox(seed, counter_BS, plane_BS, domain_BS), dim=-1)
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


def _philox(seed: int, counter: Words, plane: Words, domain: Words) -> tuple[Words, Words, Words, Words]:
    """Return four numbers for each counter, as numpy's generator does, which adds 1 to the counter first."""
    words = (counter + 1, plane, domain, counter * 0)
    keys = [seed, 0]
    for _ in range(_ROUNDS):
        (high_0, low_0), (high_2, low_2) = _product(words[0], _MULTIPLIERS[0]), _product(words[2], _MULTIPLIERS[1])
        words = (high_2 ^ words[1] ^ _signed(keys[0]), low_2, high_0 ^ words[3] ^ _signed(keys[1]), low_0)
        keys = [key + step for key, step in zip(keys, _KEY_STEPS, strict=True)]
    return words


def _product(factor: Words, multiplier: int) -> tuple[Words, Words]:
    """Return the upper and the lower 64 bits of a 128-bit product, from products of halves of 32 bits."""
    high, low = multiplier >> BITS, multiplier & _HALF_MASK
    factor_high, factor_low = _upper(factor), factor & _HALF_MASK
    middle = factor_high * low + _upper(factor_low * low)
    other = factor_low * high + (middle & _HALF_MASK)
    return factor_high * high + _upper(middle) + _upper(other), factor * _signed(multiplier)


def _upper(words: Words) -> Words:
    return (words >> BITS) & _HALF_MASK


def _signed(word: int) -> int:
    """Return the int64 that has the last 64 bits of a number."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word
