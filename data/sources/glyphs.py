"""The embedded data set: 100 printed characters in six fonts, drawn by this program.

Images are 16×16 RGB: 200 training and 40 test images of each character, with small rotation, shear, scale and shift,
random colours, noise and an occluding stroke. Views must not be mirrored: a mirrored b is a d.

An image depends only on its split and its number in the split; it is computed from Philox draws in integer arithmetic.
So it is the same on every machine: the characters' outlines, which differ by a grey level between versions of FreeType,
are a file of the program (tests/golden/draw_outlines.py made it). The set is drawn once and kept in the user's cache
folder.
"""

import hashlib
import logging
from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.draws.philox import Domain, below, raw_rows
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.sources.base import Place, Size, Source
from numpy.typing import NDArray
from PIL import Image

log = logging.getLogger("dhkd")

GLYPHS_VERSION = 1  # raise it when any pixel changes

# No two characters look alike at this size: the set has one of 0 O o, one of 1 I l and one of C c, Σ but not ∑, and n
# but not η.
CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789abdefghijmnqrtyΓΔΘΛΞΠΣΦΨΩαβγδεζλμξπσφψ!?&%#@$+=*/<>[]{}~€£¥§¶÷±√∞∫"
NUM_FONTS = 6
OUTLINES = "glyphs.png"  # a row for each font, a column for each character
PER_CLASS = {"train": 200, "test": 40}
SEED = (1 << 63) + 1  # above every seed that a preset can have, so that no recipe's views share this stream

SIZE = 16
SAMPLES = 4  # a pixel is the mean of 4×4 samples of the outline
OUTLINE = 2 * SIZE * SAMPLES  # pixels along a side of an outline: two for each sample
FRACTION = 12  # bits after the point of fixed-point numbers
ONE = 1 << FRACTION

# Statistics of each channel over all pixels of the train split.
MEAN, STD = (0.734, 0.734, 0.734), (0.173, 0.173, 0.173)


def load(split: str, place: Place) -> ImageSet:
    """Load one split. `place` is not used."""
    path = user_cache_folder() / f"glyphs-v{GLYPHS_VERSION}.npz"
    pixels = _read(path)
    if pixels is None:
        pixels = {name: draw(name, 0, num_images(name)) for name in PER_CLASS}
        _store(path, pixels)
    labels_N = torch.from_numpy(labels(0, num_images(split)))
    names = tuple(CHARACTERS)
    return ImageSet("glyphs", split, torch.from_numpy(pixels[split]), labels_N, len(CHARACTERS), MEAN, STD, names)


def num_images(split: str) -> int:
    """Return the number of images in a split."""
    return PER_CLASS[split] * len(CHARACTERS)


def labels(start: int, stop: int) -> NDArray[np.int64]:
    """Return the labels of images `start` to `stop`: the characters in turn, so that consecutive images mix classes."""
    return np.arange(start, stop, dtype=np.int64) % len(CHARACTERS)


def draw(split: str, start: int, stop: int) -> NDArray[np.uint8]:
    """Draw images `start` to `stop` of a split, uint8 (stop - start, 3, 16, 16)."""
    outlines = _outlines()
    bounds = [*range(start, stop, 250), stop]  # 250 images take about 20 MB of temporary memory
    return np.concatenate([_draw(outlines, split, *pair) for pair in pairwise(bounds)])


