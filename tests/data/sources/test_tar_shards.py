"""Shards hold the same samples as a folder, wherever they are; damaged, missing or sorted ones are refused."""

import http.server
import io
import multiprocessing
import os
import re
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.decoding_workers import PhotoRenderer
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.sources import load_source
from dhkd.data.sources.base import Place
from dhkd.data.sources.shard_urls import ShardCopies, expand
from torch import Tensor
from webdataset import ShardWriter, TarWriter

from tests.samples import encoded, make_photo

CPU = torch.device("cpu")
RECIPE = RandomResizedCrop(size=16, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, seed=5)
SAMPLES, CLASSES = 12, 3
LABELS = [2, 0, 1, 1, 2, 0, 0, 1, 2, 0, 2, 1]


pytestmark = pytest.mark.usefixtures("no_workers_of_the_last_test")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dhkd"


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return [encoded(make_photo(n), quality=90) for n in range(SAMPLES)]


Member = tuple[str, bytes]


def members_of(jpegs: Sequence[bytes], labels: Sequence[int], start: int = 0) -> list[Member]:
    """An image and a label for each sample, numbered from `start`."""
    return [
        member
        for number, (content, label) in enumerate(zip(jpegs, labels, strict=True), start)
        for member in ((f"{number:04}.jpg", content), (f"{number:04}.cls", str(label).encode()))
    ]


