"""The range of values of images with more than 8 bits, and their reduction to 8 bits.

A file seldom says which of its values are black and white. 16-bit values are taken to fill their range, since most
formats demand it. But scanners and cameras of 8 to 14 bits store their values in 16-bit files, too, and such an image
would turn out nearly black. So what can't be right is refused, and the setting `data.levels` decides.
"""

import numpy as np
from dhkd.data.errors import DataError
from numpy.typing import NDArray
from PIL import Image

Levels = tuple[float, float]  # the values of black and white

FULL: Levels = (0, 65535)
LEAST_FULL = 1 << 14  # an image whose values all lie below may have 14 bits or fewer
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC, which Pillow follows for 8 bits only


def eight_bits(image: Image.Image, levels: Levels | None) -> NDArray[np.uint8]:
    """Return the grey levels of an image of integers or floats, uint8 (H, W).

    Values outside of `levels` become black or white. Raises `DataError` if `levels` is None and the range isn't known,
    if more than half of all values lie above it, or if a value isn't finite.
    """
    values = np.asarray(image)
    infinite = values.size - int(np.isfinite(values).sum())
    if infinite:
        raise DataError(f"an image in which {infinite:,} values are NaN or infinite")
    low, high = levels or _known(image, values)
    if float((values > high).mean()) > 0.5:
        raise DataError(
            f"an image with values from {values.min():g} to {values.max():g}, more than half of which lie above"
            f" data.levels, [{low:g}, {high:g}]"
        )
    if values.dtype.kind == "f":
        grey = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    else:
        # Each of the 256 levels stands for equally many integers; for 16 bits, this is the upper byte.
        grey = np.floor((values.astype(np.float64) - low) * (256 / (high - low + 1)))
    grey = grey.clip(0, 255)
    inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    return (255 - grey if inverted else grey).astype(np.uint8)


def require_full_colours(image: Image.Image, source: str, levels: Levels | None) -> None:
    """Raise `DataError` for an image of 16-bit colours that seem to have fewer bits, or need other `levels`.

    Pillow keeps the upper byte of such colours only. `source` names the layout of the values in the file.
    """
    if ";16" not in source or image.mode not in ("RGB", "RGBA"):
        return
    most = max(high for _, high in image.convert("RGB").getextrema())  # type: ignore[misc]
    if levels not in (None, FULL) or (levels is None and most < LEAST_FULL >> 8):
        raise DataError(
            "16-bit colours that don't fill the range 0 to 65,535, of which only the upper 8 bits are read; convert the"
            " image to 8 bits, or set data.levels=[0, 65535] if it is as dark as it seems"
        )


def _known(image: Image.Image, values: NDArray[np.generic]) -> Levels:
    """Return the range that a file's format determines. Raises `DataError` if it determines none."""
    least, most = float(values.min()), float(values.max())
    if image.format == "PPM" and image.mode == "I":
        return FULL  # Pillow scales the values from the maximum that the file states
    tags = getattr(image, "tag_v2", {})
    if tuple(np.atleast_1d(tags.get(BITS_PER_SAMPLE, 0))) == (12,):
        return (0, 4095)
    if image.mode.startswith("I;16") or image.format == "PNG":
        if most == 0 or most >= LEAST_FULL:
            return FULL
        bits = max(8, int(most).bit_length())
        raise DataError(
            f"16-bit values of at most {most:,.0f}, as if only {bits} bits were used; set data.levels=[0,"
            f" {2**bits - 1}], or data.levels=[0, 65535] if the image is as dark as it seems"
        )
    kind = "floats" if image.mode == "F" else "integers of more than 8 bits"
    raise DataError(
        f"{kind} from {least:g} to {most:g}, of which the file doesn't say what is black and white; set"
        f" data.levels=[BLACK, WHITE]"
    )
