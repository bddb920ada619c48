"""The embedded data set: 100 printed characters, drawn by this program from the fonts that matplotlib ships.

16×16 RGB, 200 training and 40 test images of each character, with small rotation, shear, scale and shift, random
colours, noise and an occluding stroke. Never mirrored: a mirrored b is a d. Everything after the outlines is integer
arithmetic on Philox draws; the outlines come from FreeType, whose versions may differ by a grey level, and then the
data set's fingerprint differs too. It is drawn once and kept in the user's cache folder.
"""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch
from dhkd.data.files import user_cache_folder, write_atomically
from dhkd.data.image_set import ImageSet
from dhkd.data.philox import Domain, below, raw_rows
from numpy.typing import NDArray

VERSION = 1  # whoever changes a pixel raises it

# No two that can't be told apart at this size: of 0 O o one, of 1 I l one, of C c one, no Σ beside ∑, no η beside n.
CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789abdefghijmnqrtyΓΔΘΛΞΠΣΦΨΩαβγδεζλμξπσφψ!?&%#@$+=*/<>[]{}~€£¥§¶÷±√∞∫"
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono")
PER_CLASS = {"train": 200, "test": 40}
SEED = 20_240_101

SIZE = 16
SAMPLES = 4  # an image pixel is the mean of 4×4 samples of the outline
OUTLINE = 96  # outlines are drawn once at this size and then only looked up
FONT_SIZE = 72  # of the outline, in its own pixels: a capital letter is a little more than half of the outline high
ONE = 1 << 12  # fixed-point unit of the affine maps

MEAN, STD = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)


def load(split: str, root: Path | None, download: bool) -> ImageSet:
    """One split; `root` and `download` have no meaning here."""
    path = user_cache_folder() / f"glyphs-v{VERSION}-{split}.npz"
    pixels_NCHW = _read(path, split)
    if pixels_NCHW is None:
        pixels_NCHW = draw(split, 0, num_images(split))
        digest = np.array(_digest(pixels_NCHW))
        write_atomically(path, lambda stream: np.savez(stream, pixels=pixels_NCHW, sha256=digest))
    labels_N = torch.from_numpy(labels(0, num_images(split)))
    return ImageSet("glyphs", split, torch.from_numpy(pixels_NCHW), labels_N, len(CHARACTERS), MEAN, STD)


def num_images(split: str) -> int:
    """How many images a split has."""
    return PER_CLASS[split] * len(CHARACTERS)


def labels(start: int, stop: int) -> NDArray[np.int64]:
    """Labels of images `start` to `stop`: the characters in turn, so that any run of images mixes classes."""
    return np.arange(start, stop, dtype=np.int64) % len(CHARACTERS)


def draw(split: str, start: int, stop: int) -> NDArray[np.uint8]:
    """Images `start` to `stop` of a split, uint8 (stop - start, 3, 16, 16); each depends on its own position alone."""
    outlines = _outlines()
    parts = [
        _draw(outlines, split, first, min(first + 500, stop))  # 500 at a time: some 100 MB of scratch memory
        for first in range(start, stop, 500)
    ]
    return np.concatenate(parts)


