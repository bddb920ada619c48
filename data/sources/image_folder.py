"""A folder of images with a folder for each class: ROOT/train/<class>/…, ROOT/val/<class>/….

Classes are numbered in the sorted order of their names, as usual. Samples are numbered by a seeded permutation of the
sorted list of files, so that consecutive indices, and with them every block of a cache, hold mixed classes.
"""

import os
from pathlib import Path

import numpy as np
import torch
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.encoded import EncodedFiles, PhotoSet
from dhkd.data.progress import progress
from dhkd.data.sources.base import Place, Source
from numpy.typing import NDArray

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list
SEED = 0  # of the permutation; constant, so that a folder has the same order for everyone


class FolderFiles(EncodedFiles):
    """Files below one folder. ImageNet's million paths take 40 MB of memory."""

    def __init__(self, folder: Path, paths_N: NDArray[np.bytes_]) -> None:
        self._folder, self._paths_N = folder, paths_N

    def read(self, index: int) -> bytes:
        """Return the file's bytes."""
        with open(os.path.join(os.fsencode(self._folder), bytes(self._paths_N[index])), "rb") as stream:
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
    if place.num_classes is not None:
        raise ConfigError("data.num_classes: image-folder counts its class folders; leave it out")
    train = Path(place.root) / (place.train or "train")
    return images_below(split, train if split == "train" else Path(place.root) / (place.test or "val"), train)


def images_below(split: str, folder: Path, classes_from: Path) -> PhotoSet:
    """Load the images below `folder`. The sorted sub-folders of `classes_from` determine the class numbers.

    Raises `DataError` for a missing or empty folder, and for a class that `classes_from` lacks.
    """
    names = _folders(folder)
    classes = _folders(classes_from) if classes_from != folder and classes_from.is_dir() else names
    number_of = {name: number for number, name in enumerate(classes)}
    unnumbered = [name for name in names if name not in number_of]
    if unnumbered:
        raise DataError(
            f"image-folder: {folder}: class folder {os.fsdecode(unnumbered[0])} is none of the {len(classes)} classes"
            f" of {classes_from}; both splits need the same classes"
        )
    paths: list[bytes] = []
    labels: list[int] = []
    with progress("listing the images of classes", len(names), bar=False) as advance:
        for name in names:
            files = sorted(_images(os.path.join(os.fsencode(folder), name), name))
            if not files:
                raise DataError(
                    f"image-folder: {folder / os.fsdecode(name)}: expected images ({', '.join(SUFFIXES)}), found none"
                )
            paths += files
            labels += [number_of[name]] * len(files)
            advance(1)
    order = permutations(raw_rows(SEED, Domain.FILE_ORDER, 0, 0, len(paths))[:, 0])
    return PhotoSet(
        "image-folder",
        split,
        FolderFiles(folder, np.array(paths, dtype=np.bytes_)[order]),
        torch.from_numpy(np.array(labels, dtype=np.int64)[order]),
        len(classes),
    )


def _folders(folder: Path) -> list[bytes]:
    """Return the sorted names of the folders in `folder`."""
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(b"."))
    except OSError as error:
        raise DataError(
            f"image-folder: expected a folder of class folders at {folder}, got: {error.strerror};"
            f" name the folder above it with --data-root DIR and, where it isn't train or val, set data.train and"
            f" data.test"
        ) from error
    if not names:
        raise DataError(f"image-folder: {folder}: expected a folder for each class, found none")
    return names


def _images(folder: bytes, prefix: bytes) -> list[bytes]:
    """Return the images at any depth below a class's folder, as paths that begin with `prefix`."""
    images = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            path = prefix + b"/" + entry.name
            if entry.is_dir():
                images += _images(entry.path, path)
            elif os.fsdecode(entry.name).lower().endswith(SUFFIXES):
                images.append(path)
    return images


SOURCE = Source(load, takes=("train", "test", "num_classes"))
