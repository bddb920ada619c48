"""Data sets of libraries, files and code: what can't be read right is refused in one line, and no code in data runs."""

import io
import logging
import os
import pickle
import re
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from dhkd.data.errors import DhkdError, OwnCodeError
from dhkd.data.images.base import Decoding, Images
from dhkd.data.own_code import imported, offer
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.sources import load_source
from dhkd.data.sources.base import Place
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from tests.e2e.command_line import assert_one_line, dhkd
from tests.samples import encoded

pytestmark = pytest.mark.timeout(60)

PIXEL = encoded(Image.new("RGB", (4, 4), (200, 100, 50)), "PNG")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_own_code: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


def load(source: str, root: Path | None, split: str = "train", **place: Any) -> Images:
    return load_source(source, split, Place(str(root) if root else None, **place))


def refused(call: Callable[[], object], *says: str) -> str:
    """The message of a call that has to be refused: one line, with all of `says`."""
    with pytest.raises(DhkdError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for words in says:
        assert words in line, line
    return line


# the datasets library

Column = tuple[Any, Sequence[Any]]  # a feature and its values


def table(root: Path, split: str = "train", **columns: Column) -> Path:
    """Write a parquet file of a split; the default columns are an image and a label in each of four rows."""
    import datasets

    datasets.disable_progress_bars()
    usual: dict[str, Column] = {"image": images(), "label": (datasets.Value("int64"), [0, 1, 0, 1])}
    chosen = {name: column for name, column in (usual | columns).items() if column}
    features = datasets.Features({name: feature for name, (feature, _) in chosen.items()})
    values = {name: list(column) for name, (_, column) in chosen.items()}
    root.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(values, features).to_parquet(root / f"{split}.parquet")
    return root


def images(*contents: bytes | None, path: str | None = None) -> Column:
    import datasets

    rows = [{"bytes": content, "path": path} for content in contents or [PIXEL] * 4]
    return datasets.Image(), rows


def value(dtype: str, *values: Any) -> Column:
    import datasets

    return datasets.Value(dtype), values


def classes(names: Sequence[str], *values: int) -> Column:
    import datasets

    return datasets.ClassLabel(names=list(names)), values


NONE: Any = ()
TABLES: dict[str, tuple[Callable[[Path], object], dict[str, Any], tuple[str, ...]]] = {
    "no image": (lambda p: table(p, image=NONE), {}, ("expected one column of images, found 0 among label (label)",)),
    "two images": (
        lambda p: table(p, thumb=images()),
        {},
        ("expected one column of images, found 2", "data.options.image"),
    ),
    "no label": (lambda p: table(p, label=NONE), {}, ("expected one column of labels, found 0 among image (image)",)),
    "two labels": (
        lambda p: table(p, label=NONE, a=value("int64", 0, 1, 0, 1), b=value("int64", 0, 1, 0, 1)),
        {},
        ("expected one column of labels, found 2 among image (image), a (label), b (label)",),
    ),
    "two class labels": (
        lambda p: table(p, label=classes("ab", 0, 1, 0, 1), coarse=classes("xy", 0, 0, 1, 1)),
        {},
        ("found 2 among", "coarse (class)"),
    ),
    "an image that is null": (
        lambda p: table(p, image=(images()[0], [images()[1][0], None, *images()[1][:2]])),
        {},
        ("row 1: expected an image, got null",),
    ),
    "labels that are floats": (
        lambda p: table(p, label=value("float64", 0.0, 1.0, 0.5, 1.0)),
        {"options": {"label": "label"}},
        ("labels expected whole numbers or names, got 0.0 (float) (row 0)",),
    ),
    "a negative label": (lambda p: table(p, label=value("int64", 0, 1, -1, 1)), {}, ("expected 0 or more, got -1",)),
    "labels all withheld": (lambda p: table(p, label=classes("ab", *[-1] * 4)), {}, ("got -1 alone; they are wit",)),
    "a label that is null": (
        lambda p: table(p, label=value("int64", 0, 1, None, 1)),
        {},
        ("whole numbers or names, got no label (row 2)",),
    ),
    "a label beyond its classes": (
        lambda p: table(p, label=value("int64", 0, 1, 5, 1)),
        {"num_classes": 2},
        ("labels expected 0 to 1, got 5 (row 2)",),
    ),
    "no rows": (lambda p: table(p, image=(images()[0], []), label=value("int64")), {}, ("corresponds to no data",)),
    "a parquet that ends too early": (
        lambda p: cut(table(p) / "train.parquet"),
        {},
        ("datasets can't read it",),
    ),
    "text that is called parquet": (
        lambda p: (p / "train.parquet").write_text("no table at all, but long enough"),
        {},
        ("datasets can't read it",),
    ),
    "no files": (lambda p: None, {}, ("datasets can't read it",)),
    "a file of the machine": (
        lambda p: table(p, image=images(*[None] * 4, path="/etc/hostname")),
        {},
        ("/etc/hostname", "leads outside of the data root"),
    ),
    "a column that isn't there": (table, {"options": {"image": "imge"}}, ("unknown column 'imge': did you mean 'ima",)),
    "a column of another kind": (table, {"options": {"image": "label"}}, ("label: expected encoded images",)),
    "an unknown option": (table, {"options": {"imge": "a"}}, ("unknown option 'imge': did you mean 'image'",)),
    "a number as a name": (table, {"options": {"image": 3}}, ("image: expected a valid string, got 3",)),
    "a split that isn't there": (table, {"train": "trian"}, ("unknown split 'trian': did you mean 'train'",)),
    "labels from 1": (
        lambda p: table(p, label=value("int64", 1, 2, 3, 1)),
        {},
        ("got 1 to 3, so nothing has label 0", "data.first_label=1"),
    ),
    "identifiers as labels": (
        lambda p: table(p, label=value("int64", 0, 2**40, 0, 1)),
        {},
        ("too many for classes", "data.classes=number"),
    ),
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_would_go_wrong_is_refused(kind: str, tmp_path: Path) -> None:
    write, place, says = TABLES[kind]
    root = tmp_path / "tables"
    root.mkdir()
    write(root)
    refused(lambda: rendered(load("huggingface", root, **place)), "huggingface", *says)


def rendered(images: Images, *indices: int) -> torch.Tensor:
    """The pixels of these samples, or of all."""
    index_B = torch.tensor(indices or range(len(images)))
    renderer = images.renderer(RandomResizedCrop(size=4, flip=False, seed=0), CPU, Decoding())
    return next(iter(renderer.render([(torch.zeros_like(index_B), index_B)])))


def test_a_damaged_image_in_a_table_is_named(tmp_path: Path) -> None:
    root = table(tmp_path / "t", image=images(PIXEL, PIXEL, b"no image", PIXEL))
    refused(lambda: rendered(load("huggingface", root)), "huggingface: train, row 2", "expected an image")


def test_a_set_without_a_test_split_names_the_remedy(tmp_path: Path) -> None:
    refused(lambda: load("huggingface", table(tmp_path / "t"), "test"), "found train", "data.val_fraction")


def test_withheld_test_labels_give_way_to_the_validation_split(tmp_path: Path) -> None:
    for split, labels in (("train", (0, 1, 0, 1)), ("validation", (1, 1, 0, 0)), ("test", (-1, -1, -1, -1))):
        root = table(tmp_path / "t", split, label=classes(("cat", "dog"), *labels))
    test = load("huggingface", root, "test")
    assert test.labels_N.tolist() == [1, 1, 0, 0]
    assert test.class_names == ("cat", "dog")
    refused(lambda: load("huggingface", root, "test", test="test"), "got -1 (row 0)")


def test_other_classes_in_the_test_split_are_refused(tmp_path: Path) -> None:
    table(tmp_path / "t", label=classes("ab", 0, 1, 0, 1))
    root = table(tmp_path / "t", "test", label=classes("ba", 0, 1, 0, 1))
    refused(lambda: load("huggingface", root, "test"), "expected the classes of the training split")


def test_texts_as_labels_are_sorted_and_a_list_reorders_them(tmp_path: Path) -> None:
    root = table(tmp_path / "t", label=value("string", "b", "a", "c", "a"))
    named = load("huggingface", root)
    assert (named.labels_N.tolist(), named.class_names) == ([1, 0, 2, 0], ("a", "b", "c"))
    (root / "order.txt").write_text("c\na\nb\n")
    assert load("huggingface", root, classes="order.txt").labels_N.tolist() == [2, 1, 0, 1]
    (root / "order.txt").write_text("c\na\n")
    refused(lambda: load("huggingface", root, classes="order.txt"), "label 'b', which it lacks")


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    refused(lambda: load("huggingface", tmp_path), "pip install 'dhkd[huggingface]'")


# arrays

U8 = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
Y = np.array([0, 1, 0, 1])


def npz(root: Path, **arrays: NDArray[Any]) -> None:
    np.savez(root / "train.npz", **arrays)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def pickled(root: Path) -> None:
    np.save(root / "train-images.npy", U8)
    np.save(root / "train-labels.npy", np.array([Bomb(), 1, 0, 1], dtype=object), allow_pickle=True)


def bare_pickle(root: Path) -> None:
    (root / "train-images.npy").write_bytes(pickle.dumps(Bomb()))
    np.save(root / "train-labels.npy", Y)


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def announced(root: Path) -> None:
    (root / "train-images.npy").write_bytes(header((10**9, 1000, 1000)) + bytes(1000))
    np.save(root / "train-labels.npy", Y)


def announced_in_archive(root: Path) -> None:
    with zipfile.ZipFile(root / "train.npz", "w") as archive:
        archive.writestr("images.npy", header((10**9, 1000, 1000)) + bytes(1000))
        archive.writestr("labels.npy", header((4,), "<i8") + Y.tobytes())


def negative(root: Path) -> None:
    (root / "train-images.npy").write_bytes(header((-4, 8, 8)) + U8.tobytes())
    np.save(root / "train-labels.npy", Y)


def damaged_archive(root: Path) -> None:
    npz(root, images=U8, labels=Y)
    content = bytearray((root / "train.npz").read_bytes())
    at = content.index(U8.tobytes())
    content[at + 5] ^= 255
    (root / "train.npz").write_bytes(content)


ARRAYS: dict[str, tuple[Callable[[Path], object], dict[str, Any], tuple[str, ...]]] = {
    "a pickle inside": (pickled, {}, ("train-labels.npy", "got Python objects, which could run code")),
    "a pickle called .npy": (bare_pickle, {}, ("train-images.npy", "a damaged or foreign one")),
    "an archive with a pickle": (
        lambda p: npz(p, images=U8, labels=np.array([Bomb(), 1, 0, 1], dtype=object)),
        {},
        ("got Python objects",),
    ),
    "a header that announces a petabyte": (announced, {}, ("announces 1,000,000,000,000,128 bytes, got 1,128",)),
    "a member that announces a petabyte": (announced_in_archive, {}, ("images.npy: its header announces 1,000,000",)),
    "a negative size": (negative, {}, ("train-images.npy",)),
    "a flipped byte": (damaged_archive, {}, ("Bad CRC-32",)),
    "an archive that ends too early": (
        lambda p: (npz(p, images=U8, labels=Y), cut(p / "train.npz")),
        {},
        ("a damaged or foreign one",),
    ),
    "an empty archive": (npz, {}, ("expected arrays, found none",)),
    "floats": (
        lambda p: npz(p, images=U8 / 255, labels=Y),
        {},
        ("images expected uint8, 0 to 255, got float64 (the first one from 0 to 0.247",),
    ),
    "labels that are floats": (lambda p: npz(p, images=U8, labels=Y / 2), {}, ("whole numbers or names, got float64",)),
    "a negative label": (lambda p: npz(p, images=U8, labels=Y - 1), {}, ("labels expected 0 or more, got -1",)),
    "one-hot labels": (
        lambda p: npz(p, images=U8, labels=np.eye(2, dtype=int)[Y]),
        {"options": {"images": "images", "labels": "labels"}},
        ("labels expected of shape (N,), got labels of (4, 2); if they are one-hot",),
    ),
    "fewer labels": (lambda p: npz(p, images=U8, labels=Y[:3]), {}, ("an image for each of 3 labels, got images of",)),
    "samples last": (
        lambda p: npz(p, images=np.zeros((8, 9, 3, 4), np.uint8), labels=Y),
        {},
        ("move the axis of the samples to the front",),
    ),
    "channels first or last": (
        lambda p: npz(p, images=np.zeros((4, 3, 5, 3), np.uint8), labels=Y),
        {},
        ("may have their channels first or last; set data.options.layout",),
    ),
    "flattened images": (lambda p: npz(p, images=U8.reshape(4, 64), labels=Y), {}, ("reshape flattened ones",)),
    "four channels": (
        lambda p: npz(p, images=np.zeros((4, 8, 8, 4), np.uint8), labels=Y),
        {},
        ("expected 1 or 3 channels, got shape (4, 8, 8, 4); drop the fourth channel",),
    ),
    "two arrays of images": (
        lambda p: npz(p, images=U8, masks=U8, labels=Y),
        {},
        ("expected one array of images for train, found 2 among images (4, 8, 8) uint8", "data.options.images"),
    ),
    "no images": (lambda p: npz(p, images=U8[:0], labels=Y[:0]), {}, ("expected samples, got none",)),
    "images without pixels": (
        lambda p: npz(p, images=np.zeros((4, 0, 8), np.uint8), labels=Y),
        {},
        ("expected images, got images of shape (4, 0, 8)",),
    ),
    "no files": (lambda p: None, {}, ("expected train.npz, or train-images.npy and train-labels.npy, found no .npy",)),
    "a file above the root": (
        lambda p: None,
        {"options": {"images": "../x.npy", "labels": "y.npy"}},
        ("expected files below --data-root, got ../x.npy",),
    ),
    "an unknown layout": (
        lambda p: npz(p, images=U8, labels=Y),
        {"options": {"layout": "NHCW"}},
        ("unknown layout 'NHCW': did you mean",),
    ),
    "an array that isn't there": (
        lambda p: npz(p, images=U8, labels=Y),
        {"options": {"labels": "y"}},
        ("labels: expected one of images, labels, got 'y'",),
    ),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_would_go_wrong_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, place, says = ARRAYS[kind]
    root = tmp_path / "arrays"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    write(root)
    refused(lambda: load("arrays", root, **place), *says)
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = np.zeros((2000, 64, 64), np.uint8)
    np.savez_compressed(tmp_path / "train.npz", images=zeros, labels=np.arange(2000) % 2)
    assert (tmp_path / "train.npz").stat().st_size < len(zeros.tobytes()) / 100
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    refused(lambda: load("arrays", tmp_path), "unpacked, images take 0.0 GB, more than the 0.0 GB of memory")


def test_one_archive_of_one_split_is_not_tested_on_itself(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", images=U8, labels=Y)
    assert len(load("arrays", tmp_path)) == 4
    refused(lambda: load("arrays", tmp_path, "test"), "found the training split's images and labels alone", "val_fract")


def test_a_doubtful_layout_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    npz(tmp_path, images=np.zeros((4, 8, 3), np.uint8), labels=Y)
    with caplog.at_level(logging.WARNING, "dhkd"):
        assert load("arrays", tmp_path).shape == (8, 3)
    assert "images of shape (4, 8, 3) taken as (NHW); if they are single images" in caplog.text


# lists

LISTS: dict[str, tuple[bytes, dict[str, Any], tuple[str, ...]]] = {
    "a path above the root": (b"../a.png,0\n1.png,1\n", {}, ("line 1: ../a.png: a path that leads outside",)),
    "a path round the root": (b"1.png,0\nx/../../a.png,1\n", {}, ("line 2", "leads outside of the data root")),
    "an absolute path": (b"/etc/a.png,0\n1.png,1\n", {}, ("line 1: /etc/a.png: a path that leads outside",)),
    "a link out of the root": (b"1.png,0\nlink.png,1\n", {}, ("line 2: link.png: a link that leads outside",)),
    "a link of a folder": (b"1.png,0\nout/a.png,1\n", {}, ("line 2: out/a.png: a link that leads outside",)),
    "a URL": (b"1.png,0\nhttp://x/1.png,1\n", {}, ("line 2", "expected the path of an image")),
    "a missing file": (b"1.png,0\n9.png,1\n8.png,1\n", {}, ("2 of 3 images are missing", "first 9.png (line 2)")),
    "a folder": (b"1.png,0\nfolder.png,1\n", {}, ("line 2: folder.png: expected an image file",)),
    "two labels of an image": (b"1.png,0\n2.png,1\n1.png,1\n", {}, ("1.png has two labels, in line 1 and line 3",)),
    "a row that is too short": (b"path,label\n1.png,0\n2.png\n", {}, ("line 3: expected 2 columns",)),
    "an open quote": (b'path,label\n1.png,0\n"2.png,1\n', {}, ("line 3: expected rows of text, got",)),
    "a NUL": (b"1.png,0\n2\x00.png,1\n", {}, ()),
    "Latin-1": (b"1.png,a\n2.png,\xe4\n", {}, ("expected text in UTF-8",)),
    "nothing": (b"", {}, ("expected a row for each image, got none",)),
    "a header alone": (b"path,label\n", {}, ("got a header alone",)),
    "no label": (b"1.png,0\n2.png,\n", {}, ("got no label (line 2)",)),
    "a fraction": (b"1.png,0\n2.png,1.5\n", {}, ("whole numbers or names, got '1.5' (line 2)",)),
    "a negative label": (b"1.png,0\n2.png,-1\n", {}, ("labels expected 0 or more, got -1",)),
    "two columns of labels": (b"f,a,b\n1.png,0,1\n2.png,1,0\n", {}, ("expected one column of labels, found 2 among",)),
    "no column of paths": (b"f,a\n1,0\n2,1\n", {}, ("expected one column of paths of images", "found 0 among f, a")),
    "a column that isn't there": (
        b"file,class\n1.png,0\n2.png,1\n",
        {"options": {"label": "clas"}},
        ("unknown column 'clas': did you mean 'class'",),
    ),
    "a column beyond the last": (
        b"1.png,0\n2.png,1\n",
        {"options": {"label": 2}},
        ("a column 0 to 1, got 2",),
    ),
    "a column for both": (b"1.png,0\n2.png,1\n", {"options": {"label": 0, "path": 0}}, ("got one for both",)),
    "one class": (b"1.png,cat\n2.png,cat\n", {}, ("expected at least two classes, got 1",)),
    "a list elsewhere": (b"", {"train": "no.csv"}, ("no.csv: expected a list of images, got: No such file",)),
}


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A folder with three images, and links that lead out of it."""
    root = tmp_path / "lists"
    (root / "folder.png").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for file in ("a.png", "secret/a.png", *(f"lists/{number}.png" for number in (1, 2, 3))):
        (tmp_path / file).write_bytes(PIXEL)
    (root / "link.png").symlink_to("../a.png")
    (root / "out").symlink_to("../secret")
    return root


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_would_go_wrong_is_refused(kind: str, listed: Path) -> None:
    content, place, says = LISTS[kind]
    (listed / "train.csv").write_bytes(content)
    refused(lambda: load("csv", listed, **place), "csv", *says)


GOOD: dict[str, tuple[str, bytes]] = {
    "a mark of byte order": ("train.csv", b"\xef\xbb\xbfpath,label\n1.png,a\n2.png,b\n3.png,a\n"),
    "line ends of Windows": ("train.csv", b"path,label\r\n1.png,a\r\n2.png,b\r\n3.png,a\r\n"),
    "quotes": ("train.csv", b'"path","label"\n"1.png","a"\n"2.png","b"\n"3.png","a"\n'),
    "no header": ("train.csv", b"1.png,a\n2.png,b\n3.png,a"),
    "tabs": ("train.tsv", b"path\tlabel\n1.png\ta\n2.png\tb\n3.png\ta\n"),
    "blank lines and spaces": ("train.csv", b"\n path , label \n./1.png, a\n\n2.png ,b\n3.png,a\n\n"),
    "other columns": ("train.csv", b"id,label,path\n7,a,1.png\n8,b,2.png\n9,a,3.png\n"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_list_is_read_however_it_was_written(kind: str, listed: Path) -> None:
    name, content = GOOD[kind]
    (listed / name).write_bytes(content)
    images = load("csv", listed)
    assert (images.labels_N.tolist(), images.class_names) == ([0, 1, 0], ("a", "b"))
    assert images.files.names(3) == b"1.png\n2.png\n3.png"  # type: ignore[attr-defined]


def test_rows_that_repeat_an_image_are_told(listed: Path, caplog: pytest.LogCaptureFixture) -> None:
    (listed / "train.csv").write_text("1.png,a\n2.png,b\n1.png,a\n")
    with caplog.at_level(logging.WARNING, "dhkd"):
        assert len(load("csv", listed)) == 3
    assert "1 images are listed more than once" in caplog.text


def test_paths_are_relative_to_the_root_or_to_the_list(listed: Path) -> None:
    lists = listed.parent / "lists" / "fold1"
    lists.mkdir()
    (lists / "train.csv").write_text("../1.png,a\n../2.png,b\n")
    assert load("csv", listed, train="fold1/train.csv").files.names(2) == b"1.png\n2.png"  # type: ignore[attr-defined]
    (lists / "train.csv").write_text(f"{listed}/1.png,a\n{listed}/2.png,b\n")
    assert load("csv", listed, train="fold1/train.csv").files.names(2) == b"1.png\n2.png"  # type: ignore[attr-defined]


def test_a_test_list_knows_the_classes_of_the_training_list(listed: Path) -> None:
    (listed / "train.csv").write_text("1.png,a\n2.png,b\n")
    refused(lambda: load("csv", listed, "test"), "found train.csv", "data.val_fraction")
    (listed / "val.csv").write_text("3.png,b\n")
    test = load("csv", listed, "test")
    assert (test.labels_N.tolist(), test.num_classes) == ([1], 2)
    (listed / "val.csv").write_text("3.png,c\n")
    refused(lambda: load("csv", listed, "test"), "label 'c' (line 1) is none of the 2 classes (a, b)")


# torchvision


def broken_mnist(root: Path) -> None:
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (root / "MNIST" / "raw" / f"{name}-ubyte").write_bytes(b"\x00\x00\x08\x01\x00")


VISION: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "a name that it lacks": (
        "CIFAR11",
        "train",
        {},
        ("unknown data set of torchvision 'CIFAR11': did you mean",),
    ),
    "no files": ("CIFAR10", "train", {}, ("torchvision can't read it at", "--data-root, or fetch it with --download")),
    "no folder": ("Food101", "train", {}, ("Dataset not found",)),
    "files that end too early": ("MNIST", "train", {}, ("torchvision:MNIST: torchvision can't read it",)),
    "no test split": ("EuroSAT", "test", {}, ("expected a test split, found no splits", "data.val_fraction")),
    "a split that it lacks": ("STL10", "train", {"train": "trains"}, ("Unknown value 'trains'", "correct data.train")),
    "a split by flag": (
        "CIFAR10",
        "test",
        {"test": "val"},
        ("data.test: torchvision:CIFAR10 has its own",),
    ),
    "an unknown option": (
        "DTD",
        "train",
        {"options": {"partitio": 2}},
        ("unknown option 'partitio': did you",),
    ),
    "no options": ("CIFAR10", "train", {"options": {"x": 2}}, ("unknown option 'x': there are none",)),
    "a root as an option": ("CIFAR10", "train", {"options": {"root": "/"}}, ("unknown option 'root'",)),
}


@pytest.mark.parametrize("kind", VISION)
def test_what_torchvision_cannot_read_is_refused(kind: str, tmp_path: Path) -> None:
    name, split, place, says = VISION[kind]
    broken_mnist(tmp_path)
    refused(lambda: load(f"torchvision:{name}", tmp_path, split, **place), *says)


def test_images_that_torchvision_keeps_as_files_are_files(tmp_path: Path) -> None:
    """GTSRB, OxfordIIITPet and EuroSAT keep paths in three ways."""
    folders = ("gtsrb/GTSRB/Training/00000", "gtsrb/GTSRB/Training/00001", "eurosat/2750/Forest", "eurosat/2750/River")
    for folder in (*folders, "oxford-iiit-pet/images", "oxford-iiit-pet/annotations/trimaps"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in folders:
        for number in range(2):
            Image.new("RGB", (5, 4), (9 * number, 0, 0)).save(tmp_path / folder / f"{number}.ppm")
    for name in ("Abyssinian_1", "beagle_2"):
        (tmp_path / "oxford-iiit-pet/images" / f"{name}.jpg").write_bytes(PIXEL)
    (tmp_path / "oxford-iiit-pet/annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n")
    for name, first in (
        ("GTSRB", b"gtsrb/GTSRB/Training/00000/0.ppm"),
        ("EuroSAT", b"eurosat/2750/Forest/0.ppm"),
        ("OxfordIIITPet", b"oxford-iiit-pet/images/Abyssinian_1.jpg"),
    ):
        images = load(f"torchvision:{name}", tmp_path)
        assert first in images.files.names(len(images)).split(b"\n")  # type: ignore[attr-defined]
        assert rendered(images, 0).shape == (1, 3, 4, 4)
    assert load("torchvision:OxfordIIITPet", tmp_path).class_names == ("Abyssinian", "Beagle")


# data of one's own


class Lies:
    """A data set of four items; `changes` are what an item is instead."""

    def __init__(self, split: str, items: dict[int, Any] | None = None, length: Any = 4, **attributes: Any) -> None:
        self._changes, self._length, self._readings = items or {}, length, 0
        self.__dict__ |= attributes

    def __len__(self) -> int:
        if isinstance(self._length, Exception):
            raise self._length
        return self._length  # type: ignore[no-any-return]

    def __getitem__(self, index: int) -> Any:
        self._readings += 1
        item = self._changes.get(index, (Image.new("L", (4, 4), index), index % 2))
        if isinstance(item, Exception):
            raise item
        return item(self._readings) if callable(item) else item


def grey(value: int) -> Image.Image:
    return Image.new("L", (4, 4), value)


FLOATS = torch.rand(3, 4, 4)
OWN: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "an exception": (
        lambda split: Lies(split, {2: RuntimeError("no disk")}),
        ("mine: train: item 2: RuntimeError: no disk (test_own_data.py, line", "--debug"),
    ),
    "fewer items than its length": (lambda split: Lies(split, {3: IndexError("end")}), ("item 3: IndexError: end",)),
    "a length that fails": (lambda split: Lies(split, length=TypeError("none")), ("its length: TypeError: none",)),
    "a negative length": (lambda split: Lies(split, length=-1), ("its length: ValueError",)),
    "no items": (lambda split: Lies(split, length=0), ("expected items, got none",)),
    "floats": (
        lambda split: Lies(split, {1: (FLOATS, 1)}),
        ("item 1: expected an image of uint8, 0 to 255, got float32 from 0", "take ToTensor and Normalize out"),
    ),
    "other pixels at each reading": (
        lambda split: Lies(split, {1: lambda readings: (grey(readings % 256), 1)}),
        ("item 1: expected the same image and label at each reading",),
    ),
    "other labels at each reading": (
        lambda split: Lies(split, {1: lambda readings: (grey(1), readings % 2)}),
        ("item 1: expected the same image and label at each reading",),
    ),
    "a label below 0": (lambda split: Lies(split, {1: (grey(1), -1)}), ("labels expected 0 or more, got -1",)),
    "a label beyond its classes": (
        lambda split: Lies(split, {1: (grey(1), 7)}, classes=["a", "b"]),
        ("labels expected 0 to 1, got 7 (item 1)",),
    ),
    "a label that is a float": (lambda split: Lies(split, {1: (grey(1), 1.0)}), ("got 1.0 (float) (item 1)",)),
    "a label that is missing": (lambda split: Lies(split, {1: (grey(1), None)}), ("got no label (item 1)",)),
    "a label that is one-hot": (lambda split: Lies(split, {1: (grey(1), torch.eye(2)[0])}), ("item 1", "one-hot")),
    "an image alone": (
        lambda split: Lies(split, {1: grey(1)}),
        ("expected an image and a label, got a Image",),
    ),
    "three values": (lambda split: Lies(split, {1: (1, 2, 3)}), ("expected an image and a label, got 3 values",)),
    "a file's name as an image": (lambda split: Lies(split, {1: ("a.png", 1)}), ("an array or a tensor, got a str",)),
    "five channels": (
        lambda split: Lies(split, {1: (np.zeros((5, 8, 8), np.uint8), 1)}),
        ("item 1: images expected 1 or 3 channels",),
    ),
    "labels for fewer items": (lambda split: Lies(split, targets=[0, 1]), ("a label for each of 4 items, got 2",)),
    "labels that aren't the items'": (
        lambda split: Lies(split, targets=[0, 1, 1, 1]),
        ("item 2: expected label 1, as its attribute says, got 0",),
    ),
    "nothing": (lambda split: None, ("expected a data set with __getitem__", "got a NoneType")),
    "a generator": (lambda split: iter([1]), ("got a list_iterator; one that can only be iterated",)),
    "a stream": (lambda split: Stream(), ("got a Stream; one that can only be iterated",)),
    "an exception in the function": (lambda split: 1 / 0, ("mine('train'): ZeroDivisionError",)),  # type: ignore[operator]
    "a function without a split": (lambda: None, ("expected a function of the split",)),  # type: ignore[dict-item,misc]
    "arrays of floats": (lambda split: (FLOATS[None], torch.tensor([0])), ("images expected uint8",)),
    "arrays that don't fit": (
        lambda split: (np.zeros((4, 8, 8), np.uint8), np.zeros(3, int)),
        ("expected an image for each label, got shapes (4, 8, 8) and (3,)",),
    ),
    "tensors of floats": (
        lambda split: TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])),
        ("item 0: expected an image of uint8",),
    ),
}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


@pytest.mark.parametrize("kind", OWN)
def test_own_data_that_would_go_wrong_is_refused(kind: str) -> None:
    function, says = OWN[kind]
    offer("mine", function)
    refused(lambda: load("mine", None), "mine", *says)


def test_what_changes_after_the_start_is_one_line_from_a_worker() -> None:
    data = Lies("train", targets=[0, 1, 0, 1])
    offer("mine", lambda split: data)
    images = load("mine", None)
    data._changes[2] = OSError("gone")
    renderer = images.renderer(RandomResizedCrop(size=4, flip=False, seed=0), CPU, Decoding(workers=1))
    keys = (torch.zeros(4, dtype=torch.int64), torch.arange(4))
    refused(lambda: list(renderer.render([keys])), "mine: train: item 2: OSError: gone")
    with pytest.raises(OwnCodeError) as raised:
        list(renderer.render([keys]))
    shown = "".join(traceback.format_exception(raised.value))  # what --debug prints
    assert "in __getitem__\n    raise item" in shown
    assert "OSError: gone\n" in shown


def test_options_go_to_the_function_and_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "my_data.py"
    file.write_text(
        "import numpy as np\n"
        "def make(split: str, root: str, size: int = 8, flag=None):\n"
        "    assert root.endswith('place')\n"
        "    return np.zeros((4, size, size), np.uint8), np.array([0, 1, 0, 1])\n"
    )
    source = f"{file}:make"
    refused(lambda: load(source, tmp_path / "place"), f"add --import {file}")
    imported([str(file)])
    images = load(source, tmp_path / "place", options={"size": 5, "flag": "x"})
    assert (images.shape, images.name) == ((5, 5), "my_data.py:make")
    for options, says in (
        ({"sise": 5}, "data.options of my_data.py:make: unknown option 'sise': did you mean 'size'"),
        ({"size": "5"}, "data.options of my_data.py:make: size: expected a valid integer, got '5'"),
        ({"root": "/"}, "root: expected this option or --data-root, got both"),
    ):
        refused(lambda options=options: load(source, tmp_path / "place", options=options), says)  # type: ignore[misc]
    refused(lambda: load(source, None), "data.options of my_data.py:make: root: expected a value, got none")
    refused(lambda: load(source, tmp_path, train="x"), "data.train")


def test_a_source_without_options_refuses_them() -> None:
    refused(lambda: load("digits", None, options={"x": 1}), "data.options: digits doesn't take it; leave it out")


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("../a.png,0\n")
    words = ["--set", "data.source=csv", "--data-root", tmp_path, "--cpu", "--out", tmp_path / "never"]
    assert_one_line(dhkd("train-teacher", "digits", *words), 1, ["csv: train.csv: line 1: ../a.png: a path that leads"])
    assert re.search("unknown option", dhkd("train-teacher", "digits", *words, "--set", "data.options.x=1").err)
