"""Data as people have it: each kind is read right, or refused in one line that says what to do. Nothing hangs."""

import io
import logging
import os
import re
import tarfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import DhkdError
from dhkd.data.images.base import Decoding, Images
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.sources import SOURCES, load_source
from dhkd.data.sources.base import Place, Source
from PIL import Image

from tests.e2e.command_line import assert_one_line, dhkd, done
from tests.samples import encoded

pytestmark = pytest.mark.timeout(60)  # a pipe that nobody writes to would block for ever

PIXEL = encoded(Image.new("RGB", (4, 4), (200, 100, 50)), "PNG")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty, where indices of shards are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    return tmp_path / "cache-home" / "dhkd"


def put(root: Path, *names: str, content: bytes = PIXEL) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def one_line(call: Callable[[], object]) -> str:
    """The message of a call that has to be refused."""
    with pytest.raises(DhkdError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


# class folders


def folder(root: Path, split: str = "train", **place: object) -> Images:
    return load_source("image-folder", split, Place(str(root), **place))  # type: ignore[arg-type]


GOOD = ("train/a/1.png", "train/a/2.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")


def good(root: Path, *more: str) -> None:
    put(root, *GOOD, *more)


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def named(*forms: str) -> list[str]:
    return [f"train/{unicodedata.normalize(form, 'café')}/1.png" for form in forms]


def at_data(name: str) -> dict[str, object]:
    return {"train": name, "test": name}


REFUSED_FOLDERS: dict[str, tuple[Callable[[Path], object], dict[str, object], str]] = {
    "one folder too high, one class": (
        lambda root: put(root, "all/images/a/1.png", "all/images/b/1.png"),
        at_data("all"),
        r"all: expected a folder for each class, found images; at least two .*all/images holds 2 folders .*\(a, b\)",
    ),
    "one folder too high, splits as classes": (
        good,
        at_data("."),
        r"expected a folder for each class, found train, val, the names of splits; .*/train holds 2 folders of images",
    ),
    "one folder too low": (
        lambda root: put(root, "train/a/images/1.png", "train/b/images/1.png"),
        {"train": "train/a"},
        r"train/a: expected .* found images; at least two .*/train holds 2 folders of images \(a, b\): is it the",
    ),
    "a root too high": (
        lambda root: good(root / "deep"),
        {},
        r"expected a folder of class folders at .*; .*deep/train exists: try --data-root .*deep$",
    ),
    "no class folders": (lambda root: put(root, "train/1.png"), {}, "expected a folder for each class, found none"),
    "the folder is elsewhere": (good, {"train": "/etc"}, r"data\.train: expected a folder below --data-root, got /etc"),
    "the folder is outside": (
        good,
        {"train": "a/../../b"},
        r"data\.train: expected a folder below --data-root, got a/",
    ),
    "a broken link for a class": (
        lambda root: (good(root), link(root / "train/c", "nowhere")),
        {},
        r"train/c: a link to .*nowhere, which doesn't exist; restore it or remove the link",
    ),
    "a link out of the root": (
        lambda root: (good(root), put(root.parent, "outside/1.png"), link(root / "train/c", "../../outside")),
        {},
        r"train/c: a link that leads outside of the data root, to .*outside; .*data\.follow_links=true",
    ),
    "an image that is a link out of the root": (
        lambda root: (good(root), link(root / "train/a/passwords.png", "/etc/passwd")),
        {},
        r"passwords\.png: a link that leads outside of the data root, to /etc/passwd",
    ),
    "a link to the folder above": (
        lambda root: (good(root), link(root / "train/a/again", "..")),
        {},
        r"train/a/again: a link to a folder that holds it, .*; remove the link",
    ),
    "links in a circle": (
        lambda root: (good(root), link(root / "train/c", "d"), link(root / "train/d", "c")),
        {},
        "train/[cd]: a link to .*, which doesn't exist",
    ),
    "a named pipe for an image": (
        lambda root: (good(root), pipe(root / "train/a/3.png")),
        {},
        r"train/a/3\.png: expected an image file, got a named pipe or a device; remove it",
    ),
    "an empty class": (
        lambda root: (good(root), (root / "train/c").mkdir()),
        {},
        r"train/c: expected images \(\.jpg, .*\), found none; fill the folder or remove it",
    ),
    "a class of other files": (
        lambda root: good(root, "train/c/1.heic", "train/c/2.HEIC", "train/c/notes.txt"),
        {},
        r"train/c: expected images .*, found none but 2 \.heic, 1 \.txt; fill the folder",
    ),
    "names that differ in Unicode form": (
        lambda root: put(root, *named("NFC", "NFD")),
        {},
        r"the class folders 'cafe\\u0301' and 'caf\\xe9' look alike and differ in Unicode form alone; merge them",
    ),
    "a test class in another Unicode form": (
        lambda root: (good(root, *named("NFC")), put(root, named("NFD")[0].replace("train", "val"))),
        {"split": "test"},
        r"val: class folder .* differs from 'caf\\xe9' in case or Unicode form alone, as 'cafe\\u0301'; rename it",
    ),
    "a test class in another case": (
        lambda root: good(root, "val/B/1.png"),
        {"split": "test"},
        "class folder B is none of the 2 classes of .*; it differs from 'b' in case or Unicode form alone",
    ),
    "an unknown test class": (
        lambda root: good(root, "val/c/1.png"),
        {"split": "test"},
        "class folder c is none of the 2 classes of .*; both splits need the same classes, and 1 of 3 differ",
    ),
    "a single image": (
        lambda root: (put(root, "train/a/1.png"), (root / "train/b").mkdir()),
        {},
        "train/b: expected images",
    ),
    "a line break in a name": (lambda root: good(root, "train/a/x\ny.png"), {}, "a name with a line break; rename it"),
    "a line break in the name of a class": (
        lambda root: good(root, "train/x\ny/1.png"),
        {},
        "a name with a line break",
    ),
    "numbers that are none": (good, {"classes": "number"}, r"data\.classes: expected .* numbers, got 'a'; set data"),
    "one number twice": (
        lambda root: put(root, "train/1/1.png", "train/01/1.png"),
        {"classes": "number"},
        r"data\.classes: the class folders 01 and 1 are the same number",
    ),
    "no such list of classes": (good, {"classes": "nmae"}, r"data\.classes: .*/nmae: expected name, number, or a file"),
    "a list that is a pipe": (
        lambda root: (good(root), pipe(root / "order.txt")),
        {"classes": "order.txt"},
        r"data\.classes: .*/order\.txt: expected name, number, or a file .*, got: not a file",
    ),
    "a list that lacks a class": (
        lambda root: (good(root), put(root, "order.txt", content=b"b\n")),
        {"classes": "order.txt"},
        "expected a list of exactly the 2 class folders, found class folder 'a', which it lacks",
    ),
    "a list with another class": (
        lambda root: (good(root), put(root, "order.txt", content=b"b\na\nc\n")),
        {"classes": "order.txt"},
        "expected a list of exactly the 2 class folders, found no class folder 'c'",
    ),
    "a list with a class twice": (
        lambda root: (good(root), put(root, "order.txt", content=b"b\na\nb\n")),
        {"classes": "order.txt"},
        "expected each class once, got 'b' twice",
    ),
    "black above white": (good, {"levels": (5.0, 5.0)}, r"data\.levels: expected the value of black and a larger one"),
    "a setting of shards": (good, {"label": "txt"}, r"data\.label: image-folder doesn't take it; leave it out"),
}


@pytest.mark.parametrize("kind", REFUSED_FOLDERS)
def test_a_folder_that_would_go_wrong_is_refused(kind: str, tmp_path: Path) -> None:
    make, place, message = REFUSED_FOLDERS[kind]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    assert re.search(message, line := one_line(lambda: folder(root, **{"split": "train", **place}))), line  # type: ignore[arg-type]


def test_folders_may_be_nested_a_thousand_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good(tmp_path)
    (tmp_path / "train" / "c").mkdir()
    monkeypatch.chdir(tmp_path / "train" / "c")
    depth = 1200
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    try:
        assert "train/c: expected images" in one_line(lambda: folder(tmp_path))
    finally:  # pytest's own clean-up would fail at this depth
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")


def labels_by_file(images: Images) -> dict[str, int]:
    files = images.files  # type: ignore[attr-defined]
    return {
        "/".join(Path(files.name(index)).parts[-2:]): int(label) for index, label in enumerate(images.labels_N.tolist())
    }


@pytest.mark.parametrize(
    "litter",
    [
        *("@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/1.png", "__MACOSX/a/._1.png", "a/@eaDir/1.png"),
        *("a/Thumbs.db", "a/.DS_Store", ".DS_Store", "a/._1.png", "a/.thumbnails/1.png", "#recycle/1.png"),
        *("a/desktop.ini", "README.txt", "a/2.xmp", "a/notes"),
    ],
)
def test_what_systems_put_beside_images_is_left_out_and_told(
    litter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good(tmp_path, f"train/{litter}")
    with caplog.at_level(logging.INFO, logger="dhkd"):
        images = folder(tmp_path)
    assert labels_by_file(images) == {"a/1.png": 0, "a/2.png": 0, "b/1.png": 1}
    assert [line for line in caplog.messages if "left out 1 " in line]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("1.jfif", "JPEG"), ("1.jpe", "JPEG"), ("1.gif", "GIF"), ("1.avif", "AVIF"), ("1.jp2", "JPEG2000")),
        *(("1.tga", "TGA"), ("1.dib", "DIB"), ("1.pnm", "PPM"), ("1.JFIF", "JPEG"), ("1.apng", "PNG")),
    ],
)
def test_every_ending_of_an_image_is_read(name: str, kind: str, tmp_path: Path) -> None:
    good(tmp_path)
    put(tmp_path, f"train/b/{name}", content=encoded(Image.new("RGB", (4, 4), (200, 100, 50)), kind))
    images = folder(tmp_path)
    assert labels_by_file(images)[f"b/{name}"] == 1
    pixels_NCHW = images.in_memory(Decoding()).images_NCHW  # type: ignore[attr-defined]
    assert (pixels_NCHW.amax((0, 2, 3)) - pixels_NCHW.amin((0, 2, 3)) < 12).all(), "all images have one colour"


