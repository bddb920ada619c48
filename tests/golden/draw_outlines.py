"""The outlines of the data set `glyphs`, drawn with the DejaVu fonts that matplotlib includes.

The program's file was written once and for all, because another version of FreeType may draw a grey level differently:
`PYTHONPATH=. python -P -m tests.golden.draw_outlines data/sources/glyphs.png`.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from dhkd.data.sources.glyphs import CHARACTERS, OUTLINE
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono")
FONT_SIZE = 96  # in the outline's pixels; a capital letter is a little higher than half of the outline


def outlines() -> NDArray[np.uint8]:
    """Draw every character in every font, centred, uint8 (fonts · OUTLINE, characters · OUTLINE): 0 paper, 255 ink."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return np.concatenate([row_of(str(folder / f"{font}.ttf")) for font in FONTS])


def row_of(font: str) -> NDArray[np.uint8]:
    face = ImageFont.truetype(font, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    tiles = []
    for character in CHARACTERS:
        canvas = Image.new("L", (OUTLINE, OUTLINE))
        left, top, right, bottom = face.getbbox(character)
        # Centred by its ink, so that a glyph's height above the line carries no information.
        corner = (OUTLINE - round(left + right)) // 2, (OUTLINE - round(top + bottom)) // 2
        ImageDraw.Draw(canvas).text(corner, character, fill=255, font=face)
        tiles.append(np.asarray(canvas))
    return np.concatenate(tiles, axis=1)


if __name__ == "__main__":
    Image.fromarray(outlines()).save(sys.argv[1], optimize=True)
