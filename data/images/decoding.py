"""From an encoded image to its pixels, with Pillow.

Grey, CMYK, palette and RGBA images become RGB (transparency is dropped). The orientation that EXIF gives is ignored, as
in the standard recipes of ImageNet.
"""

import io

import numpy as np
import PIL
from dhkd.data.errors import DataError
from numpy.typing import NDArray
from PIL import Image

Photo = Image.Image  # a decoded image, RGB

Image.init()  # loads all decoders now: worker processes are forked and should not have to import anything


def decode(content: bytes) -> Photo:
    """An image as RGB, all of it decoded. Raises `DataError` for anything that is not a whole image."""
    if not content:
        raise DataError("an empty file")
    try:
        image: Photo = Image.open(io.BytesIO(content))
        image.load()
        if image.mode.startswith("I"):  # 16 bits, of which converting would keep all above 255 as white
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        if "transparency" in image.info and image.mode == "P":
            image = image.convert("RGBA")  # else Pillow warns of what is dropped next
        return image if image.mode == "RGB" else image.convert("RGB")
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"no image in a known format ({len(content):,} bytes)") from error
    except Exception as error:  # a damaged file makes a decoder raise whatever its bytes lead it to
        raise DataError(f"a damaged image ({' '.join(str(error).split()) or type(error).__name__})") from error


def photo_of(pixels_CHW: NDArray[np.uint8]) -> Photo:
    """An image in memory, uint8 (3, H, W), as if it had just been decoded."""
    return Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