def _draw(outlines: NDArray[np.uint8], split: str, start: int, stop: int) -> NDArray[np.uint8]:
    num, grid = stop - start, SIZE * SAMPLES
    plane = list(PER_CLASS).index(split)
    raw = iter(raw_rows(SEED, Domain.VIEW, plane, start, stop, 32 + SIZE * SIZE).T)

    def uniform(low: int, high: int) -> NDArray[np.int64]:
        """One draw an image, in [low, high]."""
        return low + below(next(raw), high - low + 1)

    font = uniform(0, len(FONTS) - 1)
    cos, sin = _turn(uniform(-14, 14))
    shear, scale = uniform(-ONE // 6, ONE // 6), uniform(ONE * 84 // 100, ONE * 116 // 100)
    shift_x, shift_y = uniform(-ONE * 6, ONE * 6), uniform(-ONE * 6, ONE * 6)

    # Sample positions as seen from the image's centre, in the outline's pixels (fixed point).
    axis = (2 * np.arange(grid, dtype=np.int64) - grid + 1) * (ONE * OUTLINE // (2 * grid))
    x, y = axis[None, None, :], axis[None, :, None]
    wide = (slice(None), None, None)
    turned_x, turned_y = (cos[wide] * x + sin[wide] * y) // ONE, (cos[wide] * y - sin[wide] * x) // ONE
    turned_x = turned_x + shear[wide] * turned_y // ONE
    column = (turned_x * scale[wide] // ONE + shift_x[wide]) // ONE + OUTLINE // 2
    row = (turned_y * scale[wide] // ONE + shift_y[wide]) // ONE + OUTLINE // 2
    inside = (column >= 0) & (column < OUTLINE) & (row >= 0) & (row < OUTLINE)
    which = font * len(CHARACTERS) + labels(start, stop)
    ink = np.where(inside, outlines[which[wide], row.clip(0, OUTLINE - 1), column.clip(0, OUTLINE - 1)], 0)
    ink_NHW = _pooled(ink)

    # A stroke: a segment of a line through a random point.
    cos, sin = _turn(uniform(0, 179))
    centre_x, centre_y = uniform(-ONE * 24, ONE * 24), uniform(-ONE * 24, ONE * 24)
    half_length, half_width = uniform(ONE * 10, ONE * 26), uniform(ONE * 2, ONE * 4)
    from_x, from_y = x - centre_x[wide], y - centre_y[wide]
    along, across = (cos[wide] * from_x + sin[wide] * from_y) // ONE, (cos[wide] * from_y - sin[wide] * from_x) // ONE
    stroke_NHW = _pooled(((abs(along) < half_length[wide]) & (abs(across) < half_width[wide])) * 255)

    # Paper and ink differ by 80 to 176 of 256 levels, around the circle, in every channel.
    paper = np.stack([uniform(0, 255) for _ in range(3)], axis=1)
    glyph = (paper + np.stack([uniform(80, 176) for _ in range(3)], axis=1)) % 256
    pencil = np.stack([uniform(0, 255) for _ in range(3)], axis=1)
    image = _blend(paper[:, :, None, None], glyph[:, :, None, None], ink_NHW[:, None])
    image = _blend(image, pencil[:, :, None, None], stroke_NHW[:, None])

    # One 64-bit draw a pixel gives a byte of noise for each channel; its spread is an image's own.
    strength = uniform(6, 40)
    bits = np.stack([next(raw) for _ in range(SIZE * SIZE)], axis=1).reshape(num, SIZE, SIZE)
    noise = np.stack([(bits >> np.uint64(8 * c)).astype(np.int64) % 256 - 128 for c in range(3)], axis=1)
    return (image + noise * strength[:, None, None, None] // 128).clip(0, 255).astype(np.uint8)


def _blend(under: NDArray[np.int64], over: NDArray[np.int64], cover: NDArray[np.int64]) -> NDArray[np.int64]:
    return (under * (255 - cover) + over * cover + 127) // 255


def _pooled(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    pooled = samples.reshape(len(samples), SIZE, SAMPLES, SIZE, SAMPLES).sum(axis=(2, 4), dtype=np.int64)
    return pooled // SAMPLES**2


def _turn(degrees: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    angles = np.deg2rad(degrees)
    return np.rint(np.cos(angles) * ONE).astype(np.int64), np.rint(np.sin(angles) * ONE).astype(np.int64)


def _outlines() -> NDArray[np.uint8]:
    """Every character in every font, uint8 (fonts · characters, OUTLINE, OUTLINE), centred, 0 paper to 255 ink."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    outlines = []
    for font in FONTS:
        face = ImageFont.truetype(str(folder / f"{font}.ttf"), FONT_SIZE)
        for character in CHARACTERS:
            canvas = Image.new("L", (OUTLINE, OUTLINE))
            middle = (OUTLINE // 2, OUTLINE // 2)
            left, top, right, bottom = face.getbbox(character, anchor="mm")
            # Centred by what is drawn, so that a glyph's place on its line says nothing.
            place = (middle[0] - round((left + right) / 2), middle[1] - round((top + bottom) / 2))
            ImageDraw.Draw(canvas).text(place, character, fill=255, font=face, anchor="mm")
            outlines.append(np.asarray(canvas))
    return np.stack(outlines)


def _read(path: Path, split: str) -> NDArray[np.uint8] | None:
    """The kept images; None when there are none or they are damaged, since they can be drawn again."""
    try:
        with np.load(path, allow_pickle=False) as content:
            pixels, digest = content["pixels"], str(content["sha256"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    expected = (num_images(split), 3, SIZE, SIZE)
    return pixels if pixels.shape == expected and digest == _digest(pixels) else None


def _digest(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
