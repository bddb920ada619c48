"""A photograph's pixels are a function of its key; a file that can't be decoded is named, or replaced if allowed."""

import io
import logging
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.base import Decoding
from dhkd.data.images.decoding_workers import CHUNK, PhotoRenderer
from dhkd.data.images.encoded import EncodedFiles, PhotoSet
from dhkd.data.recipes.random_resized_crop import CenterCrop, RandomResizedCrop
from dhkd.data.recipes.unaugmented import AsTheyAre
from dhkd.data.render import Keys
from dhkd.data.sources import image_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from tests.samples import encoded, make_photo

CPU = torch.device("cpu")
RECIPE = RandomResizedCrop(size=24, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, seed=5)
SAMPLES = 12
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SHAPES = [(60, 45), (45, 60), (50, 50), (24, 24), (20, 90)]
WORKERS = [0, 2]
pytestmark = pytest.mark.usefixtures("no_workers_of_the_last_test")


class Contents(EncodedFiles):
    """Encoded images in memory, with a list of those that this process has read."""

    def __init__(self, contents: Sequence[bytes]) -> None:
        self.contents, self.reads = list(contents), []

    def read(self, index: int) -> bytes:
        self.reads.append(index)
        return self.contents[index]

    def name(self, index: int) -> str:
        return f"photo-{index}.jpg"

    def names(self, num_samples: int) -> bytes:
        return b"\n".join(b"photo-%d" % index for index in range(num_samples))

    def expect(self, index_B: Tensor) -> None:
        pass


def set_of(contents: Sequence[bytes]) -> PhotoSet:
    labels_N = torch.arange(len(contents)) % 3
    return PhotoSet("photos", "train", Contents(contents), labels_N, 3, MEAN, STD)


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return [encoded(make_photo(n, *SHAPES[n % len(SHAPES)]), quality=90) for n in range(SAMPLES)]


def transcribed(content: bytes, recipe: RandomResizedCrop, view: int, index: int) -> NDArray[np.uint8]:
    """A key's pixels, uint8 (H, W, C), written with Pillow only."""
    photo = Image.open(io.BytesIO(content)).convert("RGB")
    (draws,) = recipe.draws(torch.tensor([view]), torch.tensor([index])).tolist()
    cut = recipe.cut(draws, photo.height, photo.width)
    square = photo.crop(cut.box).resize((recipe.size, recipe.size), Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(square) if cut.mirrored else square)


def keys_of(*pairs: tuple[int, int]) -> Keys:
    view_B, index_B = torch.tensor(pairs).unbind(1)
    return view_B, index_B


def render(
    images: PhotoSet, *batches: Keys, recipe: RandomResizedCrop = RECIPE, workers: int = 0, allow_bad: int = 0
) -> list[Tensor]:
    return list(PhotoRenderer(images, recipe, CPU, workers=workers, allow_bad=allow_bad).render(batches))


ALL_KEYS = [(view, index) for view in range(3) for index in range(SAMPLES)]


@pytest.fixture(scope="module")
def pixels_by_key(jpegs: list[bytes]) -> dict[tuple[int, int], Tensor]:
    """uint8 (C, H, W) of each key, without the renderer."""
    return {
        (view, index): torch.from_numpy(transcribed(jpegs[index], RECIPE, view, index).copy()).permute(2, 0, 1)
        for view, index in ALL_KEYS
    }


# what a key's pixels are


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pixels_are_those_of_pillow(
    jpegs: list[bytes], pixels_by_key: dict[tuple[int, int], Tensor], workers: int
) -> None:
    (pixels,) = render(set_of(jpegs), keys_of(*ALL_KEYS), workers=workers)
    assert isinstance(pixels, UInt8[Tensor, f"{len(ALL_KEYS)} 3 24 24"])
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    for key, got in zip(ALL_KEYS, pixels, strict=True):
        assert torch.equal(got, pixels_by_key[key]), key
    mirrored = [RECIPE.cut(draws, 9, 9).mirrored for draws in RECIPE.draws(*keys_of(*ALL_KEYS)).tolist()]
    assert 0 < sum(mirrored) < len(mirrored), "both are among these keys"