def _draw(outlines: NDArray[np.uint8], split: str, start: int, stop: int) -> NDArray[np.uint8]:
    # The first 32 columns are more than the draws below need; each other column holds the noise of one pixel.
    raw = raw_rows(SEED, Domain.VIEW, list(PER_CLASS).index(split), start, stop, 32 + SIZE * SIZE)
    columns = iter(raw[:, :32].T)

    def uniform(low: int, high: int) -> NDArray[np.int64]:
        """Draw an integer in [low, high] for each image."""
        return low + below(next(columns), high - low + 1)

    # The affine map from a sample's position, relative to the image's centre, to a pixel of the outline: first a
    # rotation, then shear, scale and shift.
    outline = uniform(0, NUM_FONTS - 1) * len(CHARACTERS) + labels(start, stop)
    cos, sin = _rotation(uniform(-14, 14))
    shear, scale = uniform(-ONE // 6, ONE // 6), uniform(ONE * 84 // 100, ONE * 116 // 100)
    shift_x, shift_y = uniform(-8 * ONE, 8 * ONE), uniform(-8 * ONE, 8 * ONE)
    centre = ONE * OUTLINE // 2
    sheared_x, sheared_y = cos - (shear * sin >> FRACTION), sin + (shear * cos >> FRACTION)
    column = _plane(sheared_x * scale >> FRACTION, sheared_y * scale >> FRACTION, shift_x + centre) >> FRACTION
    row = _plane(-sin * scale >> FRACTION, cos * scale >> FRACTION, shift_y + centre) >> FRACTION
    # An outline's edge is blank, as is everything outside of it.
    column, row = column.clip(0, OUTLINE - 1), row.clip(0, OUTLINE - 1)
    position = (outline * OUTLINE**2).astype(np.int32)[:, None, None] + row * OUTLINE + column
    ink_NHW = _sum_of_samples(outlines.take(position)) // SAMPLES**2

    # A stroke: a part of a line near the centre, in any direction.
    cos, sin = _rotation(uniform(0, 179))
    along = _plane(cos, sin, uniform(-32 * ONE, 32 * ONE))
    across = _plane(-sin, cos, uniform(-32 * ONE, 32 * ONE))
    half_length, half_width = uniform(13 * ONE, 35 * ONE), uniform(ONE * 8 // 3, ONE * 16 // 3)
    covered = (abs(along) < half_length[:, None, None]) & (abs(across) < half_width[:, None, None])
    stroke_NHW = _sum_of_samples(covered) * 255 // SAMPLES**2

    # Dark ink on light paper, 72 to 144 of 256 levels apart in every channel.
    paper = np.stack([uniform(144, 255) for _ in range(3)], axis=1)
    glyph = paper - np.stack([uniform(72, 144) for _ in range(3)], axis=1)
    pencil = np.stack([uniform(0, 255) for _ in range(3)], axis=1)
    image_NCHW = _blend(paper[:, :, None, None], glyph[:, :, None, None], ink_NHW[:, None])
    image_NCHW = _blend(image_NCHW, pencil[:, :, None, None], stroke_NHW[:, None])

    # One 64-bit draw for each pixel gives a byte of noise for each channel. Each image has its own strength of noise.
    strength = uniform(4, 28)
    bits = raw[:, 32:].reshape(-1, SIZE, SIZE)
    noise = np.stack([(bits >> np.uint64(8 * c)).astype(np.int64) % 256 - 128 for c in range(3)], axis=1)
    return (image_NCHW + noise * strength[:, None, None, None] // 128).clip(0, 255).astype(np.uint8)


def _plane(a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64]) -> NDArray[np.int32]:
    """Compute a·x + b·y + c, with one a, b and c for each of N images, at every image's 64×64 samples: (N, 64, 64).

    x and y are a sample's position in outline pixels from the image's centre.
    """
    axis = 2 * np.arange(SIZE * SAMPLES) - SIZE * SAMPLES + 1
    x_terms, y_terms = a[:, None] * axis, b[:, None] * axis + c[:, None]
    return x_terms.astype(np.int32)[:, None, :] + y_terms.astype(np.int32)[:, :, None]


def _sum_of_samples(samples: NDArray[np.uint8] | NDArray[np.bool_]) -> NDArray[np.int64]:
    sums: NDArray[np.int64] = samples.reshape(-1, SIZE, SAMPLES, SIZE, SAMPLES).sum(axis=(2, 4), dtype=np.int64)
    return sums


def _blend(under: NDArray[np.int64], over: NDArray[np.int64], cover: NDArray[np.int64]) -> NDArray[np.int64]:
    return (under * (255 - cover) + over * cover + 127) // 255


def _rotation(degrees: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    angles = np.deg2rad(degrees)
    return np.rint(np.cos(angles) * ONE).astype(np.int64), np.rint(np.sin(angles) * ONE).astype(np.int64)


def _outlines() -> NDArray[np.uint8]:
    """Return every character in every font, uint8 (fonts · characters, OUTLINE, OUTLINE): 0 paper, 255 ink."""
    with files("dhkd.data.sources").joinpath(OUTLINES).open("rb") as stream, Image.open(stream) as picture:
        rows = np.asarray(picture).reshape(NUM_FONTS, OUTLINE, len(CHARACTERS), OUTLINE)
    return rows.swapaxes(1, 2).reshape(-1, OUTLINE, OUTLINE)


def _store(path: Path, pixels: Mapping[str, NDArray[np.uint8]]) -> None:
    digest = np.array(_digest(pixels))
    try:
        write_atomically(path, lambda stream: np.savez(stream, allow_pickle=False, sha256=digest, **pixels))
    except OSError as error:
        log.warning("glyphs: %s can't be written (%s); every run will draw the images again", path, error.strerror)


def _read(path: Path) -> dict[str, NDArray[np.uint8]] | None:
    """Return the stored images of both splits, or None if they have to be drawn."""
    try:
        with np.load(path, allow_pickle=False) as content:
            pixels = {name: content[name] for name in PER_CLASS}
            digest = str(content["sha256"])
    except Exception:  # numpy and zipfile raise many kinds of errors for a missing or damaged file
        return None
    expected = [(np.uint8, (num_images(name), 3, SIZE, SIZE)) for name in PER_CLASS]
    got = [(array.dtype, array.shape) for array in pixels.values()]
    return pixels if got == expected and digest == _digest(pixels) else None


def _digest(pixels: Mapping[str, NDArray[np.uint8]]) -> str:
    digest = hashlib.sha256()
    for name in PER_CLASS:
        digest.update(np.ascontiguousarray(pixels[name]).data)
    return digest.hexdigest()


SOURCE = Source(load, Size(num_images("train"), len(CHARACTERS), SIZE, tested=num_images("test")), bundled=True)