def test_links_inside_of_the_root_are_followed_and_others_where_that_is_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    good(root)
    put(root, "stock/1.png")
    link(root / "train/c", "../stock")
    link(root / "train/a/3.png", "../b/1.png")
    assert labels_by_file(folder(root)) == {"a/1.png": 0, "a/2.png": 0, "a/3.png": 0, "b/1.png": 1, "c/1.png": 2}
    put(tmp_path, "outside/1.png")
    link(root / "train/d", "../../outside")
    assert folder(root, follow_links=True).num_classes == 4


def test_a_file_that_became_a_pipe_does_not_block(tmp_path: Path) -> None:
    good(tmp_path)
    images = folder(tmp_path)
    (tmp_path / "train/a/2.png").unlink()
    pipe(tmp_path / "train/a/2.png")
    line = one_line(lambda: images.in_memory(Decoding()))
    assert "2.png" in line
    assert "a named pipe, not a file" in line


def test_classes_are_numbered_by_name_by_number_or_as_a_file_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val") for name in (0, 1, 2, 10)))
    put(tmp_path, "order.txt", content=b"10\r\n2\r\n\r\n1\r\n0\r\n")

    def numbers(split: str, order: str | None) -> list[int]:
        labels = labels_by_file(folder(tmp_path, split, classes=order))
        return [labels[f"{name}/1.png"] for name in (0, 1, 2, 10)]

    for split in ("train", "test"):
        assert numbers(split, None) == numbers(split, "name") == [0, 1, 3, 2]
        assert numbers(split, "number") == [0, 1, 2, 3]
        assert numbers(split, "order.txt") == [3, 2, 1, 0]
    notes = [line for line in caplog.messages if "set data.classes=number" in line]
    assert len(notes) == 2, "one for each split, where the order was not set"
    prints = {order: folder(tmp_path, classes=order).fingerprint() for order in (None, "name", "number", "order.txt")}
    assert prints[None] == prints["name"]
    assert len(set(prints.values())) == 3, "so that a cache of one order is refused for another"