def write_tar(path: Path, members: Sequence[Member]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            shard.addfile(header, io.BytesIO(content))


@pytest.fixture
def root(tmp_path: Path, jpegs: list[bytes]) -> Path:
    """Three shards of four samples."""
    for shard in range(3):
        rows = slice(4 * shard, 4 * shard + 4)
        write_tar(tmp_path / "root" / "train" / f"{shard:03}.tar", members_of(jpegs[rows], LABELS[rows], rows.start))
    return tmp_path / "root"


def load(
    root: Path | str, split: str = "train", *, keep_bytes: int = 10**9, limit: int | None = None, **place: object
) -> PhotoSet:
    where = Place(str(root), keep_bytes=keep_bytes, **{"num_classes": CLASSES, **place})  # type: ignore[arg-type]
    images = load_source("webdataset", split, where, limit=limit)
    assert isinstance(images, PhotoSet)
    return images


def pixels_of(images: PhotoSet, *, workers: int = 0) -> Tensor:
    index_B = torch.arange(len(images))
    renderer = PhotoRenderer(images, RECIPE, CPU, workers=workers)
    return torch.cat(list(renderer.render((index % 3, index) for index in index_B.split(5))))


def contents_of(images: PhotoSet) -> list[bytes]:
    return [images.files.read(index) for index in range(len(images))]


# what shards hold


def test_samples_are_those_of_the_shards_in_order(root: Path, jpegs: list[bytes]) -> None:
    images = load(root)
    assert contents_of(images) == jpegs
    assert images.labels_N.tolist() == LABELS
    assert images.labels_N.dtype == torch.int64
    assert (images.name, images.split, images.num_classes, len(images)) == ("webdataset", "train", CLASSES, SAMPLES)
    assert images.files.name(5) == f"{root}/train/001.tar, sample 0005"
    assert torch.equal(pixels_of(images), pixels_of(images, workers=2))


def test_shards_of_a_folder_in_its_order_give_the_same_pixels(tmp_path: Path, jpegs: list[bytes]) -> None:
    for number, (content, label) in enumerate(zip(jpegs, LABELS, strict=True)):
        path = tmp_path / "folder" / "train" / f"class-{label}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder = load_source("image-folder", "train", Place(root=str(tmp_path / "folder")))
    assert isinstance(folder, PhotoSet)
    write_tar(tmp_path / "train" / "0.tar", members_of(contents_of(folder), folder.labels_N.tolist()))
    shards = load(tmp_path)
    assert torch.equal(shards.labels_N, folder.labels_N)
    assert torch.equal(pixels_of(shards), pixels_of(folder))


@pytest.mark.parametrize("kind", ["TarWriter", "ShardWriter"])
def test_shards_of_webdatasets_own_writers(tmp_path: Path, jpegs: list[bytes], kind: str) -> None:
    (tmp_path / "train").mkdir()
    place = str(tmp_path / "train" / "%03d.tar")
    with TarWriter(place % 0) if kind == "TarWriter" else ShardWriter(place, maxcount=5, verbose=0) as writer:
        for number, (content, label) in enumerate(zip(jpegs, LABELS, strict=True)):
            writer.write({"__key__": f"n{label}.x/photo-{number:03}", "jpg": content, "cls": label})
    assert len(list((tmp_path / "train").iterdir())) == (1 if kind == "TarWriter" else 3)
    images = load(tmp_path)
    assert contents_of(images) == jpegs
    assert images.labels_N.tolist() == LABELS


def test_members_may_be_in_any_order_with_other_files_between_them(tmp_path: Path, jpegs: list[bytes]) -> None:
    """Folders, metadata, members in the PAX format; images of several kinds; labels with a newline."""
    path = tmp_path / "train" / "0.tar"
    path.parent.mkdir()
    members = [
        ("a/0.cls", b"1\n"),
        ("a/0.json", b"{}"),
        ("a/0.jpeg", jpegs[0]),
        ("b/0.PNG", encoded(make_photo(1), "PNG")),
        ("b/0.cls", b" 2 "),
        ("b/" + "x" * 150 + "é.jpg", jpegs[2]),
        ("b/" + "x" * 150 + "é.cls", b"0"),
    ]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        shard.addfile(folder)
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            shard.addfile(header, io.BytesIO(content))
    images = load(tmp_path)
    assert contents_of(images) == [jpegs[0], members[3][1], jpegs[2]]
    assert images.labels_N.tolist() == [1, 2, 0]
    assert images.files.name(2) == f"{path}, sample b/{'x' * 150}é"


def test_a_limit_keeps_the_first(root: Path, jpegs: list[bytes]) -> None:
    images = load(root, limit=5)
    assert contents_of(images) == jpegs[:5]
    assert images.fingerprint() == load(root).first(5).fingerprint() != load(root).fingerprint()


def test_fingerprints_tell_shards_apart_by_names_and_labels(tmp_path: Path, jpegs: list[bytes]) -> None:
    def fingerprint(name: str, members: Sequence[Member]) -> str:
        write_tar(tmp_path / name / "train" / "0.tar", members)
        return load(tmp_path / name).fingerprint()

    first = fingerprint("one", members_of(jpegs, LABELS))
    assert fingerprint("same", members_of(jpegs, LABELS)) == first
    assert fingerprint("labels", members_of(jpegs, [0, *LABELS[1:]])) != first
    assert fingerprint("names", members_of(jpegs, LABELS, start=1)) != first


# which shards


@pytest.mark.parametrize(
    ("pattern", "shards"),
    [
        ("train/{000..002}.tar", [0, 1, 2]),
        ("train/{002,000}.tar", [2, 0]),
        ("train/*.tar", [0, 1, 2]),
        ("train/00[12].tar", [1, 2]),
        ("train/00?.tar", [0, 1, 2]),
        ("train/001.tar", [1]),
        ("{train,more}/*.tar", [0, 1, 2]),
        ("*/002.tar", [2]),
    ],
)
def test_patterns_name_shards(root: Path, pattern: str, shards: list[int]) -> None:
    assert expand(str(root), pattern) == [f"{root}/train/{shard:03}.tar" for shard in shards]
    images = load(root, train=pattern)
    assert images.labels_N.tolist() == [label for shard in shards for label in LABELS[4 * shard : 4 * shard + 4]]


def test_patterns_count_at_urls() -> None:
    urls = [f"https://example.org/a/{number:03}.tar" for number in range(98, 102)]
    assert expand("https://example.org/a", "{098..101}.tar") == urls


def test_files_at_a_url_can_not_be_listed() -> None:
    with pytest.raises(DataError, match=r"^webdataset: https://example\.org/a/train/\*\.tar: .* counting in braces"):
        expand("https://example.org/a", "train/*.tar")


@pytest.mark.parametrize("name", ["with [brackets]", "with {a,b}", "with *"])
def test_a_root_is_not_a_pattern(tmp_path: Path, jpegs: list[bytes], name: str) -> None:
    write_tar(tmp_path / name / "train" / "0.tar", members_of(jpegs, LABELS))
    write_tar(tmp_path / "with others" / "train" / "0.tar", [])
    assert contents_of(load(tmp_path / name)) == jpegs


def test_the_test_split_has_its_own_place(root: Path, jpegs: list[bytes]) -> None:
    write_tar(root / "val" / "0.tar", members_of(jpegs[:4], [0, 0, 1, 1]))
    write_tar(root / "elsewhere" / "0.tar", members_of(jpegs[:2], [0, 1]))
    assert load(root, "test").labels_N.tolist() == [0, 0, 1, 1]
    assert load(root, "test", test="elsewhere/0.tar").labels_N.tolist() == [0, 1]


# the index


def indices(cache_home: Path) -> list[Path]:
    return sorted((cache_home / "shard-indices").glob("*.npz"))


def test_the_index_is_built_once(root: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root)
    (index,) = indices(cache_home)
    written = index.stat().st_mtime_ns
    # A second reading of the headers would fail here.
    monkeypatch.setattr(tarfile, "open", None)
    again = load(root)
    assert contents_of(again) == contents_of(first)
    assert again.fingerprint() == first.fingerprint()
    assert (indices(cache_home), index.stat().st_mtime_ns) == ([index], written)


def test_a_changed_shard_is_indexed_anew(root: Path, jpegs: list[bytes]) -> None:
    load(root)
    write_tar(root / "train" / "001.tar", members_of(jpegs[:4][::-1], [0, 1, 2, 2], start=100))
    images = load(root)
    assert images.labels_N.tolist() == [*LABELS[:4], 0, 1, 2, 2, *LABELS[8:]]
    assert contents_of(images)[4:8] == jpegs[:4][::-1]


def test_a_shard_of_the_same_size_that_is_newer_is_indexed_anew(root: Path, jpegs: list[bytes]) -> None:
    load(root)
    path = root / "train" / "001.tar"
    before = path.stat()
    write_tar(path, members_of(jpegs[4:8], [0, 0, 1, 1], start=4))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert load(root).labels_N.tolist() == [*LABELS[:4], 0, 0, 1, 1, *LABELS[8:]]


@pytest.mark.parametrize(
    "content",
    [
        b"no index",
        b"",
        b"PK\x03\x04 damaged",
    ],
)
def test_a_damaged_index_is_built_again(root: Path, cache_home: Path, content: bytes) -> None:
    load(root)
    (index,) = indices(cache_home)
    index.write_bytes(content)
    assert load(root).labels_N.tolist() == LABELS
    assert len(index.read_bytes()) > len(content)


def test_an_index_that_can_not_be_stored_only_costs_time(root: Path, cache_home: Path) -> None:
    cache_home.parent.mkdir()
    cache_home.write_text("a file where the folder should be")
    assert load(root).labels_N.tolist() == LABELS


# what is wrong with a shard


def refused(root: Path, message: str, **selection: object) -> None:
    with pytest.raises(DataError, match=rf"^webdataset: .*{message}") as caught:
        load(root, **selection)
    assert "\n" not in str(caught.value)


def cut_to(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: cut_to(path, 1000),
            r"/001\.tar: the file is damaged or not a tar file \(unexpected end of data\)",
        ),
        (lambda path: cut_to(path, 100), r"/001\.tar: the file is damaged or not a tar file \(.*truncated header.*\)"),
        (lambda path: cut_to(path, 0), r"/001\.tar: the file is damaged or not a tar file \(.*empty.*\)"),
        (
            lambda path: path.write_text("<html>404</html>" * 90),
            r"/001\.tar: the file is damaged or not a tar file \(.*header",
        ),
        (lambda path: path.unlink(), r"/001\.tar: expected a tar file, found none; check --data-root, data\.train and"),
    ],
    ids=["data missing", "header missing", "empty", "text", "deleted"],
)
def test_a_damaged_shard_is_named(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root / "train" / "001.tar")
    refused(root, message, train="train/{000..002}.tar")


