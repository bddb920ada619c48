"""With the decoder "scaled", a key's reduction and its pixels are functions of the key and of its file alone."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.decoding import decode
from dhkd.data.images.decoding_workers import PhotoRenderer
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.images.reduced import Decodings, Reduction, reduced_of
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from tests.data.images.test_photographs import CPU, Contents, keys_of
from tests.samples import encoded, make_photo

WHOLE = RandomResizedCrop(size=20, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, seed=5)
SCALED = replace(WHOLE, decoder="scaled")
SIZES = [(203, 150), (90, 121), (60, 45), (331, 260)]
KEYS = [(view, index) for index in range(len(SIZES)) for view in range(12)]


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return [encoded(make_photo(n, *size), quality=90) for n, size in enumerate(SIZES)]


def set_of(contents: list[bytes], channels: int = 3) -> PhotoSet:
    return PhotoSet(
        "photos", "train", Contents(contents), torch.arange(len(contents)), len(contents), channels=channels
    )


def render(recipe: Recipe, contents: list[bytes], *pairs: tuple[int, int], workers: int = 0) -> Tensor:
    return torch.cat(list(PhotoRenderer(set_of(contents), recipe, CPU, workers=workers).render([keys_of(*pairs)])))


def draws_of(recipe: Recipe, view: int, index: int) -> list[int]:
    (draws,) = recipe.draws(torch.tensor([view]), torch.tensor([index])).tolist()
    return draws


def transcribed(content: bytes, view: int, index: int) -> NDArray[np.uint8]:
    """A key's pixels, uint8 (H, W, C), written with Pillow only."""
    photo = Image.open(io.BytesIO(content))
    width, height = photo.size
    box, _, _, mirrored = SCALED.cut(draws_of(SCALED, view, index), height, width)
    factor = 1
    while factor < 8 and min(box[2] - box[0], box[3] - box[1]) >= 2 * factor * SCALED.size:
        factor *= 2
    photo.draft("RGB", (width // factor, height // factor))
    assert photo.size == (-(-width // factor), -(-height // factor))
    outer = [box[0] // factor, box[1] // factor, -(-box[2] // factor), -(-box[3] // factor)]
    inner = [side / factor - origin for side, origin in zip(box, outer[:2] * 2, strict=True)]
    square = photo.crop(tuple(outer)).resize((SCALED.size,) * 2, Image.Resampling.BILINEAR, tuple(inner))
    return np.asarray(ImageOps.mirror(square) if mirrored else square)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_key_gives_the_same_bytes_in_any_batch_and_order(jpegs: list[bytes], workers: int) -> None:
    together = render(SCALED, jpegs, *KEYS, workers=workers)
    expected = np.stack([transcribed(jpegs[key[1]], *key) for key in KEYS])
    assert (together.permute(0, 2, 3, 1).numpy() == expected).all()
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(render(SCALED, jpegs, *[KEYS[row] for row in order], workers=workers), together[order])


def test_only_views_that_need_no_more_are_reduced(jpegs: list[bytes]) -> None:
    factors = [SCALED.reduction(*SIZES[index][::-1], draws_of(SCALED, view, index)) for view, index in KEYS]
    assert set(factors) == {1, 2, 4, 8}
    whole, scaled = render(WHOLE, jpegs, *KEYS), render(SCALED, jpegs, *KEYS)
    differs = (whole != scaled).flatten(1).any(1).tolist()
    assert differs == [factor > 1 for factor in factors]
    # The same part of the picture: a shift by a pixel would change values by 8 on average.
    assert (whole.int() - scaled.int()).abs().float().mean() < 2


@pytest.mark.parametrize(
    ("side", "factor"), [(19, 1), (39, 1), (40, 2), (79, 2), (80, 4), (159, 4), (160, 8), (4000, 8)]
)
def test_the_shorter_side_of_a_box_keeps_at_least_the_size_of_the_view(side: int, factor: int) -> None:
    recipe = replace(SCALED, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    draws = draws_of(recipe, 0, 0)
    assert recipe.reduction(side, side + 1, draws) == recipe.reduction(side + 1, side, draws) == factor


def test_an_image_is_decoded_once_at_each_size() -> None:
    asked: list[int] = []

    def photo(reduction: Reduction | None) -> Image.Image:
        asked.append(1 if reduction is None else reduction(150, 203))
        return decode(content, reduction=reduction)

    content = encoded(make_photo(0, 203, 150))
    photos = Decodings(photo)
    sizes = [photos.at(None if factor == 1 else lambda h, w, f=factor: f).size for factor in (2, 1, 2, 8, 1, 8)]
    assert asked == [2, 1, 8]
    assert sizes == [(102, 75), (203, 150), (102, 75), (26, 19), (203, 150), (26, 19)]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_other_formats_are_decoded_whole(kind: str) -> None:
    contents = [encoded(make_photo(n, 203, 150), kind) for n in range(2)]
    keys = [(view, index) for index in range(2) for view in range(6)]
    assert torch.equal(render(WHOLE, contents, *keys), render(SCALED, contents, *keys))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_is_reduced_to_rgb(mode: str) -> None:
    content = encoded(make_photo(0, 203, 150).convert(mode))
    photo = decode(content, reduction=lambda height, width: 4)
    assert (photo.mode, photo.size) == ("RGB", (51, 38))
    assert reduced_of(photo) == (4, 150, 203)
    whole = decode(content)
    assert np.abs(np.asarray(whole.reduce(4), dtype=int) - np.asarray(photo)).mean() < 3


def test_grey_images_are_those_of_reduced_colours(jpegs: list[bytes]) -> None:
    index_B = torch.arange(len(jpegs))
    (grey,) = PhotoRenderer(set_of(jpegs, channels=1), SCALED, CPU).render([(index_B * 0, index_B)])
    (colour,) = PhotoRenderer(set_of(jpegs), SCALED, CPU).render([(index_B * 0, index_B)])
    assert grey.shape == (len(jpegs), 1, 20, 20)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert ((colour * weights).sum(1) - grey[:, 0]).abs().max() < 2


def test_a_damaged_file_is_refused_at_any_size(jpegs: list[bytes]) -> None:
    with pytest.raises(DataError, match="a damaged image"):
        decode(jpegs[0][:2000], reduction=lambda height, width: 8)


def test_operations_and_a_larger_network_see_reduced_photos(jpegs: list[bytes]) -> None:
    """A teacher of larger images has boxes of its own reduction."""
    recipe = build_recipe(
        "random-resized-crop", {"size": 20, "flip": True, "seed": 5, "decoder": "scaled", "policy": "randaugment"}
    )
    assert recipe.reduces
    larger = recipe.at_size(40, "bilinear")
    assert larger is not None
    assert larger.reduces
    twice = PhotoRenderer(set_of(jpegs), recipe, CPU).render_twice([keys_of(*KEYS)], larger)
    ((small, large),) = twice
    assert torch.equal(small, render(recipe, jpegs, *KEYS))
    assert torch.equal(large, render(larger, jpegs, *KEYS))
    draws = draws_of(recipe, 4, 3)
    assert (recipe.reduction(260, 331, draws), larger.reduction(260, 331, draws)) == (8, 4)


def test_the_decoder_is_part_of_the_identity_and_test_images_are_decoded_whole() -> None:
    assert (WHOLE.identity["decoder"], SCALED.identity["decoder"]) == ("pillow", "scaled")
    assert {**SCALED.identity, "decoder": "pillow"} == WHOLE.identity
    assert not SCALED.at_test().reduces


# The first 16 digits of the SHA-256 of the pixels of all keys and of the files. A change needs a new version.
GOLDEN = ("918e9fe8cc3fa929", "e934dab5c83e83ec")


def test_pixels_are_those_of_version_1(jpegs: list[bytes]) -> None:
    pixels = render(SCALED, jpegs, *KEYS).permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    files, found = (hashlib.sha256(part).hexdigest()[:16] for part in (b"".join(jpegs), pixels))
    assert (files, found) == GOLDEN


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "random-resized-crop",
            {"size": 20, "flip": True, "decoder": "nvjpeg"},
            "views of kind random-resized-crop: decoder: expected 'pillow' or 'scaled', got 'nvjpeg'",
        ),
        ("crop-flip", {"padding": 4, "flip": True, "decoder": "scaled"}, "unknown option 'decoder'"),
    ],
)
def test_wrong_settings_are_one_line(kind: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_recipe(kind, {"seed": 1, **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_in_memory_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"views\.decoder: scaled: expected image files"):
        SCALED.resident(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
