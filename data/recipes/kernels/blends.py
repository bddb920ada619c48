"""Blends of an image with a changed one, in fixed point: grey (colour), smoothed (sharpness), one value (contrast)."""

from fractions import Fraction

import torch
from dhkd.data.images.channels import BITS as GREY_BITS
from dhkd.data.images.channels import BLUE, GREEN, HALF, RED
from torch import Tensor

BITS = 20  # fractional bits of a weight; products with 255 and a weight up to 8 fit into 32 bits
# Added before fractions are cut off. It is more than the error of a weight makes of a product, so that a product which
# is a whole number is not cut to the one below, and less than 0.001, the smallest step of usual weights.
_TOLERANCE = 1 << BITS - 12

# For whole numbers up to 13 · 255 + 6: division by 13, rounded down, is a multiplication and a shift.
_THIRTEENTH, _THIRTEENTH_BITS = 80660, 20


def weight_of(factor: Fraction) -> int:
    """Return a factor as a weight: 1 leaves the image unchanged, 0 gives the changed one, more than 1 the opposite."""
    assert 0 <= factor < 4
    return round(factor * (1 << BITS))


def blended(changed: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Return changed + weight · (pixels - changed), cut to whole numbers from 0 to 255, uint8. All are int32."""
    product = (pixels - changed).mul_(weight).add_(_TOLERANCE).bitwise_right_shift_(BITS)
    return product.add_(changed).clamp_(0, 255).to(torch.uint8)


def grey_levels(pixels_BCHW: Tensor) -> Tensor:
    """Return grey values as `channels.grey_of` does, int32 (B, 1, H, W); it is faster for few images."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW.int()
    weights = torch.tensor((RED, GREEN, BLUE), dtype=torch.int32, device=pixels_BCHW.device)[:, None, None]
    return (pixels_BCHW.int() * weights).sum(dim=1, keepdim=True, dtype=torch.int32).add_(HALF) >> GREY_BITS


def mean_of(grey_B1HW: Tensor) -> Tensor:
    """Return each image's mean grey value, rounded, int32 (B, 1)."""
    grey_BS = grey_B1HW.flatten(1)
    number = grey_BS.shape[1]
    return ((2 * grey_BS.sum(dim=1, keepdim=True, dtype=torch.int64) + number) // (2 * number)).int()


def saturated(pixels_BCHW: Tensor, grey_B1HW: Tensor, weight_B: Tensor) -> Tensor:
    """Blend with grey: less colour for a weight below 1, more above. A grey image stays as it is."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    return blended(grey_B1HW, pixels_BCHW.int(), weight_B[:, None, None, None])


def sharpened(pixels_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    """Blend with the mean of 3 × 3 pixels, in which the central one counts five times; the border is unchanged."""
    height, width = pixels_BCHW.shape[2:]
    if min(height, width) < 3:
        return pixels_BCHW
    # All rows of an image are one run of values, because loops over long runs are faster than loops over rows. At the
    # left and right border, neighbours in the run are no neighbours; these columns are restored at the end.
    run_BCS = pixels_BCHW.short().flatten(2)
    three_rows = run_BCS[..., : -2 * width] + run_BCS[..., width:-width] + run_BCS[..., 2 * width :]
    inner = slice(width + 1, -width - 1)
    sums = (three_rows[..., :-2] + three_rows[..., 1:-1] + three_rows[..., 2:]).add_(run_BCS[..., inner], alpha=4)
    smoothed = sums.int().add_(6).mul_(_THIRTEENTH) >> _THIRTEENTH_BITS
    sharp_BCHW = pixels_BCHW.clone(memory_format=torch.contiguous_format)
    sharp_BCHW.view(run_BCS.shape)[..., inner] = blended(smoothed, run_BCS[..., inner], weight_B[:, None, None])
    sharp_BCHW[..., :: width - 1] = pixels_BCHW[..., :: width - 1]
    return sharp_BCHW
