"""WebDataset shards: tar files whose members NAME.jpg (or png, …) and NAME.cls (the label, a number) make a sample.

Sample `index` is the order in which the shards, as they are named, hold them, so a run of indices is a run of bytes of
one or two shards. Where each image lies in its shard is found once, by reading the tar headers, and kept in the user's
cache folder. Shards at a URL are fetched one by one into a bounded folder, shortly before they are read.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.locks import locked
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.encoded import EncodedFiles, PhotoSet
from dhkd.data.sources.base import Place, Source
from dhkd.data.sources.image_folder import SUFFIXES
from numpy.typing import NDArray

log = logging.getLogger("dhkd")

RUN = 256  # consecutive samples that should hold mixed classes
LEAST_MIXED = 0.5  # of the classes beyond the first that as many shuffled samples would hold


@dataclass(frozen=True)
class Index:
    """Where every sample is: shard number, first byte and length of its image, label, name."""

    shard_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    name_N: NDArray[np.bytes_]
    bytes_of_shard: NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Shards to be read: local ones where they are, those at a URL as copies in `folder`, which all processes share.

    At most about `keep_bytes` of copies are kept; the longest unused go first.
    """

    folder: Path
    keep_bytes: int

    def open(self, url: str) -> BinaryIO:
        """The shard, or its copy, which is fetched when it isn't there. Raises `DataError` where that fails."""
        if not _is_remote(url):
            return Path(url).open("rb")
        with _fetching(url):
            return self._kept.open(_name(url), partial(_copy, url))

    def fetch(self, url: str) -> Path:
        """The copy of the shard at a URL."""
        with _fetching(url):
            return self._kept.fetch(_name(url), partial(_copy, url))

    def forget(self, url: str) -> None:
        """Remove the copy of a shard, so that a better one can be fetched; a local shard stays."""
        if _is_remote(url):
            self._kept.forget(_name(url))

    @property
    def _kept(self) -> BoundedCopies:
        return BoundedCopies(self.folder, self.keep_bytes)


def _name(url: str) -> str:
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"


def _copy(url: str, out: BinaryIO) -> None:
    from webdataset.gopen import gopen

    with gopen(url, "rb") as stream:
        shutil.copyfileobj(stream, out, 1 << 20)