def header_of(path: Path, name: str) -> int:
    with tarfile.open(path) as shard:
        return shard.getmember(name).offset


@pytest.mark.parametrize("damage", ["cut between samples", "cut in a header", "a header overwritten"])
def test_no_sample_is_left_out_in_silence(root: Path, damage: str) -> None:
    path = root / "train" / "001.tar"
    start = header_of(path, "0006.jpg")
    content = path.read_bytes()
    damaged = {
        "cut between samples": content[:start],
        "cut in a header": content[: start + 100],
        "a header overwritten": content[:start] + b"\xff" * 512 + content[start + 512 :],
    }[damage]
    path.write_bytes(damaged)
    refused(root, r"/001\.tar: the file is damaged")


ONE_JPEG = encoded(make_photo(0))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("0.jpg", ONE_JPEG), ("0.cls", b"1"), ("1.jpg", ONE_JPEG)],
            "expected samples .*, but sample 1 has only one of them",
        ),
        (
            [("0.jpg", ONE_JPEG), ("0.cls", b"1"), ("1.cls", b"1")],
            "expected samples .*, but sample 1 has only one of them",
        ),
        (
            [("0.txt", b"text"), ("0.json", b"{}")],
            "expected samples of an image and a .cls file, but the shard has none",
        ),
        ([], "expected samples of an image and a .cls file, but the shard has none"),
        (
            [("0.jpg", ONE_JPEG), ("0.cls", b"cat")],
            "sample 0: label expected a whole number, got 'cat'; where names are labels, list them",
        ),
        ([("0.jpg", ONE_JPEG), ("0.cls", b"")], "sample 0: label expected a whole number, got ''"),
    ],
)
def test_an_incomplete_sample_is_refused(tmp_path: Path, members: Sequence[Member], message: str) -> None:
    write_tar(tmp_path / "train" / "0.tar", members)
    refused(tmp_path, rf"/train/0\.tar: {message}")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([("0.jpg", ONE_JPEG[::-1]), ("0.cls", b"0")], r"sample 0 has a second image, 0\.jpg"),
        ([("0.png", ONE_JPEG[::-1])], r"sample 0 has a second image, 0\.png"),
        ([("0.cls", b"0")], r"sample 0 has a second label, 0\.cls"),
    ],
    ids=["twice", "two kinds", "two labels"],
)
def test_a_sample_with_two_images_or_labels_is_refused(tmp_path: Path, second: Sequence[Member], message: str) -> None:
    write_tar(tmp_path / "train" / "0.tar", [("0.jpg", ONE_JPEG), ("0.cls", b"1"), *second])
    refused(tmp_path, rf"/train/0\.tar: {message}; give each sample a key of its own")


