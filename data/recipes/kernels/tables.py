"""Operations that look each value up in a table of 256: the same for all images, or made from an image's own values."""

import math
from fractions import Fraction
from functools import lru_cache

import torch
from dhkd.data.recipes.kernels.blends import blended, weight_of
from torch import Tensor

LEVELS = 256
IDENTITY = list(range(LEVELS))


def brightened(factor: Fraction) -> list[int]:
    """Return the table that multiplies by a factor."""
    values = torch.arange(LEVELS, dtype=torch.int32)
    return blended(torch.zeros_like(values), values, torch.tensor(weight_of(factor), dtype=torch.int32)).tolist()


def posterized(bits: int) -> list[int]:
    """Return the table that keeps the upper bits, 0 to 8."""
    return [value >> 8 - bits << 8 - bits for value in range(LEVELS)]


def solarized(threshold: Fraction) -> list[int]:
    """Return the table that inverts values of at least `threshold`."""
    least = math.ceil(threshold)
    return [255 - value if value >= least else value for value in range(LEVELS)]


INVERTED = solarized(Fraction(0))


def contrasts(mean_B1: Tensor, weight_B: Tensor) -> Tensor:
    """Return tables that blend with each image's mean grey value, int32 (B, 1): uint8 (B, 256)."""
    values = torch.arange(LEVELS, dtype=torch.int32, device=mean_B1.device)
    return blended(mean_B1, values, weight_B[:, None])


@lru_cache(maxsize=4096)
def contrasted(mean: int, weight: int) -> list[int]:
    """Return the table that blends with a mean grey value."""
    mean_11, weight_1 = (torch.tensor(value, dtype=torch.int32) for value in ([[mean]], [weight]))
    table: list[int] = contrasts(mean_11, weight_1)[0].tolist()
    return table


@lru_cache(maxsize=4096)
def stretched(low: int, high: int) -> list[int]:
    """Return the table that stretches values from `low` to `high` to 0 to 255; for others, it has no meaning."""
    if low == high:
        return IDENTITY
    return [(value - low) * 255 // (high - low) for value in range(LEVELS)]


def auto_contrasts(pixels_BCHW: Tensor) -> Tensor:
    """Return tables that stretch each channel's values to 0 to 255, uint8 (B, C, 256); one value alone stays.

    What tables hold for values that do not occur has no meaning.
    """
    low_BC1, high_BC1 = (bound(pixels_BCHW.flatten(2), dim=2, keepdim=True).int() for bound in (torch.amin, torch.amax))
    values = torch.arange(LEVELS, dtype=torch.int32, device=pixels_BCHW.device)
    spread_BC1 = high_BC1 - low_BC1
    stretched_BCL = (values - low_BC1).mul_(255).div_(spread_BC1.clamp(min=1), rounding_mode="trunc")
    return torch.where(spread_BC1 > 0, stretched_BCL, values).to(torch.uint8)


def equalizations(pixels_BCHW: Tensor) -> Tensor:
    """Return tables that make each channel's values as evenly frequent as can be, uint8 (B, C, 256)."""
    values_BCS = pixels_BCHW.flatten(2)
    planes, number = values_BCS.shape[0] * values_BCS.shape[1], values_BCS.shape[2]
    first_BC1 = (
        torch.arange(planes, dtype=torch.int32, device=pixels_BCHW.device).view(-1, values_BCS.shape[1], 1) * LEVELS
    )
    counts = torch.bincount((values_BCS + first_BC1).flatten(), minlength=planes * LEVELS)
    counts_BCL = counts.view(*values_BCS.shape[:2], LEVELS)
    highest_BC1 = values_BCS.amax(dim=2, keepdim=True).long()
    step_BC1 = ((number - counts_BCL.gather(2, highest_BC1)) // 255).int()
    below_BCL = (counts_BCL.cumsum(dim=2) - counts_BCL).int()
    equalized_BCL = (step_BC1 // 2 + below_BCL).div_(step_BC1.clamp(min=1), rounding_mode="trunc").clamp_(max=255)
    values = torch.arange(LEVELS, dtype=torch.int32, device=pixels_BCHW.device)
    return torch.where(step_BC1 > 0, equalized_BCL, values).to(torch.uint8)


def looked_up(pixels_BCHW: Tensor, tables_BCL: Tensor) -> Tensor:
    """Return the value that each channel's table has for each pixel, uint8 (B, C, H, W)."""
    return tables_BCL.gather(2, pixels_BCHW.flatten(2).long()).view(pixels_BCHW.shape)