@contextlib.contextmanager
def _fetching(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(f"webdataset: {url} could not be fetched ({_reason(error)})") from error


class ShardFiles(EncodedFiles):
    """Images inside tar files. `urls` names the shards, each a local path or a URL."""

    def __init__(self, urls: Sequence[str], index: Index, copies: Copies) -> None:
        self._urls, self._index, self._copies = urls, index, copies

    def read(self, index: int) -> bytes:
        """The image's bytes. Raises `DataError` where the shard ends before them."""
        where = self._index
        size = int(where.size_N[index])
        with self._open(int(where.shard_N[index])) as shard:
            shard.seek(int(where.offset_N[index]))
            content = shard.read(size)
        if len(content) != size:
            raise DataError(f"a shard that ends after {len(content)} of the image's {size} bytes")
        return content

    def name(self, index: int) -> str:
        """The shard and the sample's name in it."""
        name = os.fsdecode(bytes(self._index.name_N[index]))
        return f"{self._urls[int(self._index.shard_N[index])]}, sample {name}"

    def names(self, num_samples: int) -> bytes:
        """The samples' names."""
        return b"\n".join(self._index.name_N[:num_samples].tolist())

    def expect(self, index_B: torch.Tensor) -> None:
        """Fetch the shards of these samples, those that are not here."""
        shards = np.unique(self._index.shard_N[index_B.numpy()]).tolist()
        if any(_is_remote(self._urls[shard]) for shard in shards):
            with ThreadPoolExecutor(max_workers=4, thread_name_prefix="fetch") as threads:
                for stream in threads.map(self._open, shards):
                    stream.close()

    def _open(self, shard: int) -> BinaryIO:
        url = self._urls[shard]
        stream = self._copies.open(url)
        expected, got = int(self._index.bytes_of_shard[shard]), os.fstat(stream.fileno()).st_size
        if _is_remote(url) and got != expected:
            stream.close()
            self._copies.forget(url)
            raise DataError(
                f"{url}: expected {expected:,} bytes, as when it was indexed, got {got:,};"
                f" delete {_index_path(self._urls)} to index the shards anew"
            )
        return stream


def load(split: str, place: Place) -> PhotoSet:
    """A split below the root of `place`: the shards `train/*.tar` and `val/*.tar`, or those that it names."""
    if place.root is None:
        raise ConfigError("webdataset: expected the place of its files; name it with --data-root")
    if place.num_classes is None:
        raise ConfigError("data.num_classes: shards don't say how many classes there are; set it")
    pattern = (place.train or "train/*.tar") if split == "train" else (place.test or "val/*.tar")
    return samples_of(split, expand(place.root, pattern), place.num_classes, place.keep_bytes)


def samples_of(split: str, urls: Sequence[str], num_classes: int, keep_bytes: int) -> PhotoSet:
    """The samples of the shards at `urls`, in this order.

    Raises `DataError` for shards that are missing, damaged or hold anything but images with labels, for labels beyond
    `num_classes`, and for a training split whose samples are sorted by label.
    """
    copies = Copies(user_cache_folder() / "shards", keep_bytes)
    index = _index(urls, copies)
    least, most = int(index.label_N.min()), int(index.label_N.max())
    if least < 0 or most >= num_classes:
        raise DataError(
            f"webdataset: {urls[0]} …: labels expected 0 to {num_classes - 1}, got {least} to {most};"
            f" set data.num_classes"
        )
    if split == "train":
        _require_mixed(urls[0], index.label_N)
    files = ShardFiles(urls, index, copies)
    return PhotoSet("webdataset", split, files, torch.from_numpy(index.label_N), num_classes)


def expand(root: str, pattern: str) -> list[str]:
    """The shards that a pattern names below `root`: {000..127} counts, and * and ? match local files."""
    from webdataset.shardlists import expand_urls

    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise ConfigError(f"webdataset: {pattern}: expected a pattern like train/{{000..127}}.tar ({error})") from error
    if any(name.startswith("/") for name in names):
        raise ConfigError(f"webdataset: {pattern}: expected a place below --data-root, got an absolute path")
    urls: list[str] = []
    for name in names:
        if not any(letter in name for letter in "*?["):
            urls.append(f"{root.rstrip('/')}/{name}")
        elif _is_remote(root):
            raise DataError(
                f"webdataset: {root}/{name}: what is at a URL can't be listed; name the shards with data.train and"
                f" data.test, counting in braces: train/{{000000..001281}}.tar"
            )
        else:
            urls += sorted(str(path) for path in Path(root).glob(name))
    if not urls:
        raise DataError(
            f"webdataset: {root}/{pattern}: expected tar files, found none; check --data-root, data.train and data.test"
        )
    return urls


def _index(urls: Sequence[str], copies: Copies) -> Index:
    """The index of the shards: the one that was kept, else read from their headers."""
    path = _index_path(urls)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a cache folder that can't be written to costs time alone
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(path) as arrays:
            return Index(**{name: arrays[name] for name in Index.__annotations__})
        log.info("webdataset: reading the headers of %d shards, once", len(urls))
        index = _read_index(urls, copies)
        arrays = {name: getattr(index, name) for name in Index.__annotations__}
        with contextlib.suppress(OSError):
            write_atomically(path, lambda stream: np.savez(stream, **arrays))
        return index


def _read_index(urls: Sequence[str], copies: Copies) -> Index:
    # In this process alone: a killed one's children would go on and keep the lock.
    shards = [_samples(url, copies) for url in urls]
    names, offsets, sizes, labels = zip(*(sample for samples, _ in shards for sample in samples), strict=True)
    counts = [len(samples) for samples, _ in shards]
    return Index(
        np.arange(len(urls), dtype=np.int32).repeat(counts),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.array(names, dtype=np.bytes_),
        np.array([shard_bytes for _, shard_bytes in shards], dtype=np.int64),
    )


def _samples(url: str, copies: Copies) -> tuple[list[tuple[bytes, int, int, int]], int]:
    """Name, first byte and length of the image, and label of each sample of a shard, in order; the shard's size."""
    try:
        stream = copies.open(url)
    except FileNotFoundError as error:
        raise DataError(
            f"webdataset: {url}: expected a tar file, found none; check --data-root, data.train and data.test"
        ) from error
    except OSError as error:
        raise DataError(f"webdataset: {url}: the shard is damaged or none ({_reason(error)})") from error
    with stream:
        try:
            images, labels = _members(stream)
        except (tarfile.TarError, OSError, ValueError) as error:
            copies.forget(url)
            raise DataError(f"webdataset: {url}: the shard is damaged or none ({_reason(error)})") from error
        shard_bytes = os.fstat(stream.fileno()).st_size
    lonely = sorted(images.keys() ^ labels.keys())
    if lonely or not images:
        found = f"sample {lonely[0]} has only one of them" if lonely else "it has neither"
        raise DataError(f"webdataset: {url}: expected samples of an image and a .cls file, {found}")
    return [(os.fsencode(name), *place, labels[name]) for name, place in images.items()], shard_bytes


def _members(stream: BinaryIO) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """By samples' names, first byte and length of each image, and each label.

    Raises `ValueError` or `tarfile.TarError` for what is no whole tar file of such samples.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(fileobj=stream, mode="r:") as shard:
        for member in shard:
            shard.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            if not member.isfile():
                continue
            parent, slash, file = member.name.rpartition("/")
            stem, dot, suffix = file.partition(".")
            name, kind = parent + slash + stem, dot + suffix.lower()
            if kind not in SUFFIXES and kind != ".cls":
                continue
            if name in (labels if kind == ".cls" else images):
                raise ValueError(f"sample {name} has a second {'label' if kind == '.cls' else 'image'}, {file}")
            if kind == ".cls":
                content = shard.extractfile(member)
                assert content is not None
                labels[name] = int(content.read())
            else:
                images[name] = (member.offset_data, member.size)
        # What tarfile can't read it takes for the end: behind the last member only zeros may follow, and must.
        stream.seek(shard.offset)
        rest = stream.read()
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
            raise ValueError(f"it ends, or is damaged, at byte {shard.offset:,}")
    return images, labels


def _index_path(urls: Sequence[str]) -> Path:
    """Named by what the shards are called and, where that can be seen, how large and how old they are."""
    digest = hashlib.sha256()
    for url in urls:
        digest.update(url.encode() + b"\n")
        if not _is_remote(url):
            with contextlib.suppress(OSError):
                facts = os.stat(url)
                digest.update(f"{os.path.abspath(url)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return user_cache_folder() / "shard-indices" / f"{digest.hexdigest()[:32]}.npz"


def _require_mixed(url: str, label_N: NDArray[np.int64]) -> None:
    run = min(RUN, max(2, len(label_N) // 4))
    runs = label_N[: len(label_N) // run * run].reshape(-1, run)
    if len(runs) < 2:
        return
    distinct = float(np.mean([len(np.unique(labels)) for labels in runs]))
    share_K = np.bincount(label_N) / len(label_N)
    shuffled = float((1 - (1 - share_K) ** run).sum())
    if distinct - 1 < LEAST_MIXED * (shuffled - 1):
        raise DataError(
            f"webdataset: {url} …: samples are sorted by label: {run} consecutive ones hold {distinct:.1f} classes on"
            f" average, shuffled ones would hold {shuffled:.1f}, and training needs mixed blocks; shuffle the list of"
            f" samples before packing it into shards"
        )


def _is_remote(url: str) -> bool:
    return "://" in url or url.startswith("pipe:")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


SOURCE = Source(load, takes=("train", "test", "num_classes"))