@given(
    keys=st.lists(st.sampled_from(ALL_KEYS), min_size=2, max_size=40),
    cut=st.integers(1, 13),
    workers=st.sampled_from(WORKERS),
)
@settings(max_examples=8, deadline=None)
def test_pixels_do_not_depend_on_batch_order_or_workers(
    jpegs: list[bytes],
    pixels_by_key: dict[tuple[int, int], Tensor],
    keys: list[tuple[int, int]],
    cut: int,
    workers: int,
) -> None:
    view_B, index_B = keys_of(*keys)
    batches = list(zip(view_B.split(cut), index_B.split(cut), strict=True))
    pixels = render(set_of(jpegs), *batches, workers=workers)
    assert [len(batch) for batch in pixels] == [len(index_B) for _, index_B in batches]
    assert torch.equal(torch.cat(pixels), torch.stack([pixels_by_key[key] for key in keys]))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("rows", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7])
def test_batches_larger_than_a_workers_share_are_put_together_again(
    jpegs: list[bytes], pixels_by_key: dict[tuple[int, int], Tensor], rows: int, workers: int
) -> None:
    keys = [(row % 3, (row * 5) % SAMPLES) for row in range(rows)]
    large, small = render(set_of(jpegs), keys_of(*keys), keys_of((1, 2), (2, 1)), workers=workers)
    assert torch.equal(large, torch.stack([pixels_by_key[key] for key in keys]))
    assert torch.equal(small, torch.stack([pixels_by_key[key] for key in [(1, 2), (2, 1)]]))


