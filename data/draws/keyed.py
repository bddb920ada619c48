"""Draws for any keys (view, index) at once, on the keys' device: the numbers of `philox.raw_rows`, without its order.

A training batch asks for keys in any order, so `raw_rows`, which needs one call for each of them, would be slow. Here
Philox itself is computed with tensors. Torch has no unsigned 64-bit arithmetic, but sums, products and exclusive ors of
int64 have the same bits; only shifts to the right have to be masked.
"""

import torch
from dhkd.data.draws.philox import RAW_PER_COUNTER, Domain
from torch import Tensor

BITS = 32  # of a draw: each 64-bit number of Philox gives two draws, the upper half first

# Philox4x64: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3.
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_HALF_MASK = (1 << BITS) - 1


def keyed_draws(seed: int, domain: Domain, view_B: Tensor, index_B: Tensor, num: int) -> Tensor:
    """Return `num` draws for each key, integers in [0, 2³²) as int64 (B, num), on the device of the keys.

    For num > 2, row b holds both halves of `raw_rows(seed, domain, view_B[b], index_B[b], …, (num + 1) // 2)`.
    """
    steps = -(-num // (2 * RAW_PER_COUNTER))
    counter_BS = index_B[:, None] * steps + torch.arange(steps, device=index_B.device)
    plane_BS = view_B[:, None].expand_as(counter_BS)
    raw_BSR = torch.stack(_philox(seed, domain, counter_BS, plane_BS), dim=-1)
    halves = torch.stack([_upper(raw_BSR), raw_BSR & _HALF_MASK], dim=-1)
    return halves.reshape(len(index_B), steps * 2 * RAW_PER_COUNTER)[:, :num]


def below(draws: Tensor, limit: int) -> Tensor:
    """Map draws in [0, 2³²) to integers in [0, limit); `limit` is at most 2³¹.

    The probabilities differ from uniform by less than limit / 2³².
    """
    assert 0 < limit <= 1 << 31
    return draws * limit >> BITS


def chosen(draws: Tensor, probability: float) -> Tensor:
    """Return which draws in [0, 2³²) are below `probability`, bool, of the same shape."""
    return draws < round(probability * (1 << BITS))


def _philox(seed: int, domain: Domain, counter: Tensor, plane: Tensor) -> tuple[Tensor, ...]:
    """Return four numbers for each counter and plane, as numpy's generator does, which adds 1 to the counter first."""
    words: tuple[Tensor, ...] = (counter + 1, plane, torch.full_like(counter, domain), torch.zeros_like(counter))
    keys = [seed, 0]
    for _ in range(_ROUNDS):
        (high_0, low_0), (high_2, low_2) = _product(words[0], _MULTIPLIERS[0]), _product(words[2], _MULTIPLIERS[1])
        words = (high_2 ^ words[1] ^ _signed(keys[0]), low_2, high_0 ^ words[3] ^ _signed(keys[1]), low_0)
        keys = [key + step for key, step in zip(keys, _KEY_STEPS, strict=True)]
    return words


def _product(factor: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 64 bits of a 128-bit product, from products of halves of 32 bits."""
    high, low = multiplier >> BITS, multiplier & _HALF_MASK
    factor_high, factor_low = _upper(factor), factor & _HALF_MASK
    middle = factor_high * low + _upper(factor_low * low)
    other = factor_low * high + (middle & _HALF_MASK)
    return factor_high * high + _upper(middle) + _upper(other), factor * _signed(multiplier)


def _upper(words: Tensor) -> Tensor:
    return (words >> BITS) & _HALF_MASK


def _signed(word: int) -> int:
    """Return the int64 that has the last 64 bits of a number."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word
