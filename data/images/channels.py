"""Converts pixels, means and deviations from three channels to one, and back.

Colours become grey by the weights of ITU-R 601, bit for bit as Pillow converts images to its mode L. Grey that was
repeated three times becomes the same grey again.
"""

import torch
from dhkd.data.images.base import PerChannel
from torch import Tensor

RED, GREEN, BLUE, HALF, BITS = 19595, 38470, 7471, 1 << 15, 16  # 0.299, 0.587 and 0.114 times 2^16
CHUNK = 4096  # images


def grey_of(pixels_NCHW: Tensor) -> Tensor:
    """Convert colours, uint8 (N, 3, H, W), to grey, uint8 (N, 1, H, W)."""
    grey_N1HW = torch.empty_like(pixels_NCHW[:, :1])
    for start in range(0, len(pixels_NCHW), CHUNK):  # in parts: int32 takes four times the memory
        red, green, blue = pixels_NCHW[start : start + CHUNK].int().unbind(1)
        grey = (red * RED + green * GREEN + blue * BLUE + HALF) >> BITS
        grey_N1HW[start : start + CHUNK, 0] = grey.to(torch.uint8)
    return grey_N1HW


def in_channels(values: PerChannel, channels: int) -> PerChannel:
    """Convert means or deviations to those of images in 1 or 3 channels.

    The mean of grey is the weighted mean of the colours' means. The colours' deviations don't determine
    the deviation of grey, so their weighted mean is returned. It is an upper bound, and a close one for photographs,
    whose colours vary together.
    """
    if len(values) == channels:
        return values
    if channels > 1:
        return values * channels
    red, green, blue = values
    return values[:1] if red == green == blue else (0.299 * red + 0.587 * green + 0.114 * blue,)