def test_an_image_is_decoded_once_for_views_that_follow_one_another(jpegs: list[bytes]) -> None:
    images = set_of(jpegs)
    runs = [(0, 3), (1, CHUNK + 20), (2, CHUNK - 30), (3, 40), (0, 2)]  # of one image: more than a share, across one
    keys = [(view, index) for index, views in runs for view in range(views)]
    (pixels,) = render(images, keys_of(*keys))
    assert images.files.reads == [0, 1, 2, 3, 0]
    for key, got in list(zip(keys, pixels, strict=True))[:: len(keys) // 12]:
        assert (got.permute(1, 2, 0).numpy() == transcribed(jpegs[key[1]], RECIPE, *key)).all(), key


def test_test_images_are_cut_from_their_centre(jpegs: list[bytes]) -> None:
    index_B = torch.arange(SAMPLES)
    (pixels,) = PhotoRenderer(set_of(jpegs), CenterCrop(20, 24), CPU).render([(torch.zeros_like(index_B), index_B)])
    for index, (content, got) in enumerate(zip(jpegs, pixels, strict=True)):
        photo = Image.open(io.BytesIO(content))
        scale = 24 / min(photo.size)
        width, height = int(photo.width * scale + 1e-9), int(photo.height * scale + 1e-9)
        left, top = round((width - 20) / 2), round((height - 20) / 2)
        whole = photo.resize((width, height), Image.Resampling.BILINEAR)
        expected = np.asarray(whole.crop((left, top, left + 20, top + 20)))
        assert (got.permute(1, 2, 0).numpy() == expected).all(), index


def test_the_files_of_a_batch_are_fetched_before_they_are_read(jpegs: list[bytes]) -> None:
    """They are fetched in the order of the batches."""
    events: list[tuple[str, int]] = []

    class Recording(Contents):
        def expect(self, index_B: Tensor) -> None:
            events.append(("expect", int(index_B[0])))

        def read(self, index: int) -> bytes:
            events.append(("read", index))
            return super().read(index)

    images = replace(set_of(jpegs), files=Recording(jpegs))
    render(images, *(keys_of((0, index)) for index in range(5)))
    assert [index for kind, index in events if kind == "expect"] == list(range(5))
    assert all(events.index(("expect", index)) < events.index(("read", index)) for index in range(5))


def test_no_batches_give_no_pixels(jpegs: list[bytes]) -> None:
    for workers in WORKERS:
        assert render(set_of(jpegs), workers=workers) == []


# kinds of images


def grey(photo: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(photo.convert("L"))[:, :, None].repeat(3, axis=2)


def palette(photo: Image.Image, **options: object) -> bytes:
    return encoded(photo.quantize(64), "PNG", **options)


def with_alpha(photo: Image.Image) -> Image.Image:
    photo = photo.copy()
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    return photo


KINDS: dict[str, tuple[Callable[[Image.Image], bytes], Callable[[Image.Image], NDArray[np.uint8]], int]] = {
    "L": (lambda photo: encoded(photo.convert("L"), "PNG"), grey, 0),
    "LA": (lambda photo: encoded(with_alpha(photo).convert("LA"), "PNG"), grey, 1),
    "CMYK": (lambda photo: encoded(photo.convert("CMYK"), quality=100, subsampling=0), np.asarray, 12),
    "RGBA": (lambda photo: encoded(with_alpha(photo), "PNG"), np.asarray, 0),
    "P": (palette, lambda photo: np.asarray(photo.quantize(64).convert("RGB")), 0),
    "P, one colour transparent": (
        lambda photo: palette(photo, transparency=3),
        lambda photo: np.asarray(photo.quantize(64).convert("RGB")),
        0,
    ),
    "P, colours half transparent": (
        lambda photo: palette(photo, transparency=bytes(range(64))),
        lambda photo: np.asarray(photo.quantize(64).convert("RGB")),
        0,
    ),
    "1": (lambda photo: encoded(photo.convert("1"), "PNG"), lambda photo: grey(photo.convert("1")), 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_rgb(kind: str) -> None:
    write, expected, tolerance = KINDS[kind]
    photo = make_photo(8, 30, 20)
    whole = set_of([write(photo)]).in_memory(Decoding()).images_NCHW[0].permute(1, 2, 0).numpy()
    assert whole.shape == (20, 30, 3)
    assert np.abs(whole.astype(int) - expected(photo).astype(int)).max() <= tolerance
    (pixels,) = render(set_of([write(photo)]), keys_of((0, 0), (1, 0)))
    assert isinstance(pixels, UInt8[Tensor, "2 3 24 24"])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_levels_become_8_bit_ones(kind: str) -> None:
    levels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    whole = set_of([encoded(Image.fromarray(levels), kind)]).in_memory(Decoding()).images_NCHW[0]
    assert isinstance(whole, UInt8[Tensor, "3 32 32"])
    assert np.abs(whole.numpy().astype(int) - (levels >> 8)).max() <= 1


def test_exif_orientation_is_ignored() -> None:
    photo = make_photo(8, 40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    plain, turned = encoded(photo), encoded(photo, exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).size == (20, 40)
    first, second = (set_of([content]).in_memory(Decoding()).images_NCHW for content in (plain, turned))
    assert torch.equal(first, second)
    assert torch.equal(*(render(set_of([content]), keys_of((3, 0)))[0] for content in (plain, turned)))


# files that can't be decoded


@pytest.fixture
def folder(tmp_path: Path, jpegs: list[bytes]) -> Path:
    for number, content in enumerate(jpegs):
        (tmp_path / "photos" / f"class-{number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / f"class-{number % 3}" / f"{number}.jpg").write_bytes(content)
    return tmp_path / "photos"


def load(folder: Path) -> PhotoSet:
    return image_folder.images_below("train", folder, folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"a damaged image \(.*truncated.*\)"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_text("<html>404</html>"), r"no image in a known format \(16 bytes\)"),
    "random": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(999)),
        r"no image in a known format \(999 bytes\)",
    ),
    "a header and nothing else": (lambda path: path.write_bytes(path.read_bytes()[:300]), r"a damaged image \(.*\)"),
    "a folder": (become_a_folder, "Is a directory"),
    "deleted": (lambda path: path.unlink(), "No such file or directory"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_can_not_be_decoded_is_named_in_one_line(folder: Path, damage: str, workers: int) -> None:
    images = load(folder)
    spoil, reason = DAMAGES[damage]
    spoil(Path(images.files.name(7)))
    with pytest.raises(DataError) as caught:
        render(images, keys_of(*((0, index) for index in range(SAMPLES))), workers=workers)
    line = str(caught.value)
    assert "\n" not in line
    pattern = rf"image-folder: (.*) \(index 7\): expected an image, got: {reason}; replace it, or let .*--allow-bad N"
    assert (match := re.fullmatch(pattern, line)), line
    assert match[1] == images.files.name(7)


@pytest.mark.parametrize("workers", WORKERS)
def test_black_images_replace_as_many_bad_files_as_are_allowed(
    folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    images = load(folder)
    whole = render(images, keys_of(*ALL_KEYS))[0]
    for index in (2, 9):
        truncate(Path(images.files.name(index)))
    renderer = PhotoRenderer(images, RECIPE, CPU, workers=workers, allow_bad=2)
    with caplog.at_level(logging.WARNING, logger="dhkd"):
        pixels = torch.cat(list(renderer.render([keys_of(*ALL_KEYS), keys_of(*ALL_KEYS[::-1])])))
    expected = whole.clone()
    for row, (_, index) in enumerate(ALL_KEYS):
        if index in (2, 9):
            expected[row] = 0
    assert torch.equal(pixels, torch.cat([expected, expected.flip(0)]))
    assert renderer.unreadable.keys() == {images.files.name(2), images.files.name(9)}, "once, however many views"
    assert all("truncated" in reason for reason in renderer.unreadable.values())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(line.endswith("; a black image stands in") for line in lines)
    with pytest.raises(DataError, match=r"\(index \d+\): expected an image, .*; 1 such files are allowed; replace it"):
        render(images, keys_of(*ALL_KEYS), workers=workers, allow_bad=1)


def test_bad_files_are_counted_over_all_calls(folder: Path) -> None:
    images = load(folder)
    for index in (2, 9):
        truncate(Path(images.files.name(index)))
    renderer = PhotoRenderer(images, RECIPE, CPU, allow_bad=1)
    for view in range(3):
        list(renderer.render([keys_of((view, 2))]))
    with pytest.raises(DataError, match=r"\(index 9\)"):
        list(renderer.render([keys_of((0, 9))]))


# what goes wrong elsewhere


class Killing(Contents):
    """Kills the worker that reads image 5, as the operating system does when memory runs out."""

    parent = os.getpid()

    def read(self, index: int) -> bytes:
        if index == 5 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


# torch's handler of SIGCHLD raises wherever Python happens to be, in a callback of the garbage collector too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_ends_the_rendering(jpegs: list[bytes]) -> None:
    images = replace(set_of(jpegs), files=Killing(jpegs))
    with pytest.raises(
        DataError, match=r"^photos: a worker process .* died \(.*\); use fewer with --workers"
    ) as caught:
        render(images, *(keys_of((0, index)) for index in range(SAMPLES)), workers=2)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ConfigError])
def test_an_error_in_the_iterator_of_batches_surfaces(
    jpegs: list[bytes], kind: type[BaseException], workers: int
) -> None:
    def batches() -> Iterator[Keys]:
        yield keys_of((0, 0))
        raise kind("no more keys")

    with pytest.raises(kind, match="no more keys"):
        list(PhotoRenderer(set_of(jpegs), RECIPE, CPU, workers=workers).render(batches()))


def test_an_error_in_the_iterator_of_batches_is_not_taken_for_a_dead_worker(jpegs: list[bytes]) -> None:
    def batches() -> Iterator[Keys]:
        yield keys_of((0, 0))
        raise RuntimeError("no more keys")

    with pytest.raises(RuntimeError, match=r"^no more keys$"):
        list(PhotoRenderer(set_of(jpegs), RECIPE, CPU).render(batches()))


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_in_fetching_surfaces(jpegs: list[bytes], workers: int) -> None:
    class Unreachable(Contents):
        def expect(self, index_B: Tensor) -> None:
            raise DataError("no network")

    with pytest.raises(DataError, match=r"^no network$"):
        render(replace(set_of(jpegs), files=Unreachable(jpegs)), keys_of((0, 0)), workers=workers)


@pytest.mark.timeout(60)
def test_an_abandoned_rendering_leaves_no_process_behind(jpegs: list[bytes]) -> None:
    rendering = PhotoRenderer(set_of(jpegs), RECIPE, CPU, workers=2).render([keys_of((0, 0))] * 50)
    next(rendering)
    assert len(multiprocessing.active_children()) == 2
    rendering.close()
    assert not multiprocessing.active_children()


@pytest.mark.timeout(60)
def test_an_error_leaves_no_process_behind(jpegs: list[bytes]) -> None:
    images = set_of([*jpegs[:-1], b"text"])
    with pytest.raises(DataError, match=rf"\(index {SAMPLES - 1}\)") as caught:
        render(images, keys_of(*((0, index) for index in range(SAMPLES))), workers=2)
    assert not multiprocessing.active_children(), caught


# small images, all in memory


@pytest.mark.parametrize("workers", WORKERS)
def test_images_in_memory_are_the_files(workers: int) -> None:
    photos = [make_photo(n, 20, 12) for n in range(CHUNK + 6)]
    images = set_of([encoded(photo, "PNG") for photo in photos]).in_memory(Decoding(workers=workers))
    assert isinstance(images.images_NCHW, UInt8[Tensor, f"{len(photos)} 3 12 20"])
    assert images.images_NCHW.is_contiguous()
    for photo, got in zip(photos, images.images_NCHW, strict=True):
        assert (got.permute(1, 2, 0).numpy() == np.asarray(photo)).all()
    assert torch.equal(images.labels_N, torch.arange(len(photos)) % 3)
    assert (images.name, images.split, images.num_classes) == ("photos", "train", 3)
    assert (images.mean, images.std) == (MEAN, STD)


def test_images_of_several_sizes_are_refused(jpegs: list[bytes]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^photo-1\.jpg \(index 1\): expected 60×45 pixels, as the first image has, got 45×60; use"
        r" views\.kind=random-resized-crop[^\n]*$",
    ):
        set_of(jpegs).in_memory(Decoding(allow_bad=len(jpegs)))


def test_the_first_image_may_be_bad_if_bad_images_are_allowed(jpegs: list[bytes]) -> None:
    images = set_of([b"", b"text", jpegs[0], jpegs[0]]).in_memory(Decoding(allow_bad=2))
    assert images.images_NCHW.flatten(1).any(dim=1).tolist() == [False, False, True, True]
    with pytest.raises(DataError, match=r"photo-1\.jpg \(index 1\): expected an image.*--allow-bad N$"):
        set_of([b"", b"text", jpegs[0]]).in_memory(Decoding(allow_bad=1))


@pytest.mark.parametrize(("content", "reason"), [(b"", "an empty file"), (b"text", "no image in a known format")])
def test_a_first_image_that_can_not_be_decoded_is_named(jpegs: list[bytes], content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^photos: photo-0\.jpg \(index 0\): expected an image, got: {reason}"):
        set_of([content, *jpegs]).in_memory(Decoding())


def test_a_bad_image_in_memory_is_black_if_allowed() -> None:
    contents = [encoded(make_photo(n, 20, 12), "PNG") for n in range(4)]
    contents[2] = contents[2][:-100]
    images = set_of(contents).in_memory(Decoding(allow_bad=1))
    assert images.images_NCHW.flatten(1).any(dim=1).tolist() == [True, True, False, True]
    with pytest.raises(DataError, match=r"photo-2\.jpg \(index 2\)"):
        set_of(contents).in_memory(Decoding())


def test_unaugmented_images_need_no_draws() -> None:
    recipe = AsTheyAre((12, 20))
    assert recipe.shape == (12, 20)
    assert recipe.draws(torch.zeros(3, dtype=torch.int64), torch.arange(3)).shape == (3, 0)


# PhotoSet


def test_first_keeps_the_first_samples_and_all_settings(jpegs: list[bytes]) -> None:
    images = set_of(jpegs)
    head = images.first(5)
    assert len(head) == 5
    assert torch.equal(head.labels_N, images.labels_N[:5])
    for field in ("name", "split", "files", "num_classes", "mean", "std"):
        assert getattr(head, field) == getattr(images, field)
    assert head.fingerprint() == images.first(8).first(5).fingerprint()
    assert torch.equal(render(head, keys_of((1, 4)))[0], render(images, keys_of((1, 4)))[0])


def test_fingerprints_tell_sets_apart(folder: Path) -> None:
    images = load(folder)
    files = images.files
    one_label = images.labels_N.clone()
    one_label[-1] = (one_label[-1] + 1) % 3
    other_order = image_folder.FolderFiles(folder, files._paths_N[::-1])
    other_name = files._paths_N.copy()
    other_name[3] = b"class-0/x.jpg"
    sets = [
        images,
        images.first(SAMPLES - 1),
        replace(images, labels_N=one_label),
        replace(images, labels_N=images.labels_N.flip(0)),
        replace(images, files=other_order),
        replace(images, files=image_folder.FolderFiles(folder, other_name)),
    ]
    fingerprints = [changed.fingerprint() for changed in sets]
    assert len(set(fingerprints)) == len(sets)
    assert all(len(bytes.fromhex(fingerprint)) == 32 for fingerprint in fingerprints)


def test_equal_sets_have_one_fingerprint(folder: Path, tmp_path: Path) -> None:
    """The folder may be anywhere."""
    images = load(folder)
    folder.rename(tmp_path / "elsewhere")
    moved = load(tmp_path / "elsewhere")
    for same in (moved, replace(images, name="other", split="test"), replace(images, mean=STD)):
        assert same.fingerprint() == images.fingerprint()


# real photographs


def test_real_photographs(photographs: Path) -> None:
    images = load(photographs)
    assert images.num_classes == 250
    recipe = replace(RECIPE, size=64)
    modes = {index: Image.open(images.files.name(index)).mode for index in range(len(images))}
    chosen = [index for index, mode in modes.items() if mode != "RGB"] + list(range(20))
    assert len(chosen) > 20, "grey ones are among them"
    pixels = torch.cat(render(images, keys_of(*((7, index) for index in chosen)), recipe=recipe, workers=2))
    for index, got in zip(chosen, pixels, strict=True):
        expected = transcribed(images.files.read(index), recipe, 7, index)
        assert (got.permute(1, 2, 0).numpy() == expected).all(), images.files.name(index)
