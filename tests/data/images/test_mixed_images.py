"""Mixed pictures have the same bytes in memory and from files, and files are decoded as rarely as the groups allow."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dhkd.data.cache.blocks import Block
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.base import Decoding
from dhkd.data.images.decoding import Photo
from dhkd.data.images.decoding_workers import CHUNK, MOST_MIXED, PhotoRenderer
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.images.reduced import Reduction
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.base import Recipe
from dhkd.data.render import Keys
from dhkd.data.sources import image_folder
from dhkd.data.sources.image_folder import FolderFiles
from torch import Tensor

from tests.samples import make_images, make_photo, pixels_of

CPU = torch.device("cpu")
SAMPLES, GROUP, KEYS = 37, 6, 90
MIX = {"mixup": 0.8, "cutmix": 1.0, "probability": 0.9, "group": GROUP}
pytestmark = pytest.mark.usefixtures("no_workers_of_the_last_test")


def recipe_of(mix: object = None, **further: object) -> Recipe:
    """Crops of 12 × 12 pixels, some of them solarised, mixed unless `mix` is None."""
    mixing = {} if mix is None else {"mix": mix}
    return build_recipe(
        "random-resized-crop", {"size": 12, "flip": True, "seed": 3, "solarize": 0.5, **mixing, **further}
    )


class Counted(FolderFiles):
    """Image files that count how often each is decoded."""

    decoded: Counter[int]

    def photo(self, index: int, reduction: Reduction | None = None) -> Photo:
        self.decoded[index] += 1
        return super().photo(index, reduction)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PhotoSet:
    """A folder of PNG files: 37 images of 16 × 16 pixels in 3 classes."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(SAMPLES):
        (place := root / f"class{index % 3}").mkdir(exist_ok=True)
        make_photo(index, 16, 16).save(place / f"{index:02}.png")
    return image_folder.images_below("train", root, root)


def counted(photos: PhotoSet) -> tuple[PhotoSet, Counter[int]]:
    assert isinstance(photos.files, FolderFiles)
    files = Counted(photos.files._folder, photos.files._paths_N)
    files.decoded = Counter()
    return replace(photos, files=files), files.decoded


def shuffled_keys(num: int, num_samples: int = SAMPLES) -> Keys:
    generator = torch.Generator().manual_seed(1)
    view_B = torch.randint(0, 1 << 20, (num,), generator=generator)
    return view_B, torch.randint(0, num_samples, (num,), generator=generator)


def keys_of_views(start: int, stop: int, num_views: int) -> Keys:
    """All views of the first sample, then all of the second, as in caching."""
    index_B = torch.arange(start, stop)
    return torch.arange(num_views).repeat(len(index_B)), index_B.repeat_interleave(num_views)


@pytest.fixture(scope="module")
def expected(photos: PhotoSet) -> Tensor:
    """The pictures of `shuffled_keys(KEYS)`, each rendered by itself, and mixed with its partner here."""
    images, plain, mixed = photos.in_memory(Decoding()), recipe_of(), recipe_of(MIX)
    rows = []
    for view_1, index_1 in zip(*(keys.split(1) for keys in shuffled_keys(KEYS)), strict=True):
        drawn = mixed.mixing.drawn(view_1, index_1, SAMPLES, (12, 12))
        own, partner = (
            pixels_of(plain, images.images_NCHW[i], plain.draws(view_1, i)) for i in (index_1, drawn.partner_B)
        )
        share, (top, left, bottom, right) = int(drawn.share_B), drawn.box_B4[0].tolist()
        row = (share * own.long() + (256 - share) * partner.long() + 128 >> 8).byte()
        row[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        rows.append(row)
    return torch.cat(rows)


def test_a_picture_is_mixed_from_two_unmixed_ones(photos: PhotoSet, expected: Tensor) -> None:
    """In memory, whatever the batch."""
    renderer = photos.in_memory(Decoding()).renderer(recipe_of(MIX), CPU, Decoding())
    view_B, index_B = shuffled_keys(KEYS)
    for rows in (7, 64, KEYS):
        batches = zip(view_B.split(rows), index_B.split(rows), strict=True)
        assert torch.equal(torch.cat(list(renderer.render(batches))), expected)
    unmixed = photos.in_memory(Decoding()).renderer(recipe_of(), CPU, Decoding())
    (plain,) = unmixed.render([(view_B, index_B)])
    assert 0.6 < (plain != expected).flatten(1).any(1).float().mean() < 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rows", [7, KEYS])
def test_files_give_the_same_bytes(photos: PhotoSet, expected: Tensor, workers: int, rows: int) -> None:
    view_B, index_B = shuffled_keys(KEYS)
    renderer = photos.renderer(recipe_of(MIX), CPU, Decoding(workers=workers))
    batches = zip(view_B.split(rows), index_B.split(rows), strict=True)
    pixels = list(renderer.render(batches))
    assert torch.equal(torch.cat(pixels), expected)
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in pixels)


