"""How images of any size become those of a network: as test images do, and as a file's metadata says."""

import numpy as np
import pytest
import torch
from dhkd.data.images.decoding import photo_of
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.base import rendered
from dhkd.data.recipes.preparation import Preparation, preparation_from, preparation_of
from dhkd.data.recipes.unaugmented import CenterCrop, Covering

NO_DRAWS = torch.empty((1, 0), dtype=torch.int64)


@pytest.mark.parametrize("size", [(8, 8), (9, 30), (40, 7), (5, 3), (64, 64)])
def test_a_square_is_covered_as_a_centre_crop_covers_it(size: tuple[int, int]) -> None:
    photo = photo_of(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))
    covered, cropped = (rendered(recipe, photo, NO_DRAWS) for recipe in (Covering(8, 8), CenterCrop(8, 8)))
    assert np.array_equal(covered, cropped)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
@pytest.mark.parametrize("size", [(6, 10), (7, 8), (100, 30), (3, 90)])
def test_any_size_becomes_the_shape_and_its_own_size_stays(shape: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    result = rendered(Covering(*shape), photo_of(pixels), NO_DRAWS)[0]
    assert result.shape == (*shape, 3)
    if shape == size:
        assert np.array_equal(result, pixels.transpose(1, 2, 0))


def test_images_in_memory_are_prepared_as_files_are() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 9, 7), dtype=np.uint8))
    zero, index = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    for recipe in (Covering(9, 7), Covering(4, 6)):
        alone = np.stack([rendered(recipe, photo_of(one.numpy()), NO_DRAWS)[0] for one in images])
        assert np.array_equal(recipe.resident(images)(zero, index).permute(0, 2, 3, 1).numpy(), alone)


def test_each_recipe_says_how_it_prepares_test_images() -> None:
    crop_flip = build_recipe("crop-flip", {"padding": 1, "flip": False, "seed": 0}).at_test()
    assert preparation_of(crop_flip, (8, 6), 1) == Preparation(8, 6, 1)
    assert preparation_of(crop_flip, None, 3) is None
    photos = build_recipe("random-resized-crop", {"size": 14, "flip": True, "seed": 0})
    assert preparation_of(photos.at_test(), None, 3) == Preparation(14, 14, 3, resize=16)
    larger = photos.at_size(28, "bicubic")
    assert larger is not None
    assert preparation_of(larger.at_test(), None, 3) == Preparation(28, 28, 3, resize=32, interpolation="bicubic")
    for preparation in (Preparation(8, 6, 1), Preparation(14, 14, 3, resize=16)):
        assert preparation_from(preparation.plain()) == preparation
    assert Preparation(14, 14, 3, resize=16).recipe == photos.at_test()


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0},
        {"width": 10**9},
        {"height": True},
        {"channels": 2},
        {"resize": 7},
        {"interpolation": "x"},
        {"a": 1},
    ],
)
def test_forged_preparations_are_none(changes: dict[str, object]) -> None:
    assert preparation_from({**Preparation(8, 8, 3, resize=8).plain(), **changes}) is None
