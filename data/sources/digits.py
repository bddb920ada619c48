"""scikit-learn's 1,797 handwritten digits of 8×8 pixels, real data that comes with the package."""

from functools import cache

import numpy as np
import torch
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.sources.base import Place, Size, Source
from numpy.typing import NDArray

NUM_TRAIN = 1437  # four fifths, in the package's order; the other 360 are the test split
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


@cache  # the package reads compressed text, which takes longer than anything else that is done with so few images
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the package's images and labels, of both splits; never to be changed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


SOURCE = Source(load, Size(NUM_TRAIN, 10, 8, tested=360), bundled=True)
