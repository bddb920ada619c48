"""1,797 handwritten digits of 8×8 pixels: real data that comes with the program, in the order of scikit-learn's copy.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, of which these are the test images. Licence: CC BY 4.0.
"""

from functools import cache
from importlib.resources import files

import numpy as np
import torch
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.sources.base import Place, Size, Source
from numpy.typing import NDArray

NUM_TRAIN = 1437  # four fifths, in the file's order; the other 360 are the test split
LEVELS = 16  # the scans' grey levels are 0 to 16

# Statistics of each channel over all pixels of the train split.
MEAN, STD = (0.3054, 0.3054, 0.3054), (0.3753, 0.3753, 0.3753)


def load(split: str, place: Place) -> ImageSet:
    """Load one split, as images of three equal channels. `place` is not used."""
    images_NHW, targets_N = _digits()
    part = slice(NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, None)
    levels_NHW = images_NHW[part].astype(np.int64)
    grey_NHW = torch.from_numpy(((levels_NHW * 255 + LEVELS // 2) // LEVELS).astype(np.uint8))
    pixels_NCHW = grey_NHW[:, None].repeat(1, 3, 1, 1)
    labels_N = torch.from_numpy(targets_N[part].astype(np.int64))
    return ImageSet("digits", split, pixels_NCHW, labels_N, 10, MEAN, STD, tuple("0123456789"))


@cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (1797, 8, 8), of 0 to 16, and labels of both splits; never to be changed."""
    with (
        files("dhkd.data.sources").joinpath("digits.npz").open("rb") as stream,
        np.load(stream, allow_pickle=False) as arrays,
    ):
        return arrays["images"], arrays["labels"]


SOURCE = Source(load, Size(NUM_TRAIN, 10, 8, tested=360), bundled=True)
