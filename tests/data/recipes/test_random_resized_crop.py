"""Cuts of photographs: exact integers, with the usual distribution."""

import json
from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.images.batched_cuts import cutter_of
from dhkd.data.images.cuts import cut_of
from dhkd.data.images.decoding import pixels_of
from dhkd.data.images.resizing import Interpolation
from dhkd.data.recipes.base import ENDLESS, Recipe
from dhkd.data.recipes.random_resized_crop import Box, CenterCrop, Cut, RandomResizedCrop
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms

from tests.samples import make_photo

STANDARD = RandomResizedCrop(size=224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, seed=0)

# area, ratio, top and left of the first attempt, and flip, of the keys in `test_golden_draws`
GOLDEN_DRAWS = [
    [2764398719, 2971692919, 272850629, 2346709505, 4073932802],
    [370529149, 3670471944, 3605139711, 695664833, 561935939],
    [2775572191, 533375622, 2720449373, 2538904232, 855879104],
    [1018030395, 3830827901, 462826816, 3120189057, 2083118691],
]
GOLDEN_CUTS = [((68, 2, 443, 338), True), ((50, 184, 241, 340), False), ((204, 9, 410, 188), False)]


def recipe_of(**changed: object) -> RandomResizedCrop:
    arguments = {"size": 224, "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": True, "seed": 0}
    return RandomResizedCrop(**(arguments | changed))  # type: ignore[arg-type]


def draws_of(recipe: RandomResizedCrop, num: int, view: int = 0) -> list[list[int]]:
    index_B = torch.arange(num)
    drawn: list[list[int]] = recipe.draws(torch.full_like(index_B, view), index_B).tolist()
    return drawn


# draws


def test_golden_draws() -> None:
    """A change of these needs a new version of the recipe, so that old caches are refused."""
    assert STANDARD.version == 1
    view_B, index_B = torch.tensor([(0, 0), (1, 0), (0, 1), (90, 1_281_166)]).unbind(1)
    draws = STANDARD.draws(view_B, index_B)
    assert isinstance(draws, Int64[Tensor, "4 41"])
    assert [[*row[:4], row[40]] for row in draws.tolist()] == GOLDEN_DRAWS
    assert int(draws.min()) >= 0
    assert int(draws.max()) < 2**32
    cuts = [STANDARD.cut(row, height=375, width=500) for row in draws[:3].tolist()]
    assert [(cut.box, cut.mirrored) for cut in cuts] == GOLDEN_CUTS
    assert {(cut.size, cut.window) for cut in cuts} == {((224, 224), (0, 0, 224, 224))}


@given(
    keys=st.lists(st.tuples(st.integers(0, ENDLESS - 1), st.integers(0, 2**31)), min_size=1, max_size=20, unique=True),
    cut=st.integers(1, 19),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=25, deadline=None)
def test_draws_do_not_depend_on_batch_or_order(keys: list[tuple[int, int]], cut: int, seed: int) -> None:
    recipe = recipe_of(seed=seed)
    view_B, index_B = torch.tensor(keys).unbind(1)
    together = recipe.draws(view_B, index_B)
    assert torch.equal(together, recipe.draws(view_B.flip(0), index_B.flip(0)).flip(0))
    parts = [recipe.draws(*part) for part in zip(view_B.split(cut), index_B.split(cut), strict=True)]
    assert torch.equal(together, torch.cat(parts))
    assert len(together.unique(dim=0)) == len(keys), "each key has draws of its own"


def test_draws_depend_on_view_index_and_seed() -> None:
    """In every column. Of 10,250 numbers of 32 bits, two are equal for one seed in 82, but not for this one."""
    index_B = torch.arange(50)
    zero = torch.zeros_like(index_B)
    planes = [
        STANDARD.draws(zero, index_B),
        STANDARD.draws(zero + 1, index_B),
        STANDARD.draws(zero, index_B + 50),
        recipe_of(seed=1).draws(zero, index_B),
        STANDARD.draws(index_B + 2, zero),
    ]
    assert len(torch.stack(planes).unique()) == 5 * 50 * 41


