"""A folder of images with a folder for each class: ROOT/train/<class>/…, ROOT/val/<class>/….

Classes are numbered in the sorted order of their names, as usual, unless `data.classes` says otherwise. Samples are
numbered by a seeded permutation of the sorted list of files, so that consecutive indices, and with them every block of
a cache, hold mixed classes.
"""

import logging
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from dhkd.data.disk.regular import open_regular
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.decoding import USUAL, Reading
from dhkd.data.images.encoded import EncodedFiles, PhotoSet
from dhkd.data.progress import progress
from dhkd.data.sources.base import OF_FILES, Place, Source
from dhkd.data.sources.class_folders import ClassFolders, alike_in_case, require_classes, summary
from dhkd.data.sources.class_order import in_order, note_on_numbers
from dhkd.data.sources.mixed_order import permutation
from numpy.typing import NDArray

log = logging.getLogger("dhkd")


class FolderFiles(EncodedFiles):
    """Files below one folder. ImageNet's million paths take 40 MB of memory."""

    def __init__(self, folder: Path, paths_N: NDArray[np.bytes_], reading: Reading = USUAL) -> None:
        self._folder, self._paths_N, self.reading = folder, paths_N, reading

    def read(self, index: int) -> bytes:
        """Return the file's bytes."""
        with open_regular(os.path.join(os.fsencode(self._folder), bytes(self._paths_N[index]))) as stream:
            return stream.read()

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self._folder / os.fsdecode(bytes(self._paths_N[index])))

    def names(self, num_samples: int) -> bytes:
        """Return the paths inside the folder, one per line."""
        return b"\n".join(self._paths_N[:num_samples].tolist())

    def expect(self, index_B: torch.Tensor) -> None:
        """Do nothing, because files are read where they are."""


def load(split: str, place: Place) -> PhotoSet:
    """Load a split from below the root of `place`: the folder train or val, unless `place` names other folders."""
    if place.root is None:
        raise ConfigError("image-folder: expected the place of its files; name it with --data-root")
    if place.num_classes is not None and place.labels is None:
        raise ConfigError("data.num_classes: image-folder counts its class folders; leave it out")
    train = below(place.root, place.train or "train", "train")
    folder = train if split == "train" else below(place.root, place.test or "val", "test")
    return images_below(split, folder, train, place)


def images_below(split: str, folder: Path, classes_from: Path, place: Place | None = None) -> PhotoSet:
    """Load the images below `folder`. The sub-folders of `classes_from` determine the class numbers.

    If `place` is None, the data root is `classes_from`, and every setting has its default. Raises `DataError` for a
    missing or empty folder, for fewer than two classes, and for a class that `classes_from` lacks.
    """
    place = place or Place(str(classes_from))
    root = Path(place.root or classes_from)
    listing = ClassFolders(folder, root, follow=bool(place.follow_links))
    names = listing.names()
    from_train = classes_from != folder and classes_from.is_dir()
    all_names = ClassFolders(classes_from, root, follow=bool(place.follow_links)).names() if from_train else names
    require_classes(classes_from if from_train else folder, all_names)
    classes = in_order([os.fsdecode(name) for name in all_names], place.classes, root)
    number_of = {os.fsencode(name): number for number, name in enumerate(classes)}
    _require_known(folder, names, classes_from, number_of)
    paths: list[bytes] = []
    labels: list[int] = []
    with progress("listing the images of classes", len(names), bar=False) as advance:
        for name in names:
            files = listing.images(name)
            paths += files
            labels += [number_of[name]] * len(files)
            advance(1)
    _tell(listing, names, classes, place)
    order = permutation(len(paths))
    return PhotoSet(
        "image-folder",
        split,
        FolderFiles(folder, np.array(paths, dtype=np.bytes_)[order], place.reading),
        torch.from_numpy(np.array(labels, dtype=np.int64)[order]),
        len(classes),
        levels=place.levels,
        class_names=tuple(classes),
    )


def below(root: str, name: str, split: str) -> Path:
    """Return the folder `name` below `root`. Raises `ConfigError` if the name leads elsewhere."""
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise ConfigError(f"data.{split}: expected a folder below --data-root, got {name}; name its root there")
    return Path(root) / name


def _require_known(folder: Path, names: list[bytes], classes_from: Path, number_of: Mapping[bytes, int]) -> None:
    """Raise `DataError` if a class folder has no number."""
    if not names:
        raise DataError(f"image-folder: {folder}: expected a folder for each class, found none; sort the images")
    unnumbered = [os.fsdecode(name) for name in names if name not in number_of]
    if not unnumbered:
        return
    alike = [os.fsdecode(name) for name in number_of if _folded(os.fsdecode(name)) == _folded(unnumbered[0])]
    problem = f"both splits need the same classes, and {len(unnumbered)} of {len(names)} differ"
    if alike:
        problem = f"it differs from {alike[0]!a} in case or Unicode form alone, as {unnumbered[0]!a}; rename it"
    raise DataError(
        f"image-folder: {folder}: class folder {unnumbered[0]} is none of the {len(number_of)} classes"
        f" of {classes_from}; {problem}"
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _tell(listing: ClassFolders, names: list[bytes], classes: list[str], place: Place) -> None:
    """Log what may surprise: files that were left out, classes without images, and how classes are numbered."""
    if listing.skipped:
        log.info("image-folder: %s: left out %s", listing.folder, summary(listing.skipped))
    for one, two in alike_in_case(names):
        log.warning("image-folder: %s: %s and %s differ in case alone; they are two classes", listing.folder, one, two)
    lacking = [name for name in classes if os.fsencode(name) not in set(names)]
    if lacking:
        some = ", ".join(lacking[:3])
        log.warning(
            "image-folder: %s: %d of %d classes have no folder (%s)", listing.folder, len(lacking), len(classes), some
        )
    note = note_on_numbers(classes, place.classes)
    if note:
        log.warning("image-folder: %s: %s", listing.folder, note)


SOURCE = Source(load, takes=(*OF_FILES, "num_classes", "follow_links"))