def test_harmless_oddities_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "train/cat/1.png", "train/Cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/Cat/1.png")
    assert folder(tmp_path, "test").num_classes == 3
    assert "differ in case alone; they are two classes" in caplog.text
    assert "1 of 3 classes have no folder (dog)" in caplog.text


# shards

Member = tuple[str | tarfile.TarInfo, bytes]


def write_shard(path: Path, members: Sequence[Member], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as shard:  # type: ignore[call-overload]
        for name, content in members:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            header.size = len(content)
            shard.addfile(header, io.BytesIO(content))


def shards(root: Path, split: str = "train", **place: object) -> Images:
    return load_source("webdataset", split, Place(str(root), **{"num_classes": 4, **place}))  # type: ignore[arg-type]


LABELS = [number % 4 for number in (0, 2, 5, 7, 1, 3, 6, 8)]


def members(
    labels: Sequence[object] = LABELS, form: str = "{}", ending: str = "cls", key: str = "{:06d}"
) -> list[Member]:
    return [
        member
        for number, label in enumerate(labels)
        for member in (
            (f"{key.format(number)}.png", PIXEL),
            (f"{key.format(number)}.{ending}", form.replace("{}", str(label)).encode()),
        )
    ]


def odd(name: str, kind: bytes, target: str = "") -> Member:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header, b""


def sparse() -> Member:
    header = tarfile.TarInfo("x.png")
    header.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4"}
    return header, PIXEL


def replaced(position: int, label: object) -> list[object]:
    return [label if number == position else old for number, old in enumerate(LABELS)]


REFUSED_SHARDS: dict[str, tuple[list[Member], dict[str, object], str]] = {
    "labels from one": (
        members([label + 1 for label in LABELS]),
        {},
        r"labels expected 0 to 3, got 1 to 4, so nothing has label 0; .* data\.first_label=1 and data\.num_classes=4",
    ),
    "labels from one, with room for zero": (
        members([label + 1 for label in LABELS]),
        {"num_classes": 5},
        r"got 1 to 4, so nothing has label 0; .* set data\.first_label=1 and data\.num_classes=4",
    ),
    "a label too large": (members(replaced(3, 9)), {}, r"got 0 to 9; set data\.num_classes \(sample 000003 has 9\)"),
    "a negative label": (members(replaced(3, -1)), {}, r"got -1 to 3; correct the labels \(sample 000003 has -1\)"),
    "below the first label": (
        members(LABELS),
        {"first_label": 1},
        r"labels expected 1 to 4, got 0 to 3; correct the labels",
    ),
    "a float": (members(replaced(3, "0.0")), {}, r"sample 000003: label expected a whole number, got '0\.0'"),
    "an underscore": (members(replaced(3, "0_1")), {}, "sample 000003: label expected a whole number, got '0_1'"),
    "23 digits": (members(replaced(3, "1" * 23)), {}, "sample 000003: label expected a whole number, got '1111"),
    "5000 digits": (members(replaced(3, "1" * 5000)), {}, "sample 000003: label expected a whole number, got '1111"),
    "digits of another script": (members(replaced(3, "٣")), {}, "sample 000003: label expected a whole number, got"),
    "no text": ([("0.png", PIXEL), ("0.cls", b"\xff\xfe")], {}, "sample 0: label expected text, got b'"),
    "a name": (members(replaced(3, "cat")), {}, r"got 'cat'; where names are labels, list them in a file for data\.c"),
    "labels in JSON": (
        members(form='{"label": {}}', ending="json"),
        {},
        r"expected samples of an image and a \.cls file, but .*; it holds 8 images, 8 \.json; if another member holds"
        r" the label, name it with data\.label, for example json:label",
    ),
    "another field": (
        members(form='{"label": {}}', ending="json"),
        {"label": "json:cls"},
        "sample 000000: label expected in the field cls, found 'label'; correct data.label",
    ),
    "no JSON": (members(ending="json", form="{"), {"label": "json:label"}, "label expected in JSON, got b'{'"),
    "a truth for a label": (
        members(form='{"label": true}', ending="json"),
        {"label": "json:label"},
        "label expected a whole number, got 'true'",
    ),
    "no ending": (members(), {"label": ":x"}, r"data\.label: expected a member's ending, such as cls"),
    "dots in keys": (
        members(key="img_0.{}"),
        {},
        r"img_0\.0\.png: a sample's key ends at the first dot of the file's name, here as img_0; write keys without",
    ),
    "dots in some keys": (
        [*members(), ("000001.b.png", PIXEL), ("000001.b.cls", b"1")],
        {},
        r"000001\.b\.png: a sample's key ends at the first dot",
    ),
    "a key twice": ([*members(), *members()], {}, r"sample 000000 has a second image, 000000\.png; give each sample"),
    "two images": ([*members(), ("000001.jpg", PIXEL)], {}, r"sample 000001 has a second image, 000001\.jpg"),
    "a hard link": (
        [*members(), odd("x.png", tarfile.LNKTYPE, "000001.png"), ("x.cls", b"1")],
        {},
        r"x\.png: a hard link to 000001\.png, which is not followed; pack the files themselves",
    ),
    "a symbolic link": (
        [*members(), odd("x.png", tarfile.SYMTYPE, "/etc/passwd"), ("x.cls", b"1")],
        {},
        r"x\.png: a symbolic link to /etc/passwd, which is not followed",
    ),
    "a named pipe": ([*members(), odd("x.png", tarfile.FIFOTYPE)], {}, r"x\.png: a named pipe or a device"),
    "a device": ([*members(), odd("x.png", tarfile.CHRTYPE)], {}, r"x\.png: a named pipe or a device"),
    "a sparse member": ([*members(), sparse(), ("x.cls", b"1")], {}, r"x\.png: a sparse file, which is stored in"),
    "an empty shard alone": ([], {}, "expected samples of an image and a .cls file, but the shard has none"),
    "shards elsewhere": (
        members(),
        {"train": "../data/train/*.tar"},
        "expected a place below --data-root, got a URL, a command or a path",
    ),
    "a line break in a name": ([*members(), ("a\nb.png", PIXEL)], {}, r"'a\\nb\.png': a name with a line break"),
    "a label of 20 MB": (
        [*members(), ("x.cls", b"1" * 20 * 10**6)],
        {},
        "sample x: label expected at most 16,777,216 by",
    ),
    "one class alone": (members([0] * 8), {}, "expected samples of at least two classes, got class 0 alone, with whi"),
    "an order of folders": (members(), {"classes": "number"}, r"data\.classes: webdataset takes a file that lists"),
    "links": (members(), {"follow_links": True}, r"data\.follow_links: webdataset doesn't take it"),
}


@pytest.mark.parametrize("kind", REFUSED_SHARDS)
def test_a_shard_that_would_go_wrong_is_refused(kind: str, tmp_path: Path) -> None:
    content, place, message = REFUSED_SHARDS[kind]
    with tarfile.open(tmp_path / "unused", "w", format=tarfile.PAX_FORMAT):
        pass
    write_shard(tmp_path / "data" / "train" / "0.tar", content)
    assert re.search(message, line := one_line(lambda: shards(tmp_path / "data", **place))), line


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_shard_is_refused_as_such(mode: str, kind: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "train" / "0.tar", members(), mode)
    assert f"got one that is compressed with {kind}" in one_line(lambda: shards(tmp_path))
    (tmp_path / "train" / "0.tar").rename(tmp_path / "train" / "0.tar.gz")
    assert "; 0.tar.gz is compressed: unpack it" in one_line(lambda: shards(tmp_path))


@pytest.mark.parametrize("make", [pipe, lambda path: link(path, "/dev/zero"), lambda path: path.mkdir(parents=True)])
def test_a_shard_that_is_no_file_does_not_block(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "train" / "0.tar")
    assert re.search(r"0\.tar: (expected a tar file, got a|.*Is a directory)", one_line(lambda: shards(tmp_path)))


def test_a_member_of_negative_size_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "train" / "0.tar"
    write_shard(path, members())
    content = bytearray(path.read_bytes())
    header = content[1024:1536]  # of the second member, whose end would be its own beginning
    header[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    path.write_bytes(content)
    assert "the file is damaged or not a tar file (" in one_line(lambda: shards(tmp_path))


def test_shards_one_folder_away_are_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "data" / "train" / "0.tar", members())
    for root in (tmp_path, tmp_path / "data" / "train"):
        assert re.search(r"found none; .*; .*train/0\.tar exists$", one_line(lambda root=root: shards(root)))


READ_SHARDS: dict[str, tuple[list[Member], dict[str, object]]] = {
    "white space": (members(form=" {} \n"), {}),
    "labels from one": (members([label + 1 for label in LABELS]), {"first_label": 1}),
    "JSON": (members(form='{"label": {}, "x": 1}', ending="json"), {"label": "json:label"}),
    "nested JSON, as text": (members(form='{"a": {"b": "{}"}}', ending="Meta.JSON"), {"label": "meta.json:a.b"}),
    "a text": (members(ending="txt"), {"label": ".txt"}),
    "members in two runs": (sorted(members(), key=lambda member: str(member[0])[-3:]), {}),
    "labels first": (members()[::-1], {}),
    "absolute paths": (members(key="/etc/{:03d}"), {}),
    "paths that lead out": (members(key="../../{:03d}"), {}),
    "macOS": ([*members(), ("._000001.png", b"x"), ("__MACOSX/._0.png", b"x"), ("__MACOSX/0.png", b"x")], {}),
    "other members": ([*members(), ("000001.json", b"{"), ("000002.mask.png", PIXEL), odd("a", tarfile.FIFOTYPE)], {}),
}


@pytest.mark.parametrize("kind", READ_SHARDS)
def test_a_shard_that_is_only_unusual_is_read(kind: str, tmp_path: Path) -> None:
    content, place = READ_SHARDS[kind]
    for number, part in enumerate((content, [])):
        write_shard(tmp_path / "train" / f"{number}.tar", part)
    images = shards(tmp_path, **place)
    expected = LABELS[::-1] if kind == "labels first" else LABELS
    assert images.labels_N.tolist() == expected
    assert {images.files.read(index) for index in range(8)} == {PIXEL}  # type: ignore[attr-defined]


def test_names_are_labels_where_a_file_lists_them(tmp_path: Path) -> None:
    names = ["dog", "cat", "Ärger", "naïve"]
    put(tmp_path, "classes.txt", content="\ufeffdog\ncat\nÄrger\nnaïve\n".encode())
    write_shard(tmp_path / "train" / "0.tar", members([names[label] for label in LABELS], ending="txt", form="{}\n"))
    settings = {"label": "txt", "classes": "classes.txt"}
    assert shards(tmp_path, num_classes=None, **settings).labels_N.tolist() == LABELS
    assert "expected 4, as data.classes lists, got 5" in one_line(lambda: shards(tmp_path, num_classes=5, **settings))
    put(tmp_path, "classes.txt", content=b"cat\ndog\n")
    assert "label expected one of the 2 classes" in one_line(lambda: shards(tmp_path, num_classes=None, **settings))


def test_classes_without_samples_and_repeated_keys_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2):
        write_shard(tmp_path / "train" / f"{number}.tar", members())
    assert len(shards(tmp_path, num_classes=6)) == 16
    assert "2 of 6 classes have no training sample, 4 among them; check data.num_classes" in caplog.text
    assert "8 keys are in several shards, 000000 in" in caplog.text


