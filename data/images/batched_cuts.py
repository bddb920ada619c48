"""Resized boxes of many small images in memory at once, with the bytes that Pillow computes for one image at a time.

Pillow resizes along one axis and then along the other; which comes first depends on the sizes, since Pillow 13. Each
time, a pixel is a sum of pixels, the taps, with weights of 22 fractional bits, rounded to 8 bits.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from dhkd.data.images.cuts import Cut, cut_of
from dhkd.data.images.decoding import photo_of
from dhkd.data.images.resizing import Interpolation
from numpy.typing import NDArray
from torch import Tensor

LARGEST = 64  # pixels; for larger images, building the tables takes long
LARGEST_ON_CPU = 32  # pixels, also of the result; Pillow is faster above
WEIGHT = 22  # fractional bits of a weight
_AT_ONCE = 64  # images, whose matrices fit into a processor's cache
_TRIES = 4  # images of noise that may tell which axis Pillow resizes first
_SEEN = 32  # pixels of each side of a resized image that are compared with Pillow's

# Takes numbers of images (B,), boxes (left, top, right, bottom) (B, 4), and whether to mirror (B,).
Cutter = Callable[[Tensor, Tensor, Tensor], Tensor]


def cutter_of(images_NCHW: Tensor, size: int, interpolation: Interpolation) -> Cutter | None:
    """Return a function that cuts boxes and resizes them to size × size pixels, uint8 (B, C, size, size).

    It is None where Pillow is faster, and if this build of Pillow computes other bytes.
    """
    height, width = images_NCHW.shape[2:]
    on_cpu = images_NCHW.device.type == "cpu"
    if max(height, width) > LARGEST or (on_cpu and max(height, width, size) > LARGEST_ON_CPU):
        return None
    columns_first = _columns_first(height, width, size, interpolation)
    if columns_first is None:
        return None
    columns_first = columns_first.to(images_NCHW.device)
    taps_H, taps_W = (_taps(side, size, interpolation).to(images_NCHW.device) for side in (height, width))
    images_NHCW = images_NCHW.permute(0, 2, 1, 3).contiguous()

    def cut_part(index_B: Tensor, box_B4: Tensor) -> Tensor:
        left, top, right, bottom = box_B4.unbind(1)
        columns_first_B = columns_first[bottom - top, right - left]
        result = torch.empty((len(index_B), size, images_NHCW.shape[2], size), dtype=torch.uint8, device=index_B.device)
        for first, chosen_B in ((True, columns_first_B), (False, ~columns_first_B)):
            rows = chosen_B.nonzero()[:, 0]
            down, across = taps_H.of(top[rows], bottom[rows]), taps_W.of(left[rows], right[rows])
            result[rows] = _resized(images_NHCW[index_B[rows]], down, across, columns_first=first)
        return result.permute(0, 2, 1, 3)

    def cut(index_B: Tensor, box_B4: Tensor, mirrored_B: Tensor) -> Tensor:
        parts = zip(torch.split(index_B, _AT_ONCE), torch.split(box_B4, _AT_ONCE), strict=True)
        pixels_BCHW = torch.cat([cut_part(*part) for part in parts])
        pixels_BCHW = torch.where(mirrored_B[:, None, None, None], pixels_BCHW.flip(-1), pixels_BCHW)
        return pixels_BCHW.contiguous(memory_format=torch.channels_last)

    return cut


class _Taps(NamedTuple):
    """Which pixels of one axis a resized image's pixels are sums of, and their weights, (…, size, number of taps)."""

    place: Tensor  # int64
    weight: Tensor  # int32; 0 where the place is outside of the box

    def to(self, device: torch.device) -> "_Taps":
        return _Taps(self.place.to(device), self.weight.to(device))

    def of(self, start_B: Tensor, stop_B: Tensor) -> "_Taps":
        """Return the taps of boxes, from a table over the boxes' lengths."""
        length_B, last = stop_B - start_B, len(self.place) - 2
        return _Taps((self.place[length_B] + start_B[:, None, None]).clamp(max=last), self.weight[length_B])


def _resized(pixels_BHCW: Tensor, down: _Taps, across: _Taps, *, columns_first: bool) -> Tensor:
    """Resize along both axes, along columns or along rows first: uint8 (B, H, C, W)."""
    if columns_first:
        return _along_rows(_along_columns(pixels_BHCW, down), across)
    return _along_columns(_along_rows(pixels_BHCW, across), down)


def _along_columns(pixels_BHCW: Tensor, taps: _Taps) -> Tensor:
    image_B1 = torch.arange(len(pixels_BHCW), device=pixels_BHCW.device)[:, None]
    return _rounded(
        pixels_BHCW[image_B1, place_BS] * weight_BS[:, :, None, None]
        for place_BS, weight_BS in zip(taps.place.unbind(2), taps.weight.unbind(2), strict=True)
    )


