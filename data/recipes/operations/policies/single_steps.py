"""Computes the steps of one image after the other, on a CPU; the bytes are those of `batched_steps.py`.

For large images, this is faster: Pillow's loops read and write a pixel once, where each operator of a batch does so. Of
Pillow's functions, those are used that compute with integers: maps in fixed point, tables, grey values, equalization.
Its blends are in floating point, and are used where they are equal for every pair of levels.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from operator import mul

import numpy as np
import torch
from dhkd.data.images.decoding import Photo
from dhkd.data.recipes.kernels import affine, tables
from dhkd.data.recipes.kernels.blends import blended, weight_of
from dhkd.data.recipes.operations.policies.steps import BLENDS, MAPS, TABLES, Step, map_of, table_of
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

Change = Callable[[Photo], Photo]


class SingleSteps:
    """Steps for images of one size on a CPU. Each is a function of one image, or None if it changes nothing."""

    def __init__(self, steps: Sequence[Step], height: int, width: int) -> None:
        self._changes = [_change_of(step, height, width) for step in steps]

    def changed(self, photos: Sequence[Photo], step_BS: Tensor) -> list[Photo]:
        """Return the photos after the steps of each in turn."""
        return [self._changed(photo, numbers) for photo, numbers in zip(photos, step_BS.tolist(), strict=True)]

    def _changed(self, photo: Photo, numbers: Sequence[int]) -> Photo:
        for number in numbers:
            change = self._changes[number]
            photo = photo if change is None else change(photo)
        return photo


def _change_of(step: Step, height: int, width: int) -> Change | None:
    if step.name in MAPS:
        coefficients = map_of(step, height, width)
        return None if coefficients == affine.IDENTITY else partial(_mapped, data=_data_of(coefficients))
    if step.name in TABLES:
        table = table_of(step)
        return None if table == tables.IDENTITY else partial(_looked_up, table=table)
    if step.name in BLENDS:
        blend = {"Contrast": _contrasted, "Color": _saturated, "Sharpness": _sharpened}[step.name]
        return partial(blend, factor=1 + step.magnitude) if step.magnitude else None
    others: dict[str, Change] = {"AutoContrast": _stretched, "Equalize": ImageOps.equalize}
    return others.get(step.name)


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
    counts = np.array(photo.histogram()).reshape(-1, tables.LEVELS)
    lowest = counts.astype(bool).argmax(axis=1).tolist()
    highest = (tables.LEVELS - 1 - counts[:, ::-1].astype(bool).argmax(axis=1)).tolist()
    return photo.point([level for bounds in zip(lowest, highest, strict=True) for level in tables.stretched(*bounds)])


def _contrasted(photo: Photo, factor: Fraction) -> Photo:
    counts, number = photo.convert("L").histogram(), photo.width * photo.height
    mean = (2 * sum(map(mul, counts, range(tables.LEVELS))) + number) // (2 * number)
    return _looked_up(photo, tables.contrasted(mean, weight_of(factor)))


def _saturated(photo: Photo, factor: Fraction) -> Photo:
    return photo if photo.mode == "L" else _blended(Image.merge("RGB", [photo.convert("L")] * 3), photo, factor)


def _sharpened(photo: Photo, factor: Fraction) -> Photo:
    return photo if min(photo.size) < 3 else _blended(Image.fromarray(_smoothed(np.asarray(photo))), photo, factor)


def _smoothed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the means of 3 × 3 pixels in which the central one counts five times, and the border as it is."""
    values = pixels.astype(np.uint16)
    rows = values[:-2] + values[1:-1]
    rows += values[2:]
    sums = rows[:, :-2] + rows[:, 1:-1]
    sums += rows[:, 2:]
    sums += values[1:-1, 1:-1] << 2
    sums += 6
    smoothed = pixels.copy()
    smoothed[1:-1, 1:-1] = sums // 13
    return smoothed


def _blended(changed: Photo, photo: Photo, factor: Fraction) -> Photo:
    if _floats_are_exact(factor):
        return Image.blend(changed, photo, float(factor))
    return Image.fromarray(_blended_exactly(np.asarray(changed), np.asarray(photo), factor))


@lru_cache(maxsize=4096)
def _floats_are_exact(factor: Fraction) -> bool:
    """Whether Pillow's blend gives, for every pair of levels, what `blended` does. It does for most factors."""
    changed, level = (np.ascontiguousarray(side, dtype=np.uint8) for side in np.indices((tables.LEVELS,) * 2))
    floats = Image.blend(Image.fromarray(changed), Image.fromarray(level), float(factor))
    return np.array_equal(np.asarray(floats), _blended_exactly(changed, level, factor))


def _blended_exactly(changed: NDArray[np.uint8], pixels: NDArray[np.uint8], factor: Fraction) -> NDArray[np.uint8]:
    other, own = (torch.from_numpy(side.astype(np.int32)) for side in (changed, pixels))
    exact: NDArray[np.uint8] = blended(other, own, torch.tensor(weight_of(factor), dtype=torch.int32)).numpy()
    return exact