def test_draws_do_not_depend_on_how_the_box_is_taken() -> None:
    """So a recipe's other parameters change only the distribution."""
    narrower = recipe_of(size=32, scale=(0.5, 0.6), ratio=(1.0, 1.0), flip=False)
    assert draws_of(STANDARD, 5) == draws_of(narrower, 5)


def test_flip_is_half_of_the_keys_or_none() -> None:
    drawn = draws_of(STANDARD, 2000)
    assert abs(sum(STANDARD.cut(row, 30, 40).mirrored for row in drawn) - 1000) < 135  # six standard deviations
    never = recipe_of(flip=False)
    assert not any(never.cut(row, 30, 40).mirrored for row in drawn)


# the box

SIZES = [(1, 1), (1, 1000), (1000, 1), (1600, 97), (97, 1600), (375, 500), (500, 375), (3, 2), (3000, 4000)]
RECIPES = [
    STANDARD,
    recipe_of(scale=(0.01, 1.0), ratio=(0.5, 2.0), seed=1),
    recipe_of(scale=(1.0, 1.0), ratio=(1.0, 1.0), seed=2),
    recipe_of(scale=(0.35, 0.35), ratio=(0.01, 100.0), seed=3),
]


@pytest.fixture
def fifty_digits() -> object:
    with localcontext() as context:
        context.prec = 50
        yield


class Exact(NamedTuple):
    """The box by its definition, and whether a length is so near to a half that it may be rounded either way."""

    box: Box
    doubtful: bool


@cache
def exact_ratio(step: int, ratio: tuple[float, float]) -> Decimal:
    """The middle of one of 4096 equal steps of the logarithm."""
    low, high = (Decimal(bound).ln() for bound in ratio)
    return (low + (high - low) * (2 * step + 1) / (2 * 4096)).exp()


def exact_box(recipe: RandomResizedCrop, draws: list[int], height: int, width: int) -> Exact:
    doubtful = False

    def rounded(length: Decimal) -> int:
        nonlocal doubtful
        whole = int(length + Decimal("0.5"))
        # Areas and ratios have 32 and 24 binary digits after the point.
        to_half = Decimal("0.5") - abs(length - whole)
        doubtful |= abs(to_half) < length * Decimal("3e-6") + Decimal("1e-6")
        return whole

    one = Decimal(2**32)
    least, most = (Decimal(share) for share in recipe.scale)
    for attempt in range(10):
        area_draw, ratio_draw, top_draw, left_draw = (Decimal(draw) for draw in draws[4 * attempt : 4 * attempt + 4])
        area = height * width * (least + (most - least) * area_draw / one)
        ratio = exact_ratio(int(ratio_draw * 4096 / one), recipe.ratio)
        box_width, box_height = rounded((area * ratio).sqrt()), rounded((area / ratio).sqrt())
        if 1 <= box_width <= width and 1 <= box_height <= height:
            top = int(top_draw / one * (height - box_height + 1))
            left = int(left_draw / one * (width - box_width + 1))
            return Exact((left, top, left + box_width, top + box_height), doubtful)
    narrowest, widest = (Decimal(bound) for bound in recipe.ratio)
    box_width, box_height = width, height
    if Decimal(width) / height < narrowest:
        box_height = max(1, rounded(width / narrowest))
    elif Decimal(width) / height > widest:
        box_width = max(1, rounded(height * widest))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return Exact((left, top, left + box_width, top + box_height), doubtful)


@pytest.mark.usefixtures("fifty_digits")
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_are_those_of_exact_arithmetic(height: int, width: int) -> None:
    compared = 0
    for recipe in RECIPES:
        for draws in draws_of(recipe, 60):
            expected = exact_box(recipe, draws, height, width)
            if not expected.doubtful:
                assert recipe.cut(draws, height, width).box == expected.box, (recipe, draws)
                compared += 1
    assert compared > 0.9 * 60 * len(RECIPES)


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    scale=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)).map(sorted),
    draws=st.lists(st.sampled_from([0, 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1), min_size=41, max_size=41),
)
@settings(max_examples=25, deadline=None)
def test_boxes_lie_inside_the_image(
    size: tuple[int, int], scale: list[float], ratio: list[float], draws: list[int]
) -> None:
    height, width = size
    cut = recipe_of(scale=tuple(scale), ratio=tuple(ratio)).cut(draws, height, width)
    left, top, right, bottom = cut.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert all(type(number) is int for number in (*cut.box, *cut.size, *cut.window)), "no floating point on the way"


