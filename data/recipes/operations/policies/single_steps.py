"""The steps of one image after the other, on a CPU, with the bytes of `batched_steps.py`.

Of large images, this is faster: Pillow's loops read a pixel once, where a batch is read and written again by every
operator. Of Pillow's functions, those are used that compute with integers alone: maps in fixed point, tables, grey values
and equalization. Its blends are floating-point numbers, so those of `kernels/blends.py` take their place.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from dhkd.data.images.decoding import Photo, pixels_of
from dhkd.data.recipes.kernels import affine, tables
from dhkd.data.recipes.kernels.blends import UNCHANGED, blended, mean_of, sharpened
from dhkd.data.recipes.operations.policies.steps import MAPS, TABLES, Step, blend_of, map_of, table_of
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

Change = Callable[[Photo], Photo]


class SingleSteps:
    """Steps for images of one size on a CPU, each as a function of one image; None for a step that changes nothing."""

    def __init__(self, steps: Sequence[Step], height: int, width: int) -> None:
        self._changes = [_change_of(step, height, width) for step in steps]

    def apply(self, pixels_BCHW: Tensor, step_BS: Tensor) -> Tensor:
        """Return the pixels after the steps of each image in turn, uint8 (B, C, H, W), channels last in memory."""
        pixels_BHWC = pixels_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
        changed_BHWC = np.empty_like(pixels_BHWC)
        for row, numbers in enumerate(step_BS.tolist()):
            changes = [change for number in numbers if (change := self._changes[number]) is not None]
            changed_BHWC[row] = _changed(pixels_BHWC[row], changes) if changes else pixels_BHWC[row]
        return torch.from_numpy(changed_BHWC).permute(0, 3, 1, 2)


def _changed(pixels_HWC: NDArray[np.uint8], changes: Sequence[Change]) -> NDArray[np.uint8]:
    photo = _photo_of(pixels_HWC)
    for change in changes:
        photo = change(photo)
    return pixels_of(photo)


def _photo_of(pixels_HWC: NDArray[np.uint8]) -> Photo:
    return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)


def _change_of(step: Step, height: int, width: int) -> Change | None:
    weight, weight_1 = blend_of(step), torch.tensor([blend_of(step)], dtype=torch.int32)
    if weight == UNCHANGED:
        return None
    if step.name in MAPS:
        coefficients = map_of(step, height, width)
        return None if coefficients == affine.IDENTITY else partial(_mapped, data=_data_of(coefficients))
    if step.name in TABLES:
        table = table_of(step)
        return None if table == tables.IDENTITY else partial(_looked_up, table=table)
    match step.name:
        case "AutoContrast":
            return _stretched
        case "Equalize":
            return ImageOps.equalize
        case "Contrast":
            return partial(_contrasted, weight=weight)
        case "Color":
            return partial(_saturated, weight_1=weight_1)
        case "Sharpness":
            return partial(_sharpened, weight_1=weight_1)
    return None


def _data_of(coefficients: affine.Map) -> tuple[float, ...]:
    """Return a map as Pillow takes it: from corners of pixels, to whose centres it goes by itself."""
    a, b, c, d, e, f = coefficients
    # Halves of 1 / 2^16 are exact in float64, so Pillow's conversion to fixed point gives the same integers.
    return tuple(value / affine.ONE for value in (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2))


def _mapped(photo: Photo, data: tuple[float, ...]) -> Photo:
    return photo.transform(photo.size, Image.Transform.AFFINE, data, Image.Resampling.NEAREST)


def _looked_up(photo: Photo, table: list[int]) -> Photo:
    return photo.point(table * len(photo.getbands()))


def _stretched(photo: Photo) -> Photo:
    counts = photo.histogram()
    bands = [counts[start : start + tables.LEVELS] for start in range(0, len(counts), tables.LEVELS)]
    occurring = [[level for level, number in enumerate(band) if number] for band in bands]
    return photo.point([level for levels in occurring for level in tables.stretched(levels[0], levels[-1])])


def _contrasted(photo: Photo, weight: int) -> Photo:
    mean_11 = mean_of(torch.from_numpy(np.array(photo.convert("L")))[None, None])
    return _looked_up(photo, _contrast(int(mean_11), weight))


@lru_cache(maxsize=4096)
def _contrast(mean: int, weight: int) -> list[int]:
    mean_1, weight_1 = (torch.tensor([value], dtype=torch.int32) for value in (mean, weight))
    table: list[int] = tables.contrasts(mean_1[None], weight_1)[0].tolist()
    return table


def _saturated(photo: Photo, weight_1: Tensor) -> Photo:
    if photo.mode == "L":
        return photo
    grey = photo.convert("L")
    grey_HWC, pixels_HWC = (torch.from_numpy(np.array(one)).int() for one in (Image.merge("RGB", [grey] * 3), photo))
    return Image.fromarray(blended(grey_HWC, pixels_HWC, weight_1).numpy())


def _sharpened(photo: Photo, weight_1: Tensor) -> Photo:
    pixels_HWC = torch.from_numpy(pixels_of(photo).copy())
    return _photo_of(sharpened(pixels_HWC.permute(2, 0, 1)[None], weight_1)[0].permute(1, 2, 0).numpy())