def test_a_shard_replaced_by_one_of_equal_size_and_time_keeps_no_old_labels(tmp_path: Path) -> None:
    path = tmp_path / "train" / "0.tar"
    write_shard(path, members())
    images, before = shards(tmp_path), path.stat()
    write_shard(path, members(LABELS[::-1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert shards(tmp_path).labels_N.tolist() == LABELS[::-1]
    # Whoever read the index before must not go on with it, not even with black images.
    for decoding in (Decoding(), Decoding(allow_bad=100)):
        line = one_line(lambda decoding=decoding: images.in_memory(decoding))
        assert "0.tar, sample 000002" in line
        assert "expected the header and the label that were indexed, got others" in line


# pictures

RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))


def ramp(levels: int, dtype: type[np.generic], kind: str = "PNG") -> bytes:
    return encoded(Image.fromarray((RAMP * levels).astype(dtype)), kind)


def mean_level(root: Path, content: bytes, name: str, **place: object) -> float:
    put(root, f"train/a/{name}", f"train/b/{name}", content=content)
    images = folder(root, **place).in_memory(Decoding()).images_NCHW  # type: ignore[attr-defined]
    assert images.amin() <= 2
    assert images.amax() >= 253
    return float(images.float().mean())


def twelve_bits() -> bytes:
    """A TIFF whose tags say 12 bits for each sample, three bytes for two pixels."""
    values = (RAMP * 4095).astype(np.uint16).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, ((values[:, 0] & 15) << 4) | (values[:, 1] >> 8), values[:, 1] & 255], 1)
    data = packed.astype(np.uint8).tobytes()
    entries = [(256, 4, 32), (257, 4, 32), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 4, 32), (279, 4, len(data))]
    table = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    start = (8 + len(data)).to_bytes(4, "little")
    return b"II*\0" + start + data + len(entries).to_bytes(2, "little") + table + b"\0\0\0\0"