def test_a_box_that_never_fits_is_the_central_one() -> None:
    """A strip as wide as the image, a column as high, or all of it."""
    whole = recipe_of(scale=(1.0, 1.0))
    for draws in draws_of(whole, 20):
        assert whole.cut(draws, height=1600, width=97).box == (0, 735, 97, 864)
        assert whole.cut(draws, height=97, width=1600).box == (735, 0, 864, 97)
    huge = recipe_of(scale=(1.0, 1.0), ratio=(0.01, 100.0))
    draws = [2**32 - 1, 0, 0, 0] * 10 + [0]
    assert huge.cut(draws, height=30, width=40).box == (0, 0, 40, 30)


def largest_gap(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The largest gap between two samples' distribution functions (the statistic of Kolmogorov and Smirnov)."""
    at = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_boxes_are_distributed_as_torchvisions() -> None:
    num, height, width = 20_000, 375, 500
    ours = [STANDARD.cut(draws, height, width) for draws in draws_of(STANDARD, num)]
    boxes = np.array([cut.box for cut in ours], dtype=np.float64)
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [
            transforms.RandomResizedCrop.get_params(image, list(STANDARD.scale), list(STANDARD.ratio))
            for _ in range(num)
        ]
    top, left, box_height, box_width = np.array(drawn, dtype=np.float64).T

    def facts(left, top, box_width, box_height) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
        area, ratio = box_width * box_height / (height * width), np.log(box_width / box_height)
        free = np.stack([(left + 0.5) / (width - box_width + 1), (top + 0.5) / (height - box_height + 1)])
        return np.stack([area, ratio, *free])

    got = facts(boxes[:, 0], boxes[:, 1], boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    expected = facts(left, top, box_width, box_height)
    for name, first, second in zip(("area", "log ratio", "left", "top"), got, expected, strict=True):
        assert largest_gap(first, second) < 0.027, name  # by chance one time in a million
        error = np.sqrt((first.var() + second.var()) / num)
        assert abs(first.mean() - second.mean()) < 5 * error, name
    flips = np.array([cut.mirrored for cut in ours], dtype=np.float64)
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / np.sqrt(num)
    apart = np.corrcoef(got) - np.corrcoef(expected)
    assert np.abs(apart).max() < 6 * np.sqrt(2 / num), "correlations are the same"
    assert np.abs(np.corrcoef([flips, *got])[0, 1:]).max() < 6 / np.sqrt(num)


# images in memory


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 20), (375, 500), (4096, 3000)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_boxes_of_a_batch_are_those_of_each_key(recipe: RandomResizedCrop, height: int, width: int) -> None:
    view_B = torch.arange(400)
    draws_BD = recipe.draws(view_B, view_B + 3)
    expected = [recipe.cut(draws, height, width).box for draws in draws_BD.tolist()]
    assert recipe.boxes(draws_BD, height, width).tolist() == [list(box) for box in expected]


def test_a_side_near_a_half_is_rounded_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhkd.data.recipes.random_resized_crop.DOUBTFUL", 0.1)
    test_boxes_of_a_batch_are_those_of_each_key(STANDARD, 28, 20)


@pytest.mark.parametrize("shape", [(9, 3, 32, 32), (9, 1, 28, 20), (9, 3, 5, 1), (9, 3, 70, 40)])
@pytest.mark.parametrize("size", [17, 32, (24, "bicubic")])
def test_a_batch_in_memory_has_the_bytes_of_photographs(
    shape: tuple[int, ...], size: int | tuple[int, Interpolation]
) -> None:
    """With and without the batched computation, which large images don't have."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    recipe = recipe_of(size=size) if isinstance(size, int) else recipe_of(size=12).at_size(*size)
    view_B, index_B = torch.arange(150), torch.arange(150) % 9
    one_by_one = Recipe.resident(recipe, images)(view_B, index_B)
    together = recipe.resident(images)(view_B, index_B)
    assert torch.equal(together, one_by_one)
    assert (cutter_of(images, recipe.size, recipe.interpolation) is None) == (max(shape[2:]) > 32)


def test_images_are_cut_one_by_one_if_pillow_computes_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros((2, 3, 7, 7), dtype=torch.uint8)
    monkeypatch.setattr("dhkd.data.images.cuts.PILLOWS", {"bilinear": Image.Resampling.HAMMING})
    assert cutter_of(images, 6, "bilinear") is None


# test images


@pytest.mark.parametrize(
    ("width", "height"), [(60, 45), (45, 60), (50, 50), (7, 5), (1, 1), (3, 40), (61, 47), (301, 200)]
)
@pytest.mark.parametrize(("size", "resize"), [(32, 36), (27, 32), (32, 32), (1, 2)])
def test_test_images_are_torchvisions(width: int, height: int, size: int, resize: int) -> None:
    photo = make_photo(3, width, height)
    expected = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size)])(photo)
    got = pixels_of(cut_of(photo, CenterCrop(size, resize).cut(height, width)))
    assert got.shape == (size, size, 3)
    assert (got == np.asarray(expected)).all()


def test_nothing_is_drawn_for_test_images() -> None:
    crop = CenterCrop(32, 36)
    draws = crop.draws(torch.zeros(7, dtype=torch.int64), torch.arange(7))
    assert isinstance(draws, Int64[Tensor, "7 0"])
    assert crop.cut(40, 50) == Cut((0, 0, 50, 40), (45, 36), (6, 2, 38, 34), mirrored=False)


# parameters


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"size": 0}, "size"),
        ({"size": 4097}, "size"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5, 0.4)}, "scale"),
        ({"scale": (0.5, 1.1)}, "scale"),
        ({"scale": (float("nan"), 1.0)}, "scale"),
        ({"ratio": (0.009, 1.0)}, "ratio"),
        ({"ratio": (1.0, 101.0)}, "ratio"),
        ({"ratio": (2.0, 0.5)}, "ratio"),
        ({"ratio": (1.0, float("nan"))}, "ratio"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_impossible_recipes_are_refused(changed: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^views\.{name}: expected .*, got [^\n]*$"):
        recipe_of(**changed)


@pytest.mark.parametrize("changed", [{"size": 1}, {"scale": (1.0, 1.0)}, {"ratio": (0.01, 100.0)}, {"seed": 2**63 - 1}])
def test_possible_recipes_are_not(changed: dict[str, object]) -> None:
    recipe = recipe_of(**changed)
    assert recipe.cut(draws_of(recipe, 1)[0], 40, 50).size == (recipe.size, recipe.size) == recipe.shape


def test_test_images_may_have_another_size() -> None:
    """Of the crop's usual proportion, unless `test_resize` is set; a teacher of another size is tested at its own."""
    assert recipe_of(size=160, test_size=224).at_test() == CenterCrop(224, 256)
    larger = recipe_of(size=160, test_size=224, test_resize=236)
    assert larger.at_test() == CenterCrop(224, 236)
    assert larger.identity == recipe_of(size=160).identity
    assert larger.at_size(448, "bilinear").at_test() == CenterCrop(448, 472)
    with pytest.raises(ConfigError, match=r"^views\.test_size: expected 1 to views\.test_resize, 200, got 224$"):
        recipe_of(test_resize=200, test_size=224)


def test_test_images_larger_than_what_they_are_cut_from_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^views\.test_resize: expected at least views\.size, 33, got 32$"):
        CenterCrop(size=33, resize=32)


def test_a_cache_can_record_what_the_pixels_depend_on() -> None:
    identity = json.loads(json.dumps(STANDARD.identity))
    assert identity == STANDARD.identity
    assert identity == {
        "kind": "random-resized-crop",
        "version": 1,
        "size": 224,
        "scale": [0.08, 1.0],
        "ratio": [0.75, 4 / 3],
        "flip": True,
        "seed": 0,
        "decoder": "pillow",
        "resize": "pillow bilinear, antialiased",
    }
    changes = [{"size": 32}, {"scale": (0.1, 1.0)}, {"ratio": (1.0, 1.0)}, {"flip": False}, {"seed": 1}]
    assert all(recipe_of(**changed).identity != STANDARD.identity for changed in changes)
