"""Decoding of images with Pillow.

Grey, CMYK, palette and RGBA images become RGB; transparency is dropped. EXIF orientation is ignored, as in the standard
recipes for ImageNet. Of an image with several frames, the first is read. `levels.py` turns values of more than 8 bits
into 8-bit ones.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import PIL
from dhkd.data.errors import DataError
from dhkd.data.images.levels import Levels, eight_bits, require_full_colours
from dhkd.data.images.reduced import Reduction, reduce
from dhkd.data.shown import line_of
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

Photo = Image.Image  # a decoded image of Pillow's mode RGB, or L if a preset asks for grey images

Image.init()  # loads all decoders now, so that forked workers import nothing
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `decode` refuses what this would warn of

# The endings of image files. The list is fixed, so that a folder holds the same samples on every machine, whatever
# Pillow was built with.
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),  # torchvision's list
    *(".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".gif", ".avif", ".apng", ".pnm", ".pbm", ".dib", ".tga"),
)

# The formats are tried in this order; a format that can't be told by a file's first bytes costs the start of a decoder.
_USUAL_FORMATS = ("JPEG", "PNG")
# An image file must not start another program, as Ghostscript for EPS.
_FORMATS = [*_USUAL_FORMATS, *(kind for kind in Image.ID if kind not in ("EPS", "WMF", *_USUAL_FORMATS))]


@dataclass(frozen=True)
class Reading:
    """How encoded images are read.

    `levels` are the values that become black and white in images of more than 8 bits; None means the range of 16 bits,
    and that images of which this can't be true are refused. An image may have up to `max_pixels` pixels, and a PNG up
    to `max_metadata` bytes of unpacked text or colour profile.
    """

    levels: tuple[float, float] | None = None
    max_pixels: int = 178_956_970  # above this number, Pillow refuses an image by default
    max_metadata: int = 16 * 10**6


USUAL = Reading()

# Formats whose further frames are images of their own; those of a camera's JPEG are previews.
STACKS = ("GIF", "TIFF", "WEBP", "PNG", "AVIF")
FRAMES = "dhkd frames"  # the key in a photo's `info` under which its number of frames stands


def decode(content: bytes, reading: Reading = USUAL, reduction: Reduction | None = None) -> Photo:
    """Decode an image to RGB, at the size that `reduction` gives; it is whole if that is None.

    Raises `DataError` for anything but a complete image within the limits.
    """
    if not content:
        raise DataError("an empty file")
    _set_limits(reading)
    try:
        image: Photo = Image.open(io.BytesIO(content), formats=_FORMATS)
        if image.width * image.height > reading.max_pixels:
            raise Image.DecompressionBombError
        frames = getattr(image, "n_frames", 1) if image.format in STACKS else 1
        tiles = getattr(image, "tile", None)
        source = str(tiles[0].args) if tiles else ""  # names the bits of a colour
        if reduction is not None:
            reduce(image, reduction)
        image.load()
        require_full_colours(image, source, reading.levels)
        photo = as_rgb(image, reading.levels)
        photo.info[FRAMES] = frames
        return photo
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"no image in a known format ({len(content):,} bytes)") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"an image above the limit of {reading.max_pixels / 1e6:g} megapixels; if you trust the file, raise the"
            f" limit with data.max_megapixels"
        ) from error
    except DataError:
        raise
    except Exception as error:  # a decoder may raise anything for a damaged file
        if "MAX_TEXT" in str(error):  # the name of Pillow's limit
            raise DataError(
                f"text or a colour profile above the limit of {reading.max_metadata / 1e6:g} MB; if you trust the"
                f" file, raise the limit with data.max_metadata_mb"
            ) from error
        raise DataError(f"a damaged image ({line_of(error)})") from error


def as_rgb(image: Photo, levels: Levels | None = None) -> Photo:
    """Convert an image to RGB. Raises `DataError` for values of more than 8 bits whose black and white aren't known."""
    if image.mode.startswith("I") or image.mode == "F":  # `convert` would turn every level above 255 into white
        image = Image.fromarray(eight_bits(image, levels))
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # otherwise Pillow warns about dropping transparency
    return image if image.mode == "RGB" else image.convert("RGB")


def _set_limits(reading: Reading) -> None:
    # Pillow's limits belong to the process. Its limit on pixels is only raised here; `decode` checks the lower one.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, reading.max_pixels)
    PngImagePlugin.MAX_TEXT_CHUNK = reading.max_metadata
    PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, reading.max_metadata)


def in_mode(photo: Photo, channels: int) -> Photo:
    """Convert a decoded image to grey, as `channels.grey_of` does, if `channels` is 1. Its `info` is kept."""
    return photo.convert("L") if channels == 1 else photo


def photo_of(pixels_CHW: NDArray[np.uint8]) -> Photo:
    """Convert an image in memory, uint8 (C, H, W) with C = 1 or 3, to a `Photo`, the type of decoded images."""
    return Image.fromarray(
        np.ascontiguousarray(pixels_CHW[0] if len(pixels_CHW) == 1 else pixels_CHW.transpose(1, 2, 0))
    )


def pixels_of(photo: Photo) -> NDArray[np.uint8]:
    """Return the pixels of a `Photo`, uint8 (H, W, C)."""
    return np.atleast_3d(np.asarray(photo))
