"""What a teacher of another size sees of a key: resized pixels, or the same box of the picture at its own size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import Decoding
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.images.resizing import Interpolation, Resizing
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.render import Normalization
from dhkd.data.sources.image_folder import images_below
from torch import Tensor

from tests.samples import encoded, make_images, make_photo

CPU = torch.device("cpu")
KINDS: tuple[Interpolation, ...] = ("bilinear", "bicubic")
RECIPE = RandomResizedCrop(size=16, flip=True, seed=3)
KEYS = (torch.tensor([0, 1, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 3]))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PhotoSet:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        (folder / f"class{number % 2}").mkdir(exist_ok=True)
        (folder / f"class{number % 2}" / f"{number}.jpg").write_bytes(encoded(make_photo(number)))
    return images_below("train", folder, folder)


def random_pixels(rows: int) -> Tensor:
    return make_images(rows, size=32).images_NCHW


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 224])
def test_a_row_is_the_same_in_any_batch_and_memory_format(kind: Interpolation, size: int) -> None:
    pixels, resize = random_pixels(9), Resizing(size, kind)
    together = resize(pixels)
    assert together.shape == (9, 3, size, size)
    assert torch.equal(together, torch.cat([resize(row[None]) for row in pixels]))
    assert torch.equal(together, resize(pixels.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize("kind", KINDS)
def test_values_stay_grey_levels_and_a_fitting_size_changes_nothing(kind: Interpolation) -> None:
    pixels = random_pixels(4)
    resized = Resizing(96, kind)(pixels)
    assert resized.min() >= 0
    assert resized.max() <= 255
    assert torch.equal(Resizing(32, kind)(pixels), pixels.float())
    even = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.allclose(Resizing(50, kind)(even), torch.tensor(77.0))


def test_a_normalisation_resizes_first_and_leaves_its_input_alone() -> None:
    pixels = random_pixels(3)
    before, mean, std = pixels.clone(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    out = Normalization(mean, std, Resizing(48, "bilinear"))(pixels)
    expected = Resizing(48, "bilinear")(pixels) / 255
    expected = (expected - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.equal(pixels, before)


def test_views_that_are_not_square_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.size: expected square views, .* got 48×32"):
        Resizing(64, "bilinear")(torch.zeros(1, 3, 32, 48, dtype=torch.uint8))


def test_a_recipe_that_resizes_nothing_has_no_other_size() -> None:
    assert CropFlip(padding=4, flip=True, seed=0).at_size(224, "bilinear") is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_box_and_flip_of_the_picture_at_another_size(kind: Interpolation) -> None:
    larger = RECIPE.at_size(48, kind)
    draws = RECIPE.draws(*KEYS)
    assert torch.equal(draws, larger.draws(*KEYS))
    for row in draws.tolist():
        small, large = RECIPE.cut(row, 45, 60), larger.cut(row, 45, 60)
        assert (small.box, small.mirrored) == (large.box, large.mirrored)
        assert large.size == (48, 48)
    # Averaged down, what the teacher sees is what the student sees, but for the filter's edges.
    photo = make_photo(0, 400, 300)
    small, large = (recipe.pixels(photo, draws[:1]).astype(float) for recipe in (RECIPE, larger))
    averaged = large.reshape(1, 16, 3, 16, 3, 3).mean(axis=(2, 4))
    assert np.abs(averaged - small).mean() < 4


def test_test_images_have_the_teachers_size_too() -> None:
    test = RECIPE.at_size(48, "bicubic").at_test()
    assert (test.size, test.resize, test.interpolation) == (48, round(48 * 256 / 224), "bicubic")
    chosen = RandomResizedCrop(size=16, flip=True, seed=3, test_resize=20).at_size(48, "bilinear").at_test()
    assert (chosen.size, chosen.resize) == (48, 60)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_decoding_gives_what_two_renderers_give(
    workers: int, photos: PhotoSet, no_workers_of_the_last_test: None
) -> None:

    other, decoding = RECIPE.at_size(40, "bicubic"), Decoding(workers=workers)
    renderer = photos.renderer(RECIPE, CPU, decoding)
    ((small, large),) = renderer.render_twice([KEYS], other)
    (alone,) = photos.renderer(RECIPE, CPU, Decoding()).render([KEYS])
    (teachers,) = photos.renderer(other, CPU, Decoding()).render([KEYS])
    assert torch.equal(small, alone)
    assert torch.equal(large, teachers)
    assert large.shape == (5, 3, 40, 40)
    ((first, second),) = renderer.render_twice([KEYS], None)
    assert first is second


def test_a_photograph_that_is_replaced_is_black_at_both_sizes(tmp_path: Path) -> None:

    for number in range(3):
        (tmp_path / f"class{number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"class{number % 2}" / f"{number}.jpg").write_bytes(
            b"none" if number == 2 else encoded(make_photo(0))
        )
    images = images_below("train", tmp_path, tmp_path)
    renderer = images.renderer(RECIPE, CPU, Decoding(allow_bad=1))
    index_B = torch.arange(3)
    ((small, large),) = renderer.render_twice([(torch.zeros_like(index_B), index_B)], RECIPE.at_size(40, "bilinear"))
    black = small.flatten(1).sum(1) == 0
    assert black.sum() == 1
    assert torch.equal(black, large.flatten(1).sum(1) == 0)


def test_images_in_memory_are_rendered_by_both_recipes() -> None:
    images = make_images(6, size=20)
    keys = (torch.tensor([0, 1]), torch.tensor([2, 5]))
    other = RECIPE.at_size(24, "bilinear")

    ((small, large),) = images.renderer(RECIPE, CPU, Decoding()).render_twice(iter([keys]), other)
    (expected,) = images.renderer(other, CPU, Decoding()).render([keys])
    assert small.shape == (2, 3, 16, 16)
    assert torch.equal(large, expected)
