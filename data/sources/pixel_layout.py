"""Finds out which axes of an array of images are samples, channels, height and width.

The layout is inferred from the shape only if the shape has a single meaning, because a wrong guess would go unnoticed.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from dhkd.data.errors import ConfigError, DataError, unknown
from numpy.typing import NDArray
from torch import Tensor

LAYOUTS = ("NHW", "NHWC", "NCHW")
CHANNELS = (1, 3)


@dataclass(frozen=True)
class Layout:
    """The order of the axes, in letters; `doubtful` means that the shape could also have another meaning."""

    axes: str
    doubtful: bool = False


def layout_of(where: str, shape: tuple[int, ...], wanted: str | None = None, remedy: str = "") -> Layout:
    """Return the layout of images of this shape (N, …): `wanted` unless that is None, or else the one that it implies.

    Raises `ConfigError` for an unknown layout, and `DataError` for a shape that isn't that of grey or RGB images or
    that has two meanings; the message for two meanings ends with `remedy`.
    """
    if wanted is not None and wanted not in LAYOUTS:
        raise ConfigError(f"{where}: {unknown('layout', wanted, LAYOUTS)}")
    if wanted is not None:
        if len(wanted) != len(shape) or ("C" in wanted and shape[wanted.index("C")] not in CHANNELS):
            raise DataError(
                f"{where}: images expected {wanted} with 1 or 3 channels, got shape {shape}; correct layout"
            )
        return Layout(wanted)
    if len(shape) == 3:  # a last axis of 1 or 3 may also be the channels of a single image
        return Layout("NHW", doubtful=shape[2] in CHANNELS)
    if len(shape) != 4:
        flat = "; reshape flattened ones" if len(shape) == 2 else ""
        raise DataError(f"{where}: images expected of shape (N, H, W), (N, H, W, C) or (N, C, H, W), got {shape}{flat}")
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first and last:
        raise DataError(f"{where}: images of shape {shape} may have their channels first or last; {remedy}")
    if not first and not last:
        transposed = "; move the axis of the samples to the front" if shape[2] in CHANNELS else ""
        transparent = "; drop the fourth channel" if 4 in (shape[1], shape[3]) else ""
        raise DataError(f"{where}: images expected 1 or 3 channels, got shape {shape}{transposed or transparent}")
    return Layout("NCHW" if first else "NHWC")


def as_nchw(images: Tensor, layout: Layout) -> Tensor:
    """Return images of this layout as (N, 3, H, W), without copying them; a single channel is repeated."""
    if layout.axes == "NHW":
        images = images[:, None]
    elif layout.axes == "NHWC":
        images = images.permute(0, 3, 1, 2)
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


def tensor_of(array: NDArray[np.uint8]) -> Tensor:
    """Convert an array to a tensor, in the same memory where torch can; nothing writes to the tensor."""
    if min(array.strides, default=0) < 0:
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def require_uint8(where: str, images: NDArray[np.generic]) -> None:
    """Raise `DataError` unless images are uint8; the message has the range of the first image's values."""
    if images.dtype == np.uint8:
        return
    span = ""
    if len(images) and images.dtype.kind in "iufb":
        first = np.asarray(images[0])
        span = f" (the first one from {first.min():g} to {first.max():g})" if first.size else ""
    raise DataError(f"{where}: images expected uint8, 0 to 255, got {images.dtype}{span}; scale and convert them")