READ_PICTURES: dict[str, tuple[str, Callable[[], bytes], dict[str, object]]] = {
    "16 bits": ("1.png", lambda: ramp(65535, np.uint16), {}),
    "16 bits, said": ("1.png", lambda: ramp(65535, np.uint16), {"levels": (0.0, 65535.0)}),
    "16 bits of TIFF": ("1.tif", lambda: ramp(65535, np.uint16, "TIFF"), {}),
    "8 bits in 16": ("1.png", lambda: ramp(255, np.uint16), {"levels": (0.0, 255.0)}),
    "12 bits in 16": ("1.tif", lambda: ramp(4095, np.uint16, "TIFF"), {"levels": (0.0, 4095.0)}),
    "12 bits, as the file says": ("1.tif", twelve_bits, {}),
    "32 bits": ("1.tif", lambda: ramp(10**6, np.int32, "TIFF"), {"levels": (0.0, 1e6)}),
    "negative integers": (
        "1.tif",
        lambda: encoded(Image.fromarray((RAMP * 2000 - 1000).astype(np.int32)), "TIFF"),
        {"levels": (-1000.0, 1000.0)},
    ),
    "floats": ("1.tif", lambda: ramp(1, np.float32, "TIFF"), {"levels": (0.0, 1.0)}),
    "floats up to 255": ("1.tif", lambda: ramp(255, np.float32, "TIFF"), {"levels": (0.0, 255.0)}),
    "a PGM of 12 bits": (
        "1.pgm",
        lambda: b"P5 32 32 4095\n" + (RAMP * 4095).astype(">u2").tobytes(),
        {},
    ),
    "8 bits, with levels for others": ("1.png", lambda: ramp(255, np.uint8), {"levels": (0.0, 4095.0)}),
    "a profile of 2 MB": (
        "1.png",
        lambda: encoded(
            Image.open(io.BytesIO(ramp(255, np.uint8))).convert("RGB"), "PNG", icc_profile=b"\0" * 2 * 10**6
        ),
        {},
    ),
    "a profile of 20 MB": (
        "1.png",
        lambda: encoded(Image.open(io.BytesIO(ramp(255, np.uint8))), "PNG", icc_profile=b"\0" * 20 * 10**6),
        {"max_metadata_mb": 30.0},
    ),
    "a JPEG in a .png": ("1.png", lambda: encoded(Image.open(io.BytesIO(ramp(255, np.uint8))), quality=100), {}),
    "CMYK": (
        "1.tif",
        lambda: encoded(Image.open(io.BytesIO(ramp(255, np.uint8))).convert("CMYK"), "TIFF"),
        {},
    ),
    "several frames": (
        "1.gif",
        lambda: encoded(
            Image.open(io.BytesIO(ramp(255, np.uint8))),
            "GIF",
            save_all=True,
            append_images=[Image.new("L", (32, 32), 0)],
        ),
        {},
    ),
}


