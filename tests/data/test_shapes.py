"""The shapes in names are checked while these tests run."""

import numpy as np
import pytest
import torch
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.images.witness import witnesses
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.stream.labels import Labels
from dhkd.data.stream.read_ahead import ReadAhead


def test_a_wrong_number_of_axes_is_seen() -> None:
    with pytest.raises(AssertionError, match=r"witnesses: pixels_BCHW doesn't fit among"):
        witnesses(torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(AssertionError, match=r"ReadAhead\.follow: item_N doesn't fit among"):
        ReadAhead(str, 1).follow(np.zeros((2, 2), dtype=np.int64))


def test_an_axis_of_two_lengths_is_seen() -> None:
    view_B, index_B = torch.zeros(1, dtype=torch.int64), torch.arange(2)
    with pytest.raises(AssertionError, match=r"CropFlip\.draws: index_B doesn't fit among"):
        CropFlip(padding=1, flip=True, seed=0).draws(view_B, index_B)
    with pytest.raises(AssertionError, match=r"Labels\.__init__: second_B doesn't fit among"):
        Labels(index_B, view_B, torch.ones(2))
    pixels_NCHW = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(AssertionError, match=r"ImageSet\.__init__: labels_N doesn't fit among"):
        ImageSet("few", "train", pixels_NCHW, index_B, 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_arrays_that_fit_are_used() -> None:
    assert len(witnesses(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))) == 2