def test_a_teacher_of_another_size_sees_the_same_mixture(photos: PhotoSet) -> None:
    recipe, keys = recipe_of(MIX), shuffled_keys(60)
    larger = recipe.at_size(24, "bilinear")
    assert larger is not None
    sets: list[PhotoSet | ImageSet] = [photos, photos.in_memory(Decoding())]
    pairs = [next(iter(images.renderer(recipe, CPU, Decoding()).render_twice([keys], larger))) for images in sets]
    for of_files, in_memory in zip(*pairs, strict=True):
        assert torch.equal(of_files, in_memory)
    small, large = pairs[0]
    assert large.shape == (60, 3, 24, 24)
    reduced = torch.nn.functional.avg_pool2d(large.float(), 2)
    assert (reduced - small.float()).abs().mean() < 8
    assert (reduced - small.float()[torch.randperm(60)]).abs().mean() > 40


# decodings


def decodings(photos: PhotoSet, recipe: Recipe, batches: Iterable[Keys]) -> Counter[int]:
    images, decoded = counted(photos)
    deque(images.renderer(recipe, CPU, Decoding()).render(batches), maxlen=0)
    return decoded


@pytest.mark.parametrize("num_views", [1, 4])
def test_caching_decodes_each_file_once(photos: PhotoSet, num_views: int) -> None:
    """A batch begins and ends between groups, so a block that begins inside one decodes a few files of it again."""
    photos = photos.first(36)
    for start, batch_size in ((0, 20), (0, 36), (9, 17)):
        block = Block(0, 0, start, 36)
        batches = list(block.batches(batch_size, GROUP))
        assert all(stop % GROUP == 0 for _, stop in batches[:-1])
        decoded = decodings(photos, recipe_of(MIX), (keys_of_views(*bounds, num_views) for bounds in batches))
        assert set(range(start, 36)) <= set(decoded)
        assert set(decoded) <= set(range(start // GROUP * GROUP, 36))
        assert set(decoded.values()) == {1}


def test_training_decodes_the_images_of_a_chunk_and_their_partners(photos: PhotoSet) -> None:
    view_B, index_B = shuffled_keys(KEYS)
    recipe = recipe_of(MIX)
    partner_B = recipe.mixing.drawn(view_B, index_B, SAMPLES, (12, 12)).partner_B
    bounds = photos.renderer(recipe, CPU, Decoding())._bounds(index_B)
    assert len(bounds) == 3
    chunks = [torch.cat([index_B[start:stop], partner_B[start:stop]]).unique() for start, stop in pairwise(bounds)]
    assert decodings(photos, recipe, [(view_B, index_B)]) == Counter(torch.cat(chunks).tolist())
    rarely = recipe_of({**MIX, "probability": 1e-9})
    chunks = [index_B[start:stop].unique() for start, stop in pairwise(bounds)]
    assert decodings(photos, rarely, [(view_B, index_B)]) == Counter(torch.cat(chunks).tolist()), "no other is needed"


def test_chunks_stay_small_whatever_the_group() -> None:
    """64 keys and whole groups; more than 256 keys only if they are the views of one image."""
    images = make_images(900, size=2)
    renderer = object.__new__(PhotoRenderer)
    renderer.images, renderer.recipe = images, recipe_of({**MIX, "group": 100})
    assert renderer._bounds(torch.arange(900)) == [*range(0, 900, 100), 900]
    for num_views, rows in ((2, 200), (4, MOST_MIXED), (300, 300)):
        bounds = torch.tensor(renderer._bounds(torch.arange(0, 200).repeat_interleave(num_views)))
        assert bounds.diff().max() == rows
        assert bounds[-1] == 200 * num_views
    renderer.recipe = recipe_of({**MIX, "group": 2})
    assert renderer._bounds(torch.arange(900))[:3] == [0, CHUNK, 2 * CHUNK]


def test_an_unreadable_partner_is_named_or_black(photos: PhotoSet, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for index in range(4):
        (place := root / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
        make_photo(index, 16, 16).save(place / f"{index}.png")
    images = image_folder.images_below("train", root, root)
    recipe = recipe_of({"mixup": 1.0})
    view_B, index_B = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    drawn = recipe.mixing.drawn(view_B, index_B, 4, (12, 12))
    bad = int(drawn.partner_B[0])
    (root / images.files.name(bad)).write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{images.files.name(bad)}.*expected an image"):
        list(images.renderer(recipe, CPU, Decoding()).render([(view_B, index_B)]))
    renderer = images.renderer(recipe, CPU, Decoding(allow_bad=1))
    (mixed,) = renderer.render([(view_B, index_B)])
    (plain,) = images.renderer(recipe_of(), CPU, Decoding()).render([(view_B, index_B)])
    assert torch.equal(mixed[0].long(), drawn.share_B[0] * plain[0].long() + 128 >> 8)
    assert list(renderer.unreadable) == [images.files.name(bad)]


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_one_image_has_no_partner(photos: PhotoSet, kind: str) -> None:
    images = photos if kind == "files" else photos.in_memory(Decoding())
    with pytest.raises(ConfigError, match=r"^views.mix: expected at least 2 images to mix, got 1; leave mix out$"):
        images.first(1).renderer(recipe_of(MIX), CPU, Decoding())


def test_in_memory_mixing_of_crops() -> None:
    """The recipe that renders a batch with one gather, with images that keep their size."""
    images = make_images(50)
    recipe = build_recipe("crop-flip", {"padding": 1, "flip": True, "seed": 3, "mix": MIX})
    plain = ResidentRenderer(images, build_recipe("crop-flip", {"padding": 1, "flip": True, "seed": 3}), CPU)
    view_B, index_B = torch.arange(18).repeat(50), torch.arange(50).repeat_interleave(18)
    got = ResidentRenderer(images, recipe, CPU).pixels(view_B, index_B)
    drawn = recipe.mixing.drawn(view_B, index_B, 50, (8, 8))
    own, partners = plain.pixels(view_B, index_B), plain.pixels(view_B, drawn.partner_B)
    row_B = torch.arange(len(index_B))
    assert torch.equal(got, drawn.pixels(torch.cat([own, partners]), row_B, row_B + len(row_B)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: compares its pixels with the CPU's")
def test_a_gpu_gives_the_same_bytes() -> None:
    images, (view_B, index_B) = make_images(50), shuffled_keys(500, 50)
    recipe = build_recipe("crop-flip", {"padding": 1, "flip": True, "seed": 3, "mix": MIX})
    on_cpu, on_gpu = (ResidentRenderer(images, recipe, torch.device(kind)) for kind in ("cpu", "cuda"))
    assert torch.equal(on_cpu.pixels(view_B, index_B), on_gpu.pixels(view_B.cuda(), index_B.cuda()).cpu())