@pytest.mark.parametrize("kind", READ_PICTURES)
def test_the_range_of_a_picture_is_read_right(kind: str, tmp_path: Path) -> None:
    name, content, place = READ_PICTURES[kind]
    assert mean_level(tmp_path, content(), name, **place) == pytest.approx(127.5, abs=1.0)


def rgb_16_bits(levels: int) -> bytes:
    """A PNG of 16-bit colours, which Pillow reads but can't write."""
    import struct
    import zlib

    rows = (RAMP[:, :, None].repeat(3, axis=2) * levels).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


REFUSED_PICTURES: dict[str, tuple[str, Callable[[], bytes], dict[str, object], str]] = {
    "8 bits in 16": (
        "1.png",
        lambda: ramp(255, np.uint16),
        {},
        r"16-bit values of at most 255, as if only 8 bits were used; set data\.levels=\[0, 255\], or",
    ),
    "12 bits in 16": (
        "1.png",
        lambda: ramp(4095, np.uint16),
        {},
        r"only 12 bits were used; set data\.levels=\[0, 4095",
    ),
    "8 bits in 16-bit colours": ("1.png", lambda: rgb_16_bits(255), {}, "16-bit colours that don't fill the range"),
    "32 bits": ("1.tif", lambda: ramp(10**6, np.int32, "TIFF"), {}, r"integers of more than 8 bits from 0 to 1e\+06, "),
    "floats": ("1.tif", lambda: ramp(1, np.float32, "TIFF"), {}, r"floats from 0 to 1, .*; set data\.levels=\[BLACK"),
    "levels too low": (
        "1.tif",
        lambda: ramp(255, np.float32, "TIFF"),
        {"levels": (0.0, 1.0)},
        r"values from 0 to 255, more than half of which lie above data\.levels, \[0, 1\]",
    ),
    "NaN": (
        "1.tif",
        lambda: encoded(Image.fromarray(np.full((32, 32), np.nan, dtype=np.float32)), "TIFF"),
        {"levels": (0.0, 1.0)},
        "an image in which 1,024 values are NaN or infinite",
    ),
    "too many pixels": (
        "1.png",
        lambda: ramp(255, np.uint8),
        {"max_megapixels": 0.001},
        r"above the limit of 0\.001 megapixels; if you trust the file, raise the limit with data\.max_megapixels",
    ),
    "a bomb": (
        "1.png",
        lambda: encoded(Image.new("1", (15_000, 15_000)), "PNG"),
        {},
        r"above the limit of 178\.957 megapixels; .*data\.max_megapixels",
    ),
    "a profile of 20 MB": (
        "1.png",
        lambda: encoded(Image.open(io.BytesIO(ramp(255, np.uint8))), "PNG", icc_profile=b"\0" * 20 * 10**6),
        {},
        r"text or a colour profile above the limit of 16 MB; .* raise the limit with data\.max_metadata_mb",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_PICTURES)
def test_a_picture_that_would_turn_out_wrong_is_refused(kind: str, tmp_path: Path) -> None:
    name, content, place, message = REFUSED_PICTURES[kind]
    line = one_line(lambda: mean_level(tmp_path, content(), name, **place))
    assert re.search(message, line), line


def test_white_may_be_zero(tmp_path: Path) -> None:
    content = encoded(Image.fromarray((RAMP * 65535).astype(np.uint16)), "TIFF", tiffinfo={262: 0})
    put(tmp_path, "train/a/1.tif", "train/b/1.tif", content=content)
    images = folder(tmp_path).in_memory(Decoding()).images_NCHW  # type: ignore[attr-defined]
    assert (images[0, 0, 0, 0], images[0, 0, 0, -1]) == (255, 0)


def test_frames_that_are_not_read_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (90, 200)]
    good(tmp_path)
    for kind, name in (("GIF", "3.gif"), ("TIFF", "4.tif"), ("WEBP", "5.webp")):
        put(tmp_path, f"train/a/{name}", content=encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    folder(tmp_path).in_memory(Decoding())  # type: ignore[attr-defined]
    assert len([line for line in caplog.messages if "has several frames; of such images, the first" in line]) == 1


def test_full_16_bit_colours_are_read(tmp_path: Path) -> None:
    assert mean_level(tmp_path, rgb_16_bits(65535), "1.png") == pytest.approx(127.5, abs=1)


def test_levels_are_part_of_a_fingerprint_unless_they_are_the_usual_ones(tmp_path: Path) -> None:
    good(tmp_path)
    usual = folder(tmp_path).fingerprint()
    assert folder(tmp_path, levels=(0.0, 65535.0)).fingerprint() == usual
    assert folder(tmp_path, levels=(0.0, 4095.0)).fingerprint() != usual


# data in memory

IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
NAN = torch.tensor([0.5, float("nan")]).repeat(4 * 3 * 8 * 4).reshape(4, 3, 8, 8)
GREY = (0.5, 0.5, 0.5)

REFUSED_ARRAYS: dict[str, tuple[str, torch.Tensor, list[int], int, str]] = {
    "a label too large": (
        "train",
        IMAGES,
        [0, 1, 2, 1],
        2,
        "labels expected 0 to 1, got 0 to 2; number the classes fro",
    ),
    "a negative label": ("test", IMAGES, [0, 1, -1, 1], 2, "the test split: labels expected 0 to 1, got -1 to 1"),
    "an empty test split": ("test", IMAGES[:0], [], 2, "the test split: expected at least 1 sample, got 0"),
    "one sample": ("train", IMAGES[:1], [0], 2, "the train split: expected at least 2 samples, got 1"),
    "one class": ("train", IMAGES, [0, 0, 0, 0], 1, "expected at least two classes, got 1, with which any"),
    "NaN": (
        "train",
        NAN,
        [0, 1, 0, 1],
        2,
        r"images expected uint8, 0 to 255, got torch\.float32 from 0\.5 to 0\.5, 384 ",
    ),
    "two channels": (
        "train",
        IMAGES[:, :2],
        [0, 1, 0, 1],
        2,
        r"images expected of shape .*, got \(4, 2, 8",
    ),
    "channels last": ("train", IMAGES.permute(0, 2, 3, 1), [0, 1, 0, 1], 2, r"got \(4, 8, 8, 3\); reorder the axes"),
}


@pytest.mark.parametrize("kind", REFUSED_ARRAYS)
def test_arrays_that_would_go_wrong_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split, images_NCHW, labels, num_classes, message = REFUSED_ARRAYS[kind]
    labels_N = torch.tensor(labels, dtype=torch.int64)
    monkeypatch.setitem(
        SOURCES,
        "arrays",
        Source(lambda split, place: ImageSet("arrays", split, images_NCHW, labels_N, num_classes, GREY, GREY)),
    )
    assert re.search(f"^arrays: .*{message}", line := one_line(lambda: load_source("arrays", split))), line


def test_a_test_split_of_one_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ImageSet("arrays", "test", IMAGES[:1], torch.tensor([1]), 2, GREY, GREY)
    monkeypatch.setitem(SOURCES, "arrays", Source(lambda split, place: one))
    assert len(load_source("arrays", "test")) == 1


# from end to end

PRESET = """
description: four colours
data: {source: image-folder}
views: {kind: crop-flip, padding: 1, flip: true}
teacher: {architecture: resnet8, epochs: 3, batch_size: 16, lr: 0.05, lr_schedule: constant}
cache: {views: 1}
student: {architecture: resnet8, epochs: 1, batch_size: 16, lr: 0.05}
"""


@pytest.mark.timeout(240)
def test_a_teacher_with_another_order_of_classes_is_not_cached(tmp_path: Path) -> None:
    colours = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}
    for split, count in (("train", 40), ("val", 6)):
        for name, colour in colours.items():
            for number in range(count):
                content = encoded(Image.new("RGB", (8, 8), tuple(level + number % 7 for level in colour)), "PNG")
                put(tmp_path, f"{split}/{name}/{number}.png", content=content)
    put(tmp_path, "order.txt", content=b"red\ngreen\nblue\ngrey\n")
    preset, out = tmp_path / "preset.yaml", tmp_path / "teacher"
    preset.write_text(PRESET)
    words = ["--data-root", tmp_path, "--cpu", "--workers", "0"]
    trained = done("train-teacher", preset, *words, "--set", "data.classes=order.txt", "--out", out, "--json").result
    assert trained["last_top1"] == 100
    assert yaml.safe_load((out / "config.yaml").read_bytes())["run"]["classes"] == list(colours)
    refused = dhkd("cache-teacher", preset, *words, "--teacher", out, "--out", tmp_path / "never.zarr")
    assert_one_line(refused, 1, ["teacher: its classes are in another order than the data's", "set data.classes"])
    assert not (tmp_path / "never.zarr").exists()
    cached = ["--set", "data.classes=order.txt", "--teacher", out, "--out", tmp_path / "good.zarr"]
    done("cache-teacher", preset, *words, *cached)
    provenance = open_cache(str(tmp_path / "good.zarr")).manifest.provenance
    assert provenance["logits"]["data"] == {"classes": list(colours), "class_names": list(colours)}
