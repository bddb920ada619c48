"""Tables of functions, as fixed-point numbers that are the same on every machine.

Each table has `STEPS` entries, for values at the centres of equal intervals; a draw chooses one of them. `Decimal`
rounds correctly, and sums and products of float64 do, whereas the C library's functions differ between machines.
"""

from decimal import Decimal, localcontext
from functools import lru_cache

import torch
from dhkd.data.draws.keyed import below
from torch import Tensor

STEPS = 4096
_PI = Decimal("3.14159265358979323846264338328")


def at(table: Tensor, draws: Tensor) -> Tensor:
    """Return the entry of a table, (STEPS, …), that each draw in [0, 2³²) chooses."""
    return table.to(draws.device)[below(draws, len(table))]


def _centres(low: Decimal, high: Decimal) -> list[Decimal]:
    return [low + (2 * step + 1) * (high - low) / (2 * STEPS) for step in range(STEPS)]


@lru_cache
def log_uniform(low: float, high: float, fraction: int) -> Tensor:
    """Return numbers from `low` to `high` with evenly spaced logarithms, and their inverses: int64 (STEPS, 2)."""
    with localcontext() as context:
        context.prec = 30
        numbers = [number.exp() for number in _centres(Decimal(low).ln(), Decimal(high).ln())]
        return torch.tensor([[_fixed(number, fraction), _fixed(1 / number, fraction)] for number in numbers])


@lru_cache
def sines(low: float, high: float, fraction: int) -> Tensor:
    """Return sine, cosine and tangent of angles from `low` to `high` degrees, int64 (STEPS, 3)."""
    with localcontext() as context:
        context.prec = 30
        rows = []
        for degrees in _centres(Decimal(low), Decimal(high)):
            sine, cosine = _sine_and_cosine(degrees * _PI / 180)
            rows.append([_fixed(number, fraction) for number in (sine, cosine, sine / cosine)])
        return torch.tensor(rows)


@lru_cache
def gaussians(low: float, high: float, half: int, fraction: int) -> Tensor:
    """Return weights of normalised Gaussians with deviations from `low` to `high`: int32 (STEPS, up to half + 1).

    The first weight is the centre's; it and twice the others are 1 in all. Weights that are 0 in all are left out.
    """
    with localcontext() as context:
        context.prec = 30
        factors = [float((-1 / (2 * sigma * sigma)).exp()) for sigma in _centres(Decimal(low), Decimal(high))]
    falling = torch.tensor(factors, dtype=torch.float64)
    powers = [torch.ones_like(falling)]
    step = falling
    for _ in range(half):  # q^(k²) = q^((k - 1)²) · q^(2k - 1)
        powers.append(powers[-1] * step)
        step = step * falling * falling
    total = powers[0] + 2 * sum(powers[1:], torch.zeros_like(falling))
    weights = torch.stack([(power / total * (1 << fraction)).round() for power in powers], 1).int()
    weights[:, 0] = (1 << fraction) - 2 * weights[:, 1:].sum(1)
    return weights[:, weights.any(0)]


def _fixed(number: Decimal, fraction: int) -> int:
    return int((number * (1 << fraction)).to_integral_value())


def _sine_and_cosine(radians: Decimal) -> tuple[Decimal, Decimal]:
    """Return both by their series, for up to 2π."""
    sine, cosine, term, power = Decimal(0), Decimal(0), Decimal(1), 0
    while abs(term) > Decimal("1e-25"):
        cosine += term
        term = term * radians / (power + 1)
        sine += term
        term = -term * radians / (power + 2)
        power += 2
    return sine, cosine