def _along_rows(pixels_BHCW: Tensor, taps: _Taps) -> Tensor:
    num, height, channels, _ = pixels_BHCW.shape
    return _rounded(
        pixels_BHCW.gather(3, place_BS[:, None, None].expand(num, height, channels, -1)) * weight_BS[:, None, None]
        for place_BS, weight_BS in zip(taps.place.unbind(2), taps.weight.unbind(2), strict=True)
    )


def _rounded(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total += part
    return total.add_(1 << WEIGHT - 1).bitwise_right_shift_(WEIGHT).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=8)
def _taps(side: int, size: int, interpolation: Interpolation) -> _Taps:
    """Return a table of taps over boxes of 0 to `side` pixels."""
    weights = _weights(side, size, interpolation)
    used = weights != 0
    first, zeros_behind = used.int().argmax(2), used.flip(2).int().argmax(2)
    num_taps = int((side - zeros_behind - first)[1:].max())
    place = first[..., None] + torch.arange(num_taps)
    weight = torch.where(place < side, weights.gather(2, place.clamp(max=side - 1)), 0)
    return _Taps(place, weight.int())


@lru_cache(maxsize=8)
def _weights(side: int, size: int, interpolation: Interpolation) -> Tensor:
    """Return the weights for boxes of 0 to `side` pixels, whole numbers in float64 (side + 1, size, side)."""
    weights = np.zeros((side + 1, size, side))
    for length in range(1, side + 1):
        weights[length, :, :length] = _weights_of(length, size, interpolation)
    return torch.from_numpy(weights)


def _weights_of(length: int, size: int, interpolation: Interpolation) -> NDArray[np.float64]:
    """Return the weight of each of `length` pixels in each of `size` pixels, as Pillow computes it in float64."""
    scale = length / size
    stretch = max(scale, 1.0)
    centre = ((np.arange(size) + 0.5) * scale)[:, None]
    support = stretch * (1 if interpolation == "bilinear" else 2)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), length)
    place = np.arange(length)[None, :]
    weights = _filter((place - centre + 0.5) * (1 / stretch), interpolation)
    weights = np.where((place >= first) & (place < last), weights, 0.0)
    total = np.zeros((size, 1))
    for column in weights.T:  # one after another, as Pillow does
        total[:, 0] += column
    weights = weights * (1 / total)
    return np.trunc(weights * (1 << WEIGHT) + np.where(weights < 0, -0.5, 0.5))


def _filter(distance: NDArray[np.float64], interpolation: Interpolation) -> NDArray[np.float64]:
    x = np.abs(distance)
    if interpolation == "bilinear":
        return np.where(x < 1, 1 - x, 0.0)
    a = -0.5
    return np.where(x < 1, ((a + 2) * x - (a + 3)) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0))


@lru_cache(maxsize=8)
def _columns_first(height: int, width: int, size: int, interpolation: Interpolation) -> Tensor | None:
    """Return whether Pillow resizes a box of each height and width along columns first, (height + 1, width + 1).

    It is None if Pillow's bytes are those of neither order, for a box of any size.
    """
    seen = min(size, _SEEN)
    table_H, table_W = (_taps(side, size, interpolation) for side in (height, width))
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (_TRIES, height, width), dtype=np.uint8))
    found = torch.zeros((height + 1, width + 1), dtype=torch.bool)
    for length in range(1, height + 1):
        tried = torch.arange(1, width + 1)
        for image_HW in noise:
            start_B = torch.zeros_like(tried)
            down = _Taps(*(taps[:, :seen] for taps in table_H.of(start_B, torch.full_like(tried, length))))
            across = _Taps(*(taps[:, :seen] for taps in table_W.of(start_B, tried)))
            pixels_BHCW = image_HW[None, :, None].expand(len(tried), -1, -1, -1)
            expected = _by_pillow(image_HW.numpy()[:length], tried.tolist(), size, interpolation)[:, :seen, :seen]
            rows_fit, columns_fit = (
                (_resized(pixels_BHCW, down, across, columns_first=first)[:, :, 0] == expected).flatten(1).all(1)
                for first in (False, True)
            )
            if not (rows_fit | columns_fit).all():
                return None
            found[length, tried] = ~rows_fit
            tried = tried[rows_fit & columns_fit]  # this image doesn't tell
            if len(tried) == 0:
                break
    return found


def _by_pillow(image_HW: NDArray[np.uint8], widths: list[int], size: int, interpolation: Interpolation) -> Tensor:
    """Resize the first columns of an image, as many as each width says: (B, size, size)."""
    photo, window = photo_of(image_HW[None]), (0, 0, size, size)
    cuts = [Cut((0, 0, width, len(image_HW)), (size, size), window, mirrored=False) for width in widths]
    return torch.from_numpy(np.stack([np.asarray(cut_of(photo, cut, interpolation)) for cut in cuts]))
