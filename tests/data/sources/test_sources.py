"""The data sets: their contents, and that foreign, damaged or half-written files are refused."""

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.sources import SOURCES, SPLITS, cifar100, digits, glyphs, load_source
from dhkd.data.sources.base import Place
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from tests.golden import draw_outlines
from tests.samples import make_images

SMALL = {"train": 3, "test": 1}  # glyphs of each character, where the tests need only a few


@pytest.fixture(autouse=True, scope="module")
def outlines_are_read_once() -> Iterator[None]:
    """Read once, because reading them takes longer than drawing a test's images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "_outlines", cache(glyphs._outlines))
        yield


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty, and a set of glyphs small enough to be drawn in many tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(glyphs, "PER_CLASS", SMALL)
    return tmp_path


@pytest.fixture(scope="module")
def train_glyphs() -> NDArray[np.uint8]:
    """Half of the train split, for speed; its mean and spread differ from the whole's by less than 0.002."""
    return glyphs.draw("train", 0, 10_000)


def mean_and_std(pixels_NCHW: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each channel's mean and std in units of full scale, computed quickly from counts of the levels."""
    counts = np.stack([np.bincount(pixels_NCHW[:, channel].ravel(), minlength=256) for channel in range(3)])
    share, level = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ level
    return mean, np.sqrt(share @ level**2 - mean**2)


# glyphs


@given(bounds=st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted), split=st.sampled_from(SPLITS))
@settings(max_examples=6, deadline=None)
def test_glyphs_are_a_function_of_split_and_position(bounds: list[int], split: str) -> None:
    start, stop = bounds
    if start < stop:
        assert (glyphs.draw(split, start, stop) == first_glyphs(split)[start:stop]).all()


@cache
def first_glyphs(split: str) -> NDArray[np.uint8]:
    return glyphs.draw(split, 0, 300)


def test_outlines_are_characters_of_the_fonts() -> None:
    """As matplotlib's copies of the fonts draw them; versions of FreeType may differ in the grey of an edge."""
    drawn = draw_outlines.outlines().reshape(glyphs.NUM_FONTS, glyphs.OUTLINE, 100, glyphs.OUTLINE)
    stored = glyphs._outlines().reshape(glyphs.NUM_FONTS, 100, glyphs.OUTLINE, glyphs.OUTLINE)
    difference = np.abs(drawn.swapaxes(1, 2).astype(np.int16) - stored)
    assert difference.max() <= 8
    assert difference.mean() < 0.01


def test_glyphs_are_all_different(train_glyphs: NDArray[np.uint8]) -> None:
    """No two are equal in a split, and no test image is a training image."""
    test = glyphs.draw("test", 0, 1000)
    images = [image.tobytes() for image in (*train_glyphs, *test)]
    assert len(set(images)) == len(images)


def test_glyphs_of_one_character_are_alike_and_of_others_not(train_glyphs: NDArray[np.uint8]) -> None:
    """Labels fit the pixels: images of one label share an outline, which differs from other labels'."""
    labels = glyphs.labels(0, len(train_glyphs))
    # The part that colours, noise and strokes leave: in an image, how far each pixel lies from the corners' colour.
    grey_NHW = np.abs(train_glyphs.astype(np.float64) - train_glyphs[:, :, :1, :1]).mean(axis=1)
    grey_NP = grey_NHW.reshape(len(grey_NHW), -1)
    means = [np.stack([grey_NP[labels == k][half::2].mean(axis=0) for k in range(100)]) for half in (0, 1)]
    centred = [mean - mean.mean(axis=0) for mean in means]
    first, second = (c / np.linalg.norm(c, axis=1, keepdims=True) for c in centred)
    assert (np.argmax(first @ second.T, axis=1) == np.arange(100)).mean() > 0.9


def test_labels_of_glyphs_are_the_characters_in_turn() -> None:
    assert len(set(glyphs.CHARACTERS)) == len(glyphs.CHARACTERS) == 100
    whole = glyphs.labels(0, glyphs.num_images("train"))
    assert (np.bincount(whole) == 200).all()
    assert (glyphs.labels(137, 911) == whole[137:911]).all()


def test_normalization_of_glyphs_is_that_of_their_pixels(train_glyphs: NDArray[np.uint8]) -> None:
    mean, std = mean_and_std(train_glyphs)
    np.testing.assert_allclose(mean, glyphs.MEAN, atol=0.005)
    np.testing.assert_allclose(std, glyphs.STD, atol=0.005)


