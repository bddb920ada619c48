"""WebDataset shards: tar files in which NAME.jpg (or png, …) and NAME.cls (the label, a number) make a sample.

Samples are numbered in the order in which the shards hold them, so consecutive samples lie side by side in one shard or
in two. Shards at a URL are fetched one by one, shortly before they are read.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import torch
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.encoded import EncodedFiles, PhotoSet
from dhkd.data.shown import redacted
from dhkd.data.sources.base import Place, Source
from dhkd.data.sources.shard_index import ShardIndex, index_of, index_path
from dhkd.data.sources.shard_urls import ShardCopies, expand, is_remote
from numpy.typing import NDArray

RUN = 256  # consecutive samples that should hold mixed classes
# A run must hold at least this fraction of the classes that a shuffled run would hold, not counting one class in both.
LEAST_MIXED = 0.5


def load(split: str, place: Place) -> PhotoSet:
    """Load a split from below the root of `place`: train/*.tar or val/*.tar, unless `place` names other shards."""
    if place.root is None:
        raise ConfigError("webdataset: expected the place of its files; name it with --data-root")
    if place.num_classes is None:
        raise ConfigError("data.num_classes: shards don't say how many classes there are; set it")
    pattern = (place.train or "train/*.tar") if split == "train" else (place.test or "val/*.tar")
    return samples_of(split, expand(place.root, pattern), place.num_classes, place.keep_bytes)


def samples_of(split: str, urls: Sequence[str], num_classes: int, keep_bytes: int) -> PhotoSet:
    """Load the samples of the shards at `urls`, in this order.

    Raises `DataError` for a shard that is missing, damaged or empty, for a sample without an image or a label, for
    labels outside 0 to `num_classes` - 1, and for a training split whose samples are sorted by label.
    """
    copies = ShardCopies(user_cache_folder() / "shards", keep_bytes)
    index = index_of(urls, copies)
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


class ShardFiles(EncodedFiles):
    """Images inside tar files. `urls` names the shards, each a local path or a URL."""

    def __init__(self, urls: Sequence[str], index: ShardIndex, copies: ShardCopies) -> None:
        self._urls, self._index, self._copies = urls, index, copies

    def read(self, index: int) -> bytes:
        """Return the image's bytes. Raises `DataError` if the shard ends too early."""
        size = int(self._index.size_N[index])
        with self._open(int(self._index.shard_N[index])) as shard:
            shard.seek(int(self._index.offset_N[index]))
            content = shard.read(size)
        if len(content) != size:
            raise DataError(f"a shard that ends after {len(content)} of the image's {size} bytes")
        return content

    def name(self, index: int) -> str:
        """Return the shard's path or URL, without secrets, and the sample's name in that shard."""
        sample = os.fsdecode(bytes(self._index.name_N[index]))
        return f"{redacted(self._urls[int(self._index.shard_N[index])])}, sample {sample}"

    def names(self, num_samples: int) -> bytes:
        """Return the samples' names, one per line."""
        return b"\n".join(self._index.name_N[:num_samples].tolist())

    def expect(self, index_B: torch.Tensor) -> None:
        """Fetch the remote shards that hold these samples, unless copies of the shards exist."""
        shards = np.unique(self._index.shard_N[index_B.numpy()]).tolist()
        if any(is_remote(self._urls[shard]) for shard in shards):
            with ThreadPoolExecutor(max_workers=4, thread_name_prefix="fetch") as threads:
                for stream in threads.map(self._open, shards):
                    stream.close()

    def _open(self, shard: int) -> BinaryIO:
        url = self._urls[shard]
        stream = self._copies.open(url)
        expected, got = int(self._index.bytes_of_shard[shard]), os.fstat(stream.fileno()).st_size
        if is_remote(url) and got != expected:
            stream.close()
            self._copies.forget(url)
            raise DataError(
                f"{url}: expected {expected:,} bytes, as when it was indexed, got {got:,};"
                f" delete {index_path(self._urls)} to index the shards anew"
            )
        return stream


def _require_mixed(url: str, label_N: NDArray[np.int64]) -> None:
    """Raise `DataError` if consecutive samples hold far fewer classes than shuffled samples would."""
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


SOURCE = Source(load, takes=("train", "test", "num_classes"))
