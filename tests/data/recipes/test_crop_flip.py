"""A view is a pure function of its key."""

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.images.witness import witnesses
from dhkd.data.recipes.crop_flip import CropFlip, PaddingMode
from dhkd.data.render import Normalization
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.functional import pad

from tests.samples import make_images, pixels_of

CPU = torch.device("cpu")

# dy, dx, flip of the keys in `test_golden_draws`, and the witnesses of the pixels in `test_golden_pixels`
GOLDEN_DRAWS = [[2, 5, 1], [8, 8, 0], [1, 0, 1], [0, 5, 0]]
GOLDEN_WITNESSES = [3721161849, 3034373314]


def reference(images_CHW: np.ndarray, padding: int, dy: int, dx: int, flip: int) -> np.ndarray:
    """The crop, as numpy slices of a padded image."""
    padded = np.pad(images_CHW, ((0, 0), (padding, padding), (padding, padding)))
    height, width = images_CHW.shape[1:]
    crop = padded[:, dy : dy + height, dx : dx + width]
    return crop[:, :, ::-1] if flip else crop


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (1, False), (2, True), (4, True)])
def test_apply_equals_slices_of_a_padded_image(images: ImageSet, padding: int, flip: bool) -> None:
    recipe = CropFlip(padding=padding, flip=flip, seed=0)
    every = torch.arange(recipe.num_views)
    draws = recipe.decode(every)
    got = pixels_of(recipe, images.images_NCHW[:1].expand(recipe.num_views, -1, -1, -1), draws)
    for element in range(recipe.num_views):
        expected = reference(images.images_NCHW[0].numpy(), padding, *draws[element].tolist())
        assert (got[element].numpy() == expected).all(), draws[element]


@pytest.mark.parametrize(("padding", "flip", "views"), [(4, True, 162), (2, False, 25), (1, False, 9), (0, False, 1)])
def test_the_views_of_a_sample_are_all_its_crops_once(padding: int, flip: bool, views: int) -> None:
    recipe = CropFlip(padding=padding, flip=flip, seed=7)
    assert recipe.num_views == views
    orders = recipe.orders(0, 20)
    assert orders.shape == (20, views)
    assert (orders.sort(dim=1).values == torch.arange(views)).all()
    if views > 9:
        assert len(orders.unique(dim=0)) == 20, "each sample has its own order"


def test_the_first_views_are_an_unbiased_sample() -> None:
    """View 0 alone must already show every offset and both flips about equally often."""
    recipe = CropFlip(padding=4, flip=True, seed=0)
    first = recipe.orders(0, 162 * 100)[:, 0].long()
    counts = torch.bincount(first, minlength=162)
    assert counts.float().sub(100).abs().max() < 60  # six standard deviations


@given(
    keys=st.lists(st.tuples(st.integers(0, 161), st.integers(0, 36)), min_size=1, max_size=40),
    cut=st.integers(0, 40),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=40, deadline=None)
def test_pixels_do_not_depend_on_batch_or_order(keys: list[tuple[int, int]], cut: int, seed: int) -> None:
    images = make_images()
    recipe = CropFlip(padding=4, flip=True, seed=seed)
    renderer = ResidentRenderer(images, recipe, CPU)
    view_B, index_B = torch.tensor(keys).unbind(1)
    together = renderer.pixels(view_B, index_B)
    assert isinstance(together, UInt8[Tensor, f"{len(keys)} 3 8 8"])
    backwards = renderer.pixels(view_B.flip(0), index_B.flip(0)).flip(0)
    in_two = torch.cat([renderer.pixels(view_B[part], index_B[part]) for part in (slice(cut), slice(cut, None))])
    by_key = pixels_of(recipe, images.images_NCHW[index_B], recipe.draws(view_B, index_B))
    for rendered in (backwards, in_two, by_key):
        assert torch.equal(together, rendered)


@pytest.mark.parametrize(
    ("mode", "torchvisions"),
    [("zero", "constant"), ("edge", "edge"), ("reflect", "reflect"), ("symmetric", "symmetric")],
)
def test_padding_modes_are_torchvisions(mode: PaddingMode, torchvisions: str) -> None:
    images = make_images().images_NCHW
    for padding in (0, 3, 7):
        expected = pad(images.float(), [padding] * 4, padding_mode=torchvisions).to(torch.uint8)
        recipe = CropFlip(padding, flip=False, seed=0, padding_mode=mode)
        windows = recipe.windows(images)[:, 0, :: 2 * padding or 1, :: 2 * padding or 1].unflatten(-1, (-1, 3))
        corners = expected.unfold(2, 8, 2 * padding or 1).unfold(3, 8, 2 * padding or 1)
        assert torch.equal(windows.permute(0, 5, 1, 2, 3, 4), corners)


