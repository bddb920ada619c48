"""The index of shards: where each image lies in its shard, and the image's label.

The index is made once, by reading the headers of the tar files, and kept in the user's cache folder.
"""

import contextlib
import hashlib
import logging
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zipfile import BadZipFile

import numpy as np
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.disk.locks import locked
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import DataError
from dhkd.data.progress import progress
from dhkd.data.sources.image_folder import SUFFIXES
from dhkd.data.sources.shard_urls import ShardCopies, is_remote, reason_of
from numpy.typing import NDArray

log = logging.getLogger("dhkd")


@dataclass(frozen=True)
class ShardIndex:
    """For each sample, its shard's number, its image's first byte and length in the shard, its label and its name.

    `bytes_of_shard` is the size of each shard.
    """

    shard_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    name_N: NDArray[np.bytes_]
    bytes_of_shard: NDArray[np.int64]


class _Sample(NamedTuple):
    name: bytes
    offset: int
    size: int
    label: int


def index_of(urls: Sequence[str], copies: ShardCopies) -> ShardIndex:
    """Return the index of the shards at `urls`: the stored index if it exists, or else a new one.

    Raises `DataError` for a shard that is missing, damaged or empty, and for a sample without an image or a label.
    """
    path = index_path(urls)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # if the cache folder can't be written, the index is made anew each time
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(path) as arrays:
            return ShardIndex(**{name: arrays[name] for name in ShardIndex.__annotations__})
        log.info("webdataset: reading the headers of %d shards, once", len(urls))
        index = _read_index(urls, copies)
        arrays = {name: getattr(index, name) for name in ShardIndex.__annotations__}
        with contextlib.suppress(OSError):
            write_atomically(path, lambda stream: np.savez(stream, **arrays))
        return index


def index_path(urls: Sequence[str]) -> Path:
    """Return the path of the stored index; the file name is a hash of URLs and of local files' sizes and times."""
    digest = hashlib.sha256()
    for url in urls:
        digest.update(os.fsencode(url) + b"\n")
        if not is_remote(url):
            with contextlib.suppress(OSError):
                status = os.stat(url)
                digest.update(os.fsencode(f"{os.path.abspath(url)} {status.st_size} {status.st_mtime_ns}\n"))
    return user_cache_folder() / "shard-indices" / f"{digest.hexdigest()[:32]}.npz"


def _read_index(urls: Sequence[str], copies: ShardCopies) -> ShardIndex:
    # Shards are read without child processes: if this process were killed, its children would go on and keep the lock.
    shards = []
    with progress("reading the headers of shards", len(urls), bar=False) as advance:
        for url in urls:
            shards.append(_samples_of_shard(url, copies))
            advance(1)
    names, offsets, sizes, labels = zip(*(sample for samples, _ in shards for sample in samples), strict=True)
    counts = [len(samples) for samples, _ in shards]
    return ShardIndex(
        np.arange(len(urls), dtype=np.int32).repeat(counts),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.array(names, dtype=np.bytes_),
        np.array([shard_bytes for _, shard_bytes in shards], dtype=np.int64),
    )


def _samples_of_shard(url: str, copies: ShardCopies) -> tuple[list[_Sample], int]:
    """Return the samples of a shard, in order, and the shard's size in bytes."""
    try:
        stream = copies.open(url)
    except FileNotFoundError as error:
        raise DataError(
            f"webdataset: {url}: expected a tar file, found none; check --data-root, data.train and data.test"
        ) from error
    except OSError as error:
        raise _damaged(url, error) from error
    with stream:
        try:
            images, labels = _members(stream)
        except (tarfile.TarError, OSError, ValueError) as error:
            copies.forget(url)
            raise _damaged(url, error) from error
        shard_bytes = os.fstat(stream.fileno()).st_size
    lonely = sorted(images.keys() ^ labels.keys())
    if lonely or not images:
        lacking = f"sample {lonely[0]} has only one of them" if lonely else "the shard has none"
        raise DataError(f"webdataset: {url}: expected samples of an image and a .cls file, but {lacking}")
    samples = [_Sample(os.fsencode(name), *span, labels[name]) for name, span in images.items()]
    return samples, shard_bytes


def _damaged(url: str, error: BaseException) -> DataError:
    return DataError(f"webdataset: {url}: the file is damaged or not a tar file ({reason_of(error)})")


def _members(stream: BinaryIO) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Return two tables by sample name: the first byte and length of each image, and each label.

    Raises `ValueError` or `tarfile.TarError` for anything but a complete tar file of images and labels.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(fileobj=stream, mode="r:") as shard:
        for member in shard:
            shard.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
            if not member.isfile():
                continue
            name, suffix = _sample_and_suffix(member.name)
            if suffix not in SUFFIXES and suffix != ".cls":
                continue
            if name in (labels if suffix == ".cls" else images):
                kind = "label" if suffix == ".cls" else "image"
                raise ValueError(f"sample {name} has a second {kind}, {member.name.rpartition('/')[2]}")
            if suffix == ".cls":
                content = shard.extractfile(member)
                assert content is not None
                labels[name] = int(content.read())
            else:
                images[name] = (member.offset_data, member.size)
        # tarfile takes an unreadable header for the end of the file, but only zeros may follow the last member.
        stream.seek(shard.offset)
        rest = stream.read()
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
            raise ValueError(f"it ends, or is damaged, at byte {shard.offset:,}")
    return images, labels


def _sample_and_suffix(member: str) -> tuple[str, str]:
    """Split a member's path at the first dot of the file name; the suffix is returned in lower case."""
    parent, slash, file = member.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return parent + slash + stem, dot + suffix.lower()
