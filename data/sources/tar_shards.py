"""WebDataset shards: tar files in which NAME.jpg (or png, …) and NAME.cls (the label, a number) make a sample.

The setting `data.label` names another member for the label.

Samples are numbered in the order in which the shards hold them, so consecutive samples lie side by side in one shard or
in two. Shards at a URL are fetched one by one, shortly before they are read.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import ConfigError, DataChanged, DataError
from dhkd.data.images.decoding import USUAL, Reading
from dhkd.data.images.encoded import EncodedFiles, PhotoSet
from dhkd.data.shown import redacted
from dhkd.data.sources.base import OF_FILES, Place, Source
from dhkd.data.sources.class_order import BY_NAME, BY_NUMBER, classes_listed
from dhkd.data.sources.mixed_order import sorted_runs
from dhkd.data.sources.shard_index import USUAL_LABELS, ShardIndex, index_of, index_path
from dhkd.data.sources.shard_labels import LabelForm
from dhkd.data.sources.shard_members import Span, crc_of
from dhkd.data.sources.shard_urls import ShardCopies, expand, is_remote
from numpy.typing import NDArray

log = logging.getLogger("dhkd")


def load(split: str, place: Place) -> PhotoSet:
    """Load a split from below the root of `place`: train/*.tar or val/*.tar, unless `place` names other shards."""
    if place.root is None:
        raise ConfigError("webdataset: expected the place of its files; name it with --data-root")
    pattern = (place.train or "train/*.tar") if split == "train" else (place.test or "val/*.tar")
    if place.labels == "none":
        return _without_labels(split, expand(place.root, pattern), place)
    names = _names_of_classes(place)
    num_classes = len(names) if names and place.num_classes is None else place.num_classes
    if num_classes is None:
        raise ConfigError("data.num_classes: shards don't say how many classes there are; set it")
    if names and num_classes != len(names):
        raise ConfigError(
            f"data.num_classes: expected {len(names)}, as data.classes lists, got {num_classes}; leave it out"
        )
    form = LabelForm(place.label or USUAL_LABELS.spec, names)
    return samples_of(split, expand(place.root, pattern), num_classes, place, form)


def _without_labels(split: str, urls: Sequence[str], place: Place) -> PhotoSet:
    """Load the images of the shards in their order, whether there are labels beside them or not."""
    copies, form = ShardCopies(user_cache_folder() / "shards", place.keep_bytes), LabelForm(used=False)
    num_classes, index = place.classes_without_labels, index_of(urls, copies, form)
    files, number = ShardFiles(urls, index, copies, index_path(urls, form), place.reading), len(index.name_N)
    return PhotoSet("webdataset", split, files, None, num_classes, levels=place.levels, num_samples=number)


def samples_of(
    split: str, urls: Sequence[str], num_classes: int, place: Place, form: LabelForm = USUAL_LABELS
) -> PhotoSet:
    """Load the samples of the shards at `urls`, in this order; `place` holds the settings.

    Raises `DataError` for a shard that is missing, damaged or compressed, for a sample without an image or a label, for
    labels outside of the classes, for labels that begin at 1 unless `place.first_label` says so, and for a training
    split whose samples are sorted by label.
    """
    copies = ShardCopies(user_cache_folder() / "shards", place.keep_bytes)
    index = index_of(urls, copies, form)
    _require_numbered(urls[0], split, index, num_classes, place.first_label)
    label_N = index.label_N - (place.first_label or 0)
    if split == "train":
        _require_mixed(urls[0], label_N)
    files = ShardFiles(urls, index, copies, index_path(urls, form), place.reading)
    return PhotoSet(
        "webdataset", split, files, torch.from_numpy(label_N), num_classes, levels=place.levels, class_names=form.names
    )


def _names_of_classes(place: Place) -> tuple[str, ...]:
    """Return the classes that the file `data.classes` lists, in order; none if it isn't set."""
    if place.classes is None:
        return ()
    if place.classes in (BY_NAME, BY_NUMBER):
        raise ConfigError(
            f"data.classes: webdataset takes a file that lists the classes, got {place.classes}; leave it out"
        )
    assert place.root is not None
    return tuple(classes_listed(place.classes, Path("." if is_remote(place.root) else place.root)))


def _require_numbered(url: str, split: str, index: ShardIndex, num_classes: int, first_label: int | None) -> None:
    """Raise `DataError` for labels outside of the classes, and for labels that seem to begin at 1."""
    first = first_label or 0
    label_N = index.label_N
    least, most = int(label_N.min()), int(label_N.max())
    used = most - least + 1
    begins_at_one = first_label is None and least == 1 and most >= num_classes - 1 and len(np.unique(label_N)) == used
    if begins_at_one and used > 1:
        raise DataError(
            f"webdataset: {url} …: labels expected 0 to {num_classes - 1}, got 1 to {most}, so nothing has label 0; if"
            f" the first class is 1, set data.first_label=1 and data.num_classes={most}, or else data.first_label=0"
        )
    if least < first or most - first >= num_classes:
        odd = least if least < first else most
        sample = os.fsdecode(bytes(index.name_N[int(np.flatnonzero(label_N == odd)[0])]))
        remedy = "correct the labels" if least < first else "set data.num_classes"
        raise DataError(
            f"webdataset: {url} …: labels expected {first} to {first + num_classes - 1}, got {least} to {most};"
            f" {remedy} (sample {sample} has {odd})"
        )
    without = sorted(set(range(first, first + num_classes)) - set(np.unique(label_N).tolist()))
    if split == "train" and without:
        log.warning(
            "webdataset: %s …: %d of %d classes have no training sample, %d among them; check data.num_classes",
            url,
            len(without),
            num_classes,
            without[0],
        )


class ShardFiles(EncodedFiles):
    """Images inside tar files. `urls` names the shards, each a local path or a URL."""

    def __init__(
        self, urls: Sequence[str], index: ShardIndex, copies: ShardCopies, stored: Path, reading: Reading = USUAL
    ) -> None:
        self._urls, self._index, self._copies, self._stored = urls, index, copies, stored
        self.reading = reading

    def read(self, index: int) -> bytes:
        """Return the image's bytes.

        Raises `DataError` if the shard ends too early, and `DataChanged` if another sample stands where this one was.
        """
        image = Span(int(self._index.offset_N[index]), int(self._index.size_N[index]))
        label = Span(int(self._index.label_offset_N[index]), int(self._index.label_size_N[index]))
        with self._open(int(self._index.shard_N[index])) as shard:
            shard.seek(image.start)
            content = shard.read(image.size)
            if len(content) != image.size:
                raise DataError(f"a shard that ends after {len(content)} of the image's {image.size} bytes")
            if crc_of(shard, image, label) != int(self._index.crc_N[index]):
                raise DataChanged(
                    f"webdataset: {self.name(index)}: expected the header and the label that were indexed, got others;"
                    f" the shard was replaced: delete {self._stored} and run the command again"
                )
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
                f" delete {self._stored} to index the shards anew"
            )
        return stream


def _require_mixed(url: str, label_N: NDArray[np.int64]) -> None:
    """Raise `DataError` if consecutive samples hold far fewer classes than shuffled samples would."""
    runs = sorted_runs(label_N)
    if runs is not None:
        raise DataError(
            f"webdataset: {url} …: samples are sorted by label: {runs}, and training needs mixed blocks; shuffle the"
            f" list of samples before packing it into shards"
        )


SOURCE = Source(load, takes=(*OF_FILES, "num_classes", "label", "first_label"))