def test_a_padding_mode_is_part_of_the_identity_where_it_is_set() -> None:
    assert "padding_mode" not in CropFlip(4, flip=True, seed=0, padding_mode="zero").identity
    assert CropFlip(4, flip=True, seed=0, padding_mode="edge").identity["padding_mode"] == "edge"
    assert CropFlip(4, flip=True, seed=0, padding_mode="edge").without_end().identity["padding_mode"] == "edge"


@pytest.mark.parametrize(("mode", "most"), [("reflect", 7), ("symmetric", 8)])
def test_a_mirrored_padding_larger_than_the_image_is_one_line(mode: PaddingMode, most: int) -> None:
    images = make_images().images_NCHW
    assert len(CropFlip(most, flip=False, seed=0, padding_mode=mode).windows(images))
    with pytest.raises(
        ConfigError, match=rf"^views\.padding: expected at most {most} with padding_mode {mode}.*got 9$"
    ):
        CropFlip(9, flip=False, seed=0, padding_mode=mode).windows(images)


def test_pixels_depend_on_view_index_and_seed(images: ImageSet) -> None:
    renderer = ResidentRenderer(images, CropFlip(padding=4, flip=True, seed=0), CPU)
    next_seed = ResidentRenderer(images, CropFlip(padding=4, flip=True, seed=1), CPU)
    index_B = torch.arange(len(images))
    zero, one = torch.zeros_like(index_B), torch.ones_like(index_B)
    assert not torch.equal(renderer.pixels(zero, index_B), renderer.pixels(one, index_B))
    assert not torch.equal(renderer.pixels(zero, index_B), renderer.pixels(zero, index_B.flip(0)))
    assert not torch.equal(renderer.pixels(zero, index_B), next_seed.pixels(zero, index_B))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: compares its pixels with the CPU's")
def test_a_gpu_renders_the_same_pixels(images: ImageSet) -> None:
    recipe = CropFlip(padding=4, flip=True, seed=0)
    index_B = torch.arange(len(images))
    on_gpu = ResidentRenderer(images, recipe, torch.device("cuda")).pixels(index_B % 162, index_B)
    assert torch.equal(on_gpu.cpu(), ResidentRenderer(images, recipe, CPU).pixels(index_B % 162, index_B))


def test_golden_draws() -> None:
    """A change of these needs a new version of the recipe, so that old caches are refused."""
    recipe = CropFlip(padding=4, flip=True, seed=0)
    assert recipe.version == 1
    keys = [(0, 0), (1, 0), (0, 1), (161, 49_999)]
    view_B, index_B = torch.tensor(keys).unbind(1)
    assert recipe.draws(view_B, index_B).tolist() == GOLDEN_DRAWS


def test_golden_pixels() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    recipe = CropFlip(padding=2, flip=True, seed=3)
    pixels = pixels_of(recipe, images, recipe.draws(torch.tensor([0, 5]), torch.tensor([0, 1])))
    assert witnesses(pixels).tolist() == GOLDEN_WITNESSES


def test_golden_witness_is_zlib_crc32_of_channels_rows_columns() -> None:
    """It can be recomputed without this program."""
    import zlib

    pixels = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    assert witnesses(pixels.to(memory_format=torch.channels_last)).tolist() == [zlib.crc32(bytes(range(48)))]


def test_normalization_is_the_usual_one(images: ImageSet) -> None:
    normalize = Normalization(images.mean, images.std)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    pixels = ResidentRenderer(images, CropFlip(padding=1, flip=False, seed=0), CPU).pixels(
        *torch.tensor([[0, 3], [1, 2]])
    )
    expected = (pixels / 255 - mean) / std
    got = normalize(pixels)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalize(pixels.contiguous()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("padding", "seed"), [(-1, 0), (65, 0), (4, -1), (4, 2**63)])
def test_impossible_recipes_are_refused(padding: int, seed: int) -> None:
    with pytest.raises(ConfigError, match=r"views\.(padding|seed): expected"):
        CropFlip(padding=padding, flip=True, seed=seed)
