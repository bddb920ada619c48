"""The index of shards: where each image lies in its shard, and the image's label.

The index is made once, by reading the headers of the tar files, and kept in the user's cache folder.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dhkd.data.disk.kept_arrays import kept_arrays
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import DataError
from dhkd.data.progress import progress
from dhkd.data.sources.shard_labels import LabelForm
from dhkd.data.sources.shard_members import Sample, damaged, samples_in
from dhkd.data.sources.shard_urls import ShardCopies, is_remote
from numpy.typing import NDArray

log = logging.getLogger("dhkd")

USUAL_LABELS = LabelForm()


@dataclass(frozen=True)
class ShardIndex:
    """For each sample, its shard's number, its image's first byte and length in the shard, its label and its name.

    `label_offset_N` and `label_size_N` say where the label stands in the shard. `crc_N` is a checksum of the sample's
    headers and label, by which a reader notices that the shard is not the one that was indexed. `bytes_of_shard` is the
    size of each shard.
    """

    shard_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    name_N: NDArray[np.bytes_]
    label_offset_N: NDArray[np.int64]
    label_size_N: NDArray[np.int64]
    crc_N: NDArray[np.uint32]
    bytes_of_shard: NDArray[np.int64]


def index_of(urls: Sequence[str], copies: ShardCopies, form: LabelForm = USUAL_LABELS) -> ShardIndex:
    """Return the index of the shards at `urls`: the stored index if it exists, or else a new one.

    Raises `DataError` for a shard that is missing, damaged or compressed, for a sample without an image or a label, and
    if no shard has a sample.
    """
    path = index_path(urls, form)
    names = list(ShardIndex.__annotations__)

    def make() -> dict[str, NDArray[Any]]:
        log.info("webdataset: reading the headers of %d shards, once", len(urls))
        index = _read_index(urls, copies, form)
        return {name: getattr(index, name) for name in names}

    return ShardIndex(**kept_arrays(path, names, make))


def index_path(urls: Sequence[str], form: LabelForm = USUAL_LABELS) -> Path:
    """Return the path of the stored index; the file name is a hash of URLs and of local files' sizes and times.

    The times include that of the last change of a file's entry, which can't be set back: a copy may keep the time of
    the original's content.
    """
    digest = hashlib.sha256(form.identity.encode())
    for url in urls:
        digest.update(os.fsencode(url) + b"\n")
        if not is_remote(url):
            with contextlib.suppress(OSError):
                status = os.stat(url)
                times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
                digest.update(os.fsencode(f"{os.path.abspath(url)} {status.st_size} {times}\n"))
    return user_cache_folder() / "shard-indices" / f"{digest.hexdigest()[:32]}.npz"


def _read_index(urls: Sequence[str], copies: ShardCopies, form: LabelForm) -> ShardIndex:
    # Shards are read without child processes: if this process were killed, its children would go on and keep the lock.
    shards = []
    with progress("reading the headers of shards", len(urls), bar=False) as advance:
        for url in urls:
            shards.append(_samples_of_shard(url, copies, form))
            advance(1)
    samples = [sample for of_shard, _ in shards for sample in of_shard]
    if not samples:
        expected = f"samples of an image and a {form.suffix} file" if form.used else "images"
        raise DataError(
            f"webdataset: {urls[0]}{' …' if len(urls) > 1 else ''}: expected {expected}, but the"
            f" {'shards have' if len(urls) > 1 else 'shard has'} none"
        )
    index = ShardIndex(
        np.arange(len(urls), dtype=np.int32).repeat([len(of_shard) for of_shard, _ in shards]),
        np.array([sample.image.start for sample in samples], dtype=np.int64),
        np.array([sample.image.size for sample in samples], dtype=np.int64),
        np.array([sample.label for sample in samples], dtype=np.int64),
        np.array([sample.name for sample in samples], dtype=np.bytes_),
        np.array([sample.label_at.start for sample in samples], dtype=np.int64),
        np.array([sample.label_at.size for sample in samples], dtype=np.int64),
        np.array([sample.crc for sample in samples], dtype=np.uint32),
        np.array([shard_bytes for _, shard_bytes in shards], dtype=np.int64),
    )
    _tell_of_repeated_keys(index.name_N, index.shard_N, urls)
    return index


def _samples_of_shard(url: str, copies: ShardCopies, form: LabelForm) -> tuple[list[Sample], int]:
    """Return the samples of a shard, in order, and the shard's size in bytes."""
    try:
        stream = copies.open(url)
    except FileNotFoundError as error:
        raise DataError(
            f"webdataset: {url}: expected a tar file, found none; check --data-root, data.train and data.test"
        ) from error
    except OSError as error:
        raise damaged(url, error) from error
    with stream:
        try:
            samples = samples_in(url, stream, form)
        except DataError:
            copies.forget(url)
            raise
        return samples, os.fstat(stream.fileno()).st_size


def _tell_of_repeated_keys(names_N: NDArray[np.bytes_], shard_N: NDArray[np.int32], urls: Sequence[str]) -> None:
    """Log if samples in two shards have the same key, which often means that they were packed twice."""
    unique, counts = np.unique(names_N, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    if len(repeated):
        name = unique[repeated[0]]
        shards = [urls[shard] for shard in shard_N[np.flatnonzero(names_N == name)[:2]]]
        log.warning(
            "webdataset: %d keys are in several shards, %s in %s and %s; all their samples are used",
            len(repeated),
            os.fsdecode(bytes(name)),
            *shards,
        )
