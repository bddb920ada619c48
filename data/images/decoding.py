"""Decoding of images with Pillow.

Grey, CMYK, palette and RGBA images become RGB; transparency is dropped. EXIF orientation is ignored, as in the standard
recipes for ImageNet.
"""

import io

import numpy as np
import PIL
from dhkd.data.errors import DataError
from numpy.typing import NDArray
from PIL import Image

Photo = Image.Image  # a decoded image, RGB

Image.init()  # loads all decoders now, so that forked workers import nothing


def decode(content: bytes) -> Photo:
    """Decode the whole image to RGB. Raises `DataError` for anything but a complete image."""
    if not content:
        raise DataError("an empty file")
    try:
        image: Photo = Image.open(io.BytesIO(content))
        image.load()
        if image.mode.startswith("I"):  # 16-bit levels; `convert` would turn every level above 255 into white
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        if "transparency" in image.info and image.mode == "P":
            image = image.convert("RGBA")  # otherwise Pillow warns about dropping transparency
        return image if image.mode == "RGB" else image.convert("RGB")
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"no image in a known format ({len(content):,} bytes)") from error
    except Exception as error:  # a decoder may raise anything for a damaged file
        raise DataError(f"a damaged image ({' '.join(str(error).split()) or type(error).__name__})") from error


def photo_of(pixels_CHW: NDArray[np.uint8]) -> Photo:
    """Convert an image in memory, uint8 (3, H, W), to a `Photo`, the type of decoded images."""
    return Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