def test_glyphs_as_a_data_set(cache_home: Path) -> None:
    for split, count in SMALL.items():
        images = load_source("glyphs", split)
        assert (images.name, images.split, images.num_classes) == ("glyphs", split, 100)
        assert isinstance(images.images_NCHW, UInt8[Tensor, f"{100 * count} 3 16 16"])
        assert isinstance(images.labels_N, Int64[Tensor, f"{100 * count}"])
        assert (images.images_NCHW.numpy() == glyphs.draw(split, 0, 100 * count)).all()
        assert images.labels_N.tolist() == list(range(100)) * count


def test_glyphs_are_drawn_once_and_then_read(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {split: load_source("glyphs", split) for split in SPLITS}
    (kept,) = (path for path in cache_home.rglob("*") if path.is_file())
    assert kept == cache_home / "dhkd" / "glyphs-v1.npz"
    before = kept.read_bytes(), kept.stat().st_mtime_ns, kept.stat().st_ino

    def no_drawing(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(glyphs, "draw", no_drawing)
    for split in SPLITS:
        assert load_source("glyphs", split).fingerprint() == drawn[split].fingerprint()
    assert (kept.read_bytes(), kept.stat().st_mtime_ns, kept.stat().st_ino) == before


def damage(kept: Path, how: str) -> None:
    content = kept.read_bytes()
    with np.load(kept) as arrays:
        tree = dict(arrays)
    if how == "empty":
        kept.write_bytes(b"")
    elif how == "truncated":
        kept.write_bytes(content[: len(content) // 2])
    elif how == "no archive":
        kept.write_bytes(b"precious notes")
    elif how == "one array":
        with kept.open("wb") as stream:
            np.save(stream, tree["train"])
    elif how == "pickle":
        kept.write_bytes(pickle.dumps(tree))
    elif how == "objects":
        np.savez(kept, train=np.array([None]), test=np.array([None]), sha256=tree["sha256"])
    elif how == "an array is missing":
        np.savez(kept, train=tree["train"], sha256=tree["sha256"])
    elif how == "another size":
        np.savez(kept, **{**tree, "test": tree["test"][:, :, :8]})
    elif how == "another type":
        np.savez(kept, **{**tree, "test": tree["test"].astype(np.int16)})
    elif how == "one level":
        tree["train"][1, 2, 3, 4] ^= 1
        np.savez(kept, **tree)
    elif how == "folder":
        kept.unlink()
        kept.mkdir()


@pytest.mark.parametrize(
    "how",
    [
        *("empty", "truncated", "no archive", "one array", "pickle", "objects"),
        *("an array is missing", "another size", "another type", "one level"),
    ],
)
def test_damaged_stored_glyphs_are_drawn_again(cache_home: Path, how: str) -> None:
    good = load_source("glyphs", "train").fingerprint()
    kept = cache_home / "dhkd" / "glyphs-v1.npz"
    before = kept.read_bytes()
    damage(kept, how)
    assert kept.read_bytes() != before
    assert load_source("glyphs", "train").fingerprint() == good
    assert kept.read_bytes() == before, "and kept for the next time"


@pytest.mark.parametrize("home", ["a file", "a folder in the way"])
def test_glyphs_that_can_not_be_stored_only_warn(cache_home: Path, caplog: pytest.LogCaptureFixture, home: str) -> None:
    good = load_source("glyphs", "train").fingerprint()
    kept = cache_home / "dhkd" / "glyphs-v1.npz"
    if home == "a file":
        kept.unlink()
        kept.parent.rmdir()
        kept.parent.write_text("not a folder")
    else:
        damage(kept, "folder")
    with caplog.at_level(logging.WARNING, logger="dhkd"):
        assert load_source("glyphs", "train").fingerprint() == good
    (record,) = caplog.records
    assert str(kept) in record.getMessage()
    assert "can't be written" in record.getMessage()
    assert not list(cache_home.rglob("*.partial"))


# digits


def test_digits_as_a_data_set() -> None:
    for split, count in (("train", 1437), ("test", 360)):
        images = load_source("digits", split)
        assert (images.name, images.split, images.num_classes) == ("digits", split, 10)
        assert isinstance(images.images_NCHW, UInt8[Tensor, f"{count} 3 8 8"])
        assert isinstance(images.labels_N, Int64[Tensor, f"{count}"])
        assert torch.bincount(images.labels_N).tolist() == pytest.approx([count / 10] * 10, rel=0.1)
        assert images.images_NCHW.aminmax() == (0, 255), "the scans' 0 to 16 fill the whole range"
        assert len(images.images_NCHW.unique()) == 17
        for channel in (1, 2):
            assert torch.equal(images.images_NCHW[:, 0], images.images_NCHW[:, channel])


def test_digits_are_scikit_learns_in_its_order() -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    both = [load_source("digits", split) for split in SPLITS]
    assert torch.cat([images.labels_N for images in both]).tolist() == original.target.tolist()
    grey = torch.cat([images.images_NCHW[:, 0] for images in both]).numpy()
    assert np.abs(grey / 255 * 16 - original.images).max() <= 16 / 255 / 2, "rounded to the nearest level"


def test_normalization_of_digits_is_that_of_their_pixels() -> None:
    mean, std = mean_and_std(load_source("digits", "train").images_NCHW.numpy())
    np.testing.assert_allclose(mean, digits.MEAN, atol=1e-3)
    np.testing.assert_allclose(std, digits.STD, atol=1e-3)


# cifar100


class TouchesAFile:
    """Stands for code that a forged pickle runs when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


def put_cifar(root: Path, content: bytes) -> Path:
    path = root / "cifar-100-python" / "train"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_a_missing_file_of_cifar_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_source("cifar100", "test", Place(root=str(tmp_path / "no")))
    line = str(caught.value)
    assert "\n" not in line
    for part in ("cifar-100-python/test", str(tmp_path / "no"), "No such file", "--data-root", "--download"):
        assert part in line
    assert not list(tmp_path.iterdir()), "nothing is made where nothing was"


def test_without_a_root_the_users_cache_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path / "dhkd" / "datasets")):
        load_source("cifar100", "train")


def test_a_forged_file_of_cifar_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    forged = pickle.dumps(TouchesAFile(harm))
    path = put_cifar(tmp_path, forged)
    with pytest.raises(DataError, match=rf"md5 expected {cifar100.MD5['train']}, got \w{{32}} .*--download") as caught:
        load_source("cifar100", "train", Place(root=str(tmp_path)))
    assert str(path) in str(caught.value)
    assert not harm.exists()
    pickle.loads(forged)
    assert harm.exists(), "the forgery would have worked"


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_a_truncated_file_of_cifar_is_refused(real_data: Path, tmp_path: Path, keep: int) -> None:
    content = (real_data / "cifar-100-python" / "test").read_bytes()[:keep]
    path = put_cifar(tmp_path, content).rename(tmp_path / "cifar-100-python" / "test")
    with pytest.raises(DataError, match="md5 expected f0ef6b0a") as caught:
        load_source("cifar100", "test", Place(root=str(tmp_path)))
    assert f"{path}: md5" in str(caught.value)
    assert f"({len(content):,} bytes)" in str(caught.value)


def test_the_splits_of_cifar_are_not_taken_for_each_other(real_data: Path, tmp_path: Path) -> None:
    put_cifar(tmp_path, (real_data / "cifar-100-python" / "test").read_bytes())
    with pytest.raises(DataError, match="md5 expected 16019d7e"):
        load_source("cifar100", "train", Place(root=str(tmp_path)))


@pytest.mark.parametrize("reason", [URLError("no\nnetwork"), RuntimeError("File not found or corrupted."), EOFError()])
def test_a_failed_download_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: Exception
) -> None:
    def fails(root: str, download: bool) -> None:
        print("chatter")  # noqa: T201  what torchvision does, which must not reach standard output
        raise reason

    monkeypatch.setitem(sys.modules, "torchvision.datasets", SimpleNamespace(CIFAR100=fails))
    with pytest.raises(DataError, match=r"the download to .* failed .*--data-root DIR") as caught:
        load_source("cifar100", "train", Place(root=str(tmp_path), download=True))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == "", "standard output is for results"


def test_real_cifar(real_data: Path) -> None:
    images = load_source(
        "cifar100", "test", Place(root=str(real_data), download=True)
    )  # nothing to fetch, so no network
    assert (images.name, images.split, images.num_classes) == ("cifar100", "test", 100)
    assert isinstance(images.images_NCHW, UInt8[Tensor, "10000 3 32 32"])
    assert torch.bincount(images.labels_N).tolist() == [100] * 100
    with (real_data / "cifar-100-python" / "test").open("rb") as stream:
        original = pickle.load(stream, encoding="latin1")
    red, green, blue = original["data"][7].reshape(3, 1024)
    for channel, plane in enumerate((red, green, blue)):
        assert images.images_NCHW[7, channel].flatten().tolist() == plane.tolist()
    assert images.labels_N.tolist() == original["fine_labels"]


def test_normalization_of_cifar_is_that_of_its_pixels(real_data: Path) -> None:
    images = load_source("cifar100", "train", Place(root=str(real_data)))
    assert isinstance(images.images_NCHW, UInt8[Tensor, "50000 3 32 32"])
    assert torch.bincount(images.labels_N).tolist() == [500] * 100
    mean, std = mean_and_std(images.images_NCHW[::10].numpy())  # a tenth is quicker and good enough for two digits
    np.testing.assert_allclose(mean, images.mean, atol=0.01)
    np.testing.assert_allclose(std, images.std, atol=0.01)


# load_source


@pytest.mark.parametrize(("name", "nearest"), [("cifar10", "cifar100"), ("Digits", "digits"), ("glyph", "glyphs")])
@pytest.mark.usefixtures("no_own_code")  # the message would list what other tests offered
def test_an_unknown_source_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_source(name, "train")
    valid = ", ".join(sorted([*SOURCES]))
    assert str(caught.value) == f"unknown data source {name!r}: did you mean {nearest!r}? valid are {valid}"


def test_an_unknown_split_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown split 'tests': did you mean 'test'\? valid are test, train$"):
        load_source("digits", "tests")


def test_a_limit_keeps_the_first() -> None:
    whole = load_source("digits", "train")
    for limit in (1, 100, len(whole)):
        limited = load_source("digits", "train", limit=limit)
        assert len(limited) == limit
        assert torch.equal(limited.images_NCHW, whole.images_NCHW[:limit])
        assert torch.equal(limited.labels_N, whole.labels_N[:limit])
    assert len(load_source("digits", "test", limit=7)) == 7


@pytest.mark.parametrize("limit", [-1, 0, 1438])
def test_an_impossible_limit_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.limit: expected 1 to 1437, the size of digits, got {limit}$"):
        load_source("digits", "train", limit=limit)


# ImageSet


def test_equal_sets_have_one_fingerprint() -> None:
    images = make_images()
    strided = images.images_NCHW.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    for same in (make_images(), replace(images, images_NCHW=strided), replace(images, name="other", split="test")):
        assert same.fingerprint() == images.fingerprint()


def test_fingerprints_tell_sets_apart() -> None:
    images = make_images(num_samples=6)
    one_pixel, one_label = images.images_NCHW.clone(), images.labels_N.clone()
    one_pixel[5, 2, 7, 7] ^= 1
    one_label[5] += 1
    others = [
        images,
        make_images(num_samples=6, seed=1),
        replace(images, images_NCHW=one_pixel),
        replace(images, labels_N=one_label),
        replace(images, images_NCHW=images.images_NCHW.flip(0), labels_N=images.labels_N.flip(0)),
        replace(images, images_NCHW=images.images_NCHW.flip(0)),
        replace(images, images_NCHW=images.images_NCHW.flip(1)),
        replace(images, images_NCHW=images.images_NCHW.reshape(6, 3, 4, 16)),
        replace(images, images_NCHW=images.images_NCHW.reshape(6, 3, 32, 2)),
        images.first(5),
    ]
    fingerprints = [other.fingerprint() for other in others]
    assert len(set(fingerprints)) == len(others)
    assert all(len(bytes.fromhex(fingerprint)) == 32 for fingerprint in fingerprints)


def test_first_keeps_the_first_samples_and_all_settings(images: ImageSet) -> None:
    head = images.first(10)
    assert len(head) == 10
    assert torch.equal(head.images_NCHW, images.images_NCHW[:10])
    assert torch.equal(head.labels_N, images.labels_N[:10])
    for field in ("name", "split", "num_classes", "mean", "std"):
        assert getattr(head, field) == getattr(images, field)
    assert head.fingerprint() == images.first(20).first(10).fingerprint()
