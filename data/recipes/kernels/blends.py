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


def weight_of(factor: Fraction) -> int:
    """Return a factor as a weight: 1 leaves the image unchanged, 0 gives the changed one, more than 1 the opposite."""
    assert 0 <= factor < 4
    return round(factor * (1 << BITS))


def blended(changed: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Return changed + weight · (pixels - changed), cut to whole numbers from 0 to 255, uint8. All are int32."""
    product = (pixels - changed).mul_(weight).add_(_TOLERANCE) >> BITS
    return product.add_(changed).clamp_(0, 255).to(torch.uint8)


def mean_grey(pixels_BCHW: Tensor) -> Tensor:
    """Return each image's mean grey value, rounded, int32 (B,)."""
    grey_BS = _grey(pixels_BCHW).flatten(1)
    number = grey_BS.shape[1]
    return ((2 * grey_BS.sum(dim=1, dtype=torch.int64) + number) // (2 * number)).int()


def saturated(pixels_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    """Blend with grey: less colour for a weight below 1, more above. A grey image stays as it is."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    return blended(_grey(pixels_BCHW), pixels_BCHW.int(), weight_B[:, None, None, None])


def sharpened(pixels_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    """Blend with a smoothed image, whose pixels at the border are unchanged."""
    values = pixels_BCHW.int()
    return blended(_smoothed(values), values, weight_B[:, None, None, None])


def _smoothed(values_BCHW: Tensor) -> Tensor:
    """Return the mean of 3 × 3 pixels in which the central one counts five times, int32; the border is unchanged."""
    smoothed = values_BCHW.clone()
    rows = values_BCHW[..., :-2, :] + values_BCHW[..., 1:-1, :] + values_BCHW[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = values_BCHW[..., 1:-1, 1:-1]
    # (sum + 6) // 13, rounded; the multiplication is exact for sums up to 13 · 255.
    smoothed[..., 1:-1, 1:-1] = (sums + 4 * inner).add_(6).mul_(80660) >> 20
    return smoothed


def _grey(pixels_BCHW: Tensor) -> Tensor:
    """Return grey values as `channels.grey_of` does, int32 (B, 1, H, W); it is faster for few images."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW.int()
    weights = torch.tensor((RED, GREEN, BLUE), dtype=torch.int32, device=pixels_BCHW.device)[:, None, None]
    return (pixels_BCHW.int() * weights).sum(dim=1, keepdim=True, dtype=torch.int32).add_(HALF) >> GREY_BITS
