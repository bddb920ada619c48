"""A folder of images without labels: every image file at any depth, whatever its folders are called.

The number of classes is that of the networks. Samples are numbered by a seeded permutation of the sorted list of files,
so that consecutive indices hold a mixture, however the files are sorted.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dhkd.data.errors import ConfigError
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.sources.base import OF_FILES, Place, Source
from dhkd.data.sources.class_folders import ClassFolders, summary
from dhkd.data.sources.image_folder import FolderFiles, below, images_below
from dhkd.data.sources.mixed_order import permutation

log = logging.getLogger("dhkd")


def load(split: str, place: Place) -> PhotoSet:
    """Load a split: for training, all images below the root of `place`, or those in the folder that `place` names.

    The test images need a folder of their own. If `place.labels` says that they have labels, it holds class folders.
    """
    if place.root is None:
        raise ConfigError("folder: expected the place of its files; name it with --data-root")
    train = below(place.root, place.train or ".", "train")
    test = None if place.test is None else below(place.root, place.test, "test")
    if test is not None and _is_inside(test, train):
        raise ConfigError(
            f"data.test: expected a folder outside of the training images in {train}, got {test}; set data.train to a"
            f" folder beside it"
        )
    if split == "train":
        return _images_in(train, "train", place)
    if test is None:
        raise ConfigError(
            "data.test: expected a folder of test images, got none; set it, or hold out a part of the training images"
            " with data.val_fraction"
        )
    return images_below("test", test, test, place) if place.labels == "test" else _images_in(test, "test", place)


def _images_in(folder: Path, split: str, place: Place) -> PhotoSet:
    num_classes = place.classes_without_labels
    if place.classes is not None and place.labels != "test":
        raise ConfigError("data.classes: images without labels have no classes; leave it out, or set data.labels=test")
    listing = ClassFolders(folder, Path(place.root or folder), follow=bool(place.follow_links), source="folder")
    paths = listing.everything()
    _tell(listing, paths)
    order = permutation(len(paths))
    files = FolderFiles(folder, np.array(paths, dtype=np.bytes_)[order], place.reading)
    return PhotoSet("folder", split, files, None, num_classes, levels=place.levels, num_samples=len(paths))


def _tell(listing: ClassFolders, paths: Sequence[bytes]) -> None:
    """Log which files were left out, and warn if folders look like classes, since they are not used as labels."""
    if listing.skipped:
        log.info("folder: %s: left out %s", listing.folder, summary(listing.skipped))
    outer = {path.partition(b"/")[0] if b"/" in path else b"" for path in paths}
    if b"" not in outer and len(outer) > 1:
        log.warning(
            "folder: %s: all images lie in %d folders, whose names are not used as labels; if they are classes, use"
            " data.source=image-folder",
            listing.folder,
            len(outer),
        )


def _is_inside(path: Path, folder: Path) -> bool:
    real, outer = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([real, outer]) == outer


SOURCE = Source(load, takes=(*OF_FILES, "num_classes", "follow_links"), labelled=False)