def test_a_mask_is_not_taken_for_the_image(tmp_path: Path) -> None:
    other = [("1.jpg", ONE_JPEG), ("1.cls", b"0")]
    masked = [("0.mask.png", ONE_JPEG[::-1]), ("0.jpg", ONE_JPEG), ("0.cls", b"1")]
    write_tar(tmp_path / "train" / "0.tar", [*masked, *other])
    assert contents_of(load(tmp_path)) == [ONE_JPEG, ONE_JPEG]


@pytest.mark.parametrize("label", [-1, CLASSES, 10**6])
def test_labels_beyond_the_classes_are_refused(tmp_path: Path, jpegs: list[bytes], label: int) -> None:
    write_tar(tmp_path / "train" / "0.tar", members_of(jpegs, [label, *LABELS[1:]]))
    got = f"{min(label, 0)} to {max(label, 2)}"
    remedy = "correct the labels" if label < 0 else r"set data\.num_classes"
    refused(tmp_path, rf"labels expected 0 to {CLASSES - 1}, got {got}; {remedy} \(sample 0000 has {label}\)")


def test_the_number_of_classes_is_required(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.num_classes: shards don't say how many .*; set it$"):
        load(root, num_classes=None)


@pytest.mark.parametrize("pattern", ["train/*.tar.gz", "no/*.tar", "{}.tar"])
def test_a_pattern_without_shards_is_refused(root: Path, pattern: str) -> None:
    refused(root, "expected (tar files|a tar file), found none; check --data-root", train=pattern)


def test_a_shard_that_shrinks_while_it_is_read_is_named(root: Path) -> None:
    images = load(root)
    cut_to(root / "train" / "001.tar", 1000)
    with pytest.raises(
        DataError, match=r"/001\.tar, sample 0004 \(index 4\): expected an image, got: a shard that ends"
    ):
        pixels_of(images)
    (root / "train" / "001.tar").unlink()
    with pytest.raises(DataError, match=r"/001\.tar, sample 0004 \(index 4\): .* got: No such file or directory"):
        pixels_of(images, workers=2)


# order


def tiny(labels: Sequence[int]) -> list[Member]:
    """Samples whose images are never decoded."""
    return members_of([b"x"] * len(labels), labels)


@pytest.mark.parametrize(
    ("num_classes", "per_class"),
    [
        (2, 300),
        (3, 200),
        (10, 60),
        (100, 6),
    ],
)
def test_sorted_samples_are_refused_for_training_and_shuffled_ones_are_not(
    tmp_path: Path, num_classes: int, per_class: int
) -> None:
    ordered = torch.arange(num_classes).repeat_interleave(per_class)
    shuffled = ordered[torch.randperm(len(ordered), generator=torch.Generator().manual_seed(0))]
    for name, labels in (("sorted", ordered), ("shuffled", shuffled)):
        for split in ("train", "val"):
            write_tar(tmp_path / name / split / "0.tar", tiny(labels.tolist()))
    refused(tmp_path / "sorted", r"sorted by label: .*; shuffle the list of samples before", num_classes=num_classes)
    assert load(tmp_path / "sorted", "test", num_classes=num_classes).labels_N.tolist() == ordered.tolist()
    assert load(tmp_path / "shuffled", num_classes=num_classes).labels_N.tolist() == shuffled.tolist()


# shards at a URL


class Server:
    """A folder's files over HTTP on this machine; counts the requests for each."""

    def __init__(self, root: Path, delay: float) -> None:
        requests: Counter[str] = Counter()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                requests[self.path] += 1
                time.sleep(delay)
                super().do_GET()

            def log_message(self, *arguments: object) -> None:
                pass

        self.requests = requests
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@contextmanager
def serving(root: Path, delay: float = 0.0) -> Iterator[Server]:
    server = Server(root, delay)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with serving(root) as server:
        yield server


REMOTE = {"train": "train/{000..002}.tar"}
SHARDS = [f"/train/{shard:03}.tar" for shard in range(3)]


def size_of(root: Path) -> int:
    """All shards together, in bytes."""
    return sum(path.stat().st_size for path in root.glob("train/*"))


def copies(cache_home: Path) -> list[Path]:
    return sorted((cache_home / "shards").glob("*.tar"))


def test_remote_shards_are_fetched_once(root: Path, server: Server, jpegs: list[bytes], cache_home: Path) -> None:
    images = load(server.url, **REMOTE)
    assert images.labels_N.tolist() == LABELS
    assert images.files.name(5) == f"{server.url}/train/001.tar, sample 0005"
    assert images.fingerprint() == load(root).fingerprint()
    assert torch.equal(pixels_of(images, workers=2), pixels_of(load(root)))
    assert contents_of(load(f"{server.url}/", **REMOTE)) == jpegs
    assert server.requests == dict.fromkeys(SHARDS, 1)
    assert {path.read_bytes() for path in copies(cache_home)} == {path.read_bytes() for path in root.glob("train/*")}
    assert not list(cache_home.rglob("*.partial"))


def test_fetched_copies_are_bounded(root: Path, server: Server, jpegs: list[bytes], cache_home: Path) -> None:
    images = load(server.url, keep_bytes=size_of(root) - 1, **REMOTE)
    assert len(copies(cache_home)) <= 2
    assert server.requests == dict.fromkeys(SHARDS, 1)
    for index in (0, 4, 8, 0, 11):
        assert images.files.read(index) == jpegs[index]
        assert len(copies(cache_home)) <= 2
    assert sum(server.requests.values()) > 3, "one of them was no longer here"


def test_the_copy_that_was_used_last_is_kept(root: Path, server: Server, cache_home: Path) -> None:
    images = load(server.url, train="train/{000..001}.tar", keep_bytes=size_of(root) - 1)
    for path in copies(cache_home):
        os.utime(path, (0, 0))
    images.files.read(0)
    load(server.url, train="train/002.tar", keep_bytes=size_of(root) - 1)
    images.files.read(0)
    assert server.requests == {SHARDS[0]: 1, SHARDS[1]: 1, SHARDS[2]: 1}
    images.files.read(4)
    assert server.requests[SHARDS[1]] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_room_for_one_copy_is_enough(root: Path, server: Server, workers: int) -> None:
    """Prefetched copies may be removed before they are read; then the reader fetches them again."""
    largest = max(path.stat().st_size for path in root.glob("train/*"))
    images = load(server.url, keep_bytes=largest, **REMOTE)
    assert torch.equal(pixels_of(images, workers=workers), pixels_of(load(root)))


def test_a_shard_that_is_larger_than_all_the_room_is_not_fetched(server: Server, cache_home: Path) -> None:
    with pytest.raises(DataError, match=r"001\.tar could not be fetched \(it announces [\d,]+ bytes, expected at most"):
        load(server.url, keep_bytes=1000, train="train/001.tar")
    assert copies(cache_home) == []


def test_a_copy_that_was_removed_is_fetched_again_by_whoever_reads(
    server: Server, jpegs: list[bytes], cache_home: Path
) -> None:
    images = load(server.url, **REMOTE)
    for path in copies(cache_home):
        path.unlink()
    assert images.files.read(6) == jpegs[6]
    assert server.requests == {SHARDS[0]: 1, SHARDS[1]: 2, SHARDS[2]: 1}


def test_a_repaired_shard_is_fetched_again(root: Path, server: Server, jpegs: list[bytes]) -> None:
    path = root / "train" / "001.tar"
    good = path.read_bytes()
    path.write_bytes(good[:1000])
    with pytest.raises(DataError, match=r"001\.tar: the file is damaged"):
        load(server.url, train="train/001.tar")
    path.write_bytes(good)
    assert contents_of(load(server.url, train="train/001.tar")) == jpegs[4:8]


@pytest.mark.parametrize("pattern", ["train/{000..00000.tar", "/elsewhere/*.tar", "/elsewhere/0.tar"])
def test_an_impossible_pattern_is_refused(root: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=rf"^webdataset: {re.escape(pattern)}: expected a pl?a"):
        load(root, train=pattern)


def test_a_missing_remote_shard_is_named(server: Server) -> None:
    with pytest.raises(DataError, match=rf"^webdataset: {server.url}/train/003\.tar could not be fetched \(.*\)$"):
        load(server.url, train="train/{000..003}.tar")


def test_a_shard_that_appears_later_is_found(root: Path, server: Server, jpegs: list[bytes], cache_home: Path) -> None:
    for _ in range(5):
        with pytest.raises(DataError, match="could not be fetched"):
            load(server.url, train="train/003.tar")
        assert copies(cache_home) == []
    write_tar(root / "train" / "003.tar", members_of(jpegs, LABELS))
    assert contents_of(load(server.url, train="train/003.tar")) == jpegs


@pytest.mark.timeout(120)
def test_a_download_that_breaks_off_leaves_nothing(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    class BreaksOff(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 5000)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff) as broken:
        thread = threading.Thread(target=broken.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            url = f"http://127.0.0.1:{broken.server_address[1]}/0.tar"
            for _ in range(3):
                with pytest.raises(DataError, match="could not be fetched"):
                    ShardCopies(cache_home / "shards", 10**9).fetch(url)
        finally:
            broken.shutdown()
            thread.join()
    assert copies(cache_home) == []


def test_an_unreachable_server_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(root) as server:
        images = load(server.url, train="train/000.tar")
    assert len(contents_of(images)) == 4, "copies need no server"
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(DataError, match=rf"^webdataset: {server.url}/train/001\.tar could not be fetched"):
        load(server.url, train="train/001.tar")


def test_a_remote_shard_that_changed_is_noticed(
    root: Path, server: Server, jpegs: list[bytes], cache_home: Path
) -> None:
    images = load(server.url, **REMOTE)
    write_tar(root / "train" / "001.tar", members_of(jpegs, LABELS))
    for path in copies(cache_home):
        path.unlink()
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"/001\.tar: expected [\d,]+ bytes, as when it was indexed") as caught:
            pixels_of(images, workers=workers)
        assert "\n" not in str(caught.value)
        assert str(indices(cache_home)[0]) in str(caught.value)
    indices(cache_home)[0].unlink()
    assert len(load(server.url, **REMOTE)) == SAMPLES + 8, "the remedy helps"


# several at once


def test_threads_fetch_a_shard_once(root: Path, cache_home: Path) -> None:
    with serving(root, delay=0.2) as server:
        fetched: list[Path] = []
        threads = [
            threading.Thread(
                target=lambda: fetched.append(
                    ShardCopies(cache_home / "shards", 10**9).fetch(f"{server.url}{SHARDS[0]}")
                )
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.requests == {SHARDS[0]: 1}
    assert len(fetched) == 4
    assert {path.read_bytes() for path in fetched} == {(root / SHARDS[0][1:]).read_bytes()}


def test_processes_fetch_a_shard_once(root: Path, cache_home: Path) -> None:
    context = multiprocessing.get_context("fork")
    with serving(root, delay=0.2) as server:
        fetch, arguments = ShardCopies(cache_home / "shards", 10**9).fetch, (f"{server.url}{SHARDS[0]}",)
        fetchers = [context.Process(target=fetch, args=arguments) for _ in range(3)]
        for fetcher in fetchers:
            fetcher.start()
        for fetcher in fetchers:
            fetcher.join(60)
        assert [fetcher.exitcode for fetcher in fetchers] == [0, 0, 0]
        assert server.requests == {SHARDS[0]: 1}
    assert [path.read_bytes() for path in copies(cache_home)] == [(root / SHARDS[0][1:]).read_bytes()]
