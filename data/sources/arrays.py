"""Images and labels as NumPy arrays: ROOT/train.npz, or ROOT/train-images.npy and ROOT/train-labels.npy.

`data.train` and `data.test` name other files; the options `images` and `labels` name arrays in an archive, or files,
where {split} stands for train or test. Otherwise the arrays are found by their names and shapes.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.options import with_options
from dhkd.data.shown import some_of
from dhkd.data.sources.assembled import set_of_arrays
from dhkd.data.sources.base import OF_LABELS, Place, Source, no_test_split
from dhkd.data.sources.class_labels import as_labels, as_named, numbering_of
from dhkd.data.sources.npy_files import ArrayFile, arrays_in, require_memory
from dhkd.data.sources.pixel_layout import as_nchw, layout_of, require_uint8, tensor_of
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger("dhkd")

# Usual names of a split's files; the first that exists is taken.
CALLED = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
NAMED = {"train": re.compile("train"), "test": re.compile("test"), "val": re.compile(r"validation|\bval|_val(_|\b)")}
IMAGES, LABELS = ("images", "x", "data"), ("labels", "y", "targets")


@dataclass(frozen=True)
class Options:
    """`images` and `labels` name arrays or files; `layout` is the order of the images' axes."""

    images: str | None = None
    labels: str | None = None
    layout: str | None = None


@dataclass(frozen=True)
class Pair:
    """The arrays of a split."""

    images: ArrayFile
    labels: ArrayFile

    @property
    def where(self) -> str:
        """The name of the file with the labels, with which messages begin."""
        return f"arrays: {self.labels.path.name}"


def load(split: str, place: Place) -> ImageSet:
    """Load a split. Raises `DataError` for arrays that aren't found, don't fit each other, or aren't images."""
    if place.root is None:
        raise ConfigError("arrays: expected the folder of its files, or one file; name it with --data-root")
    options = with_options("data.options of arrays", Options, place.options or {})
    pair = _pair("train", place, options)
    numbering, labels = numbering_of(pair.where, _labels(pair), place)
    if split != "train":
        train, pair = pair, _pair(split, place, options)
        if pair == train:
            raise no_test_split("arrays", f"the training split's {pair.images.name} and {pair.labels.name} alone")
        labels = as_named(pair.where, _labels(pair), place)
    label_N = numbering.numbers(pair.where, labels, _row)
    images_NCHW = _images(pair, len(label_N), options)
    return set_of_arrays("arrays", split, pair.where, images_NCHW, label_N, numbering)


def _pair(split: str, place: Place, options: Options) -> Pair:
    """Find the arrays of a split."""
    root, named = Path(place.root or "."), place.train if split == "train" else place.test
    if root.is_file():
        found = arrays_in(root)
    elif named is not None:
        found = arrays_in(root / named)
    else:
        found = [array for path in _files(split, root, options) for array in arrays_in(path)]
    if not found:
        raise DataError(f"arrays: {root}: expected arrays, found none; name the files with data.train and data.test")
    images = _chosen("images", options.images, split, [array for array in found if _may_be_images(array)], found)
    labels = _chosen("labels", options.labels, split, [array for array in found if _may_be_labels(array)], found)
    return Pair(images, labels)


def _files(split: str, root: Path, options: Options) -> list[Path]:
    """Return the files of a split below the root: one archive, or two .npy files."""
    chosen = [name.replace("{split}", split) for name in (options.images, options.labels) if name is not None]
    if any(name.endswith(".npy") for name in chosen):
        if len(chosen) < 2:
            raise ConfigError("data.options of arrays: expected images and labels, got one of them; name both files")
        for name in chosen:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ConfigError(f"data.options of arrays: expected files below --data-root, got {name}")
        return [root / name for name in chosen]
    for called in CALLED[split]:
        if (root / f"{called}.npz").exists():
            return [root / f"{called}.npz"]
        patterns = [(f"{called}-{a}", f"{called}_{a}", f"{a}_{called}", f"{a.upper()}_{called}") for a in IMAGES]
        partners = [(f"{called}-{a}", f"{called}_{a}", f"{a}_{called}", f"{a}_{called}") for a in LABELS]
        for images, labels in zip(sum(patterns, ()), sum(partners, ()), strict=True):
            pair = [root / f"{images}.npy", root / f"{labels}.npy"]
            if all(path.exists() for path in pair):
                return pair
    there = sorted(path.name for path in root.glob("*.np[yz]")) if root.is_dir() else []
    if len(there) == 1 and there[0].endswith(".npz"):  # one archive for both splits
        return [root / there[0]]
    if split == "test" and there:
        raise no_test_split("arrays", some_of(there, 6))
    expected = "train.npz, or train-images.npy and train-labels.npy" if split == "train" else "test.npz, …"
    raise DataError(
        f"arrays: {root}: expected {expected}, found {some_of(there, 6) or 'no .npy or .npz files'}; name the folder"
        f" with --data-root, or the files with data.{split} or data.options"
    )


def _chosen(
    kind: str, named: str | None, split: str, candidates: Sequence[ArrayFile], found: Sequence[ArrayFile]
) -> ArrayFile:
    """Return the array of a kind: the one called `named`, or else the only one named after the split or after none."""
    if named is not None:
        wanted = named.replace("{split}", split)
        for array in found:
            if wanted in (array.name, f"{array.name}.npy") or Path(wanted).name == array.name:
                return array
        listed = some_of([array.name for array in found], 10)
        raise ConfigError(f"data.options of arrays: {kind}: expected one of {listed}, got {wanted!r}")
    others = [pattern for other, pattern in NAMED.items() if (other == "train") != (split == "train")]
    mine = [array for array in candidates if not any(pattern.search(array.name.lower()) for pattern in others)]
    wanted_names = [pattern for other, pattern in NAMED.items() if (other == "train") == (split == "train")]
    for pattern in (*wanted_names, re.compile("")):
        matching = [array for array in mine if pattern.search(array.name.lower())]
        if len(matching) == 1:
            return matching[0]
    listed = ", ".join(f"{array.name} {array.shape} {array.dtype}" for array in found[:10])
    raise DataError(
        f"arrays: {found[0].path.name}: expected one array of {kind} for {split}, found {len(mine)} among {listed};"
        f" name it with data.options.{kind}"
    )


def _may_be_images(array: ArrayFile) -> bool:
    return len(array.shape) >= 3 or (len(array.shape) == 2 and array.shape[1] > 1)


def _may_be_labels(array: ArrayFile) -> bool:
    return len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)


def _labels(pair: Pair) -> NDArray[np.int64] | NDArray[np.object_]:
    if not _may_be_labels(pair.labels):
        raise DataError(
            f"{pair.where}: labels expected of shape (N,), got {pair.labels.name} of {pair.labels.shape}; if they are"
            f" one-hot, store the position of the 1"
        )
    require_memory([pair.labels])
    return as_labels(pair.where, pair.labels.load(), _row)


def _images(pair: Pair, num_labels: int, options: Options) -> Tensor:
    """Return the images as uint8 (N, 3, H, W), and log which layout was taken."""
    array, where = pair.images, f"arrays: {pair.images.path.name}"
    if array.shape[:1] != (num_labels,):
        remedy = "; move the axis of the samples to the front" if array.shape[-1:] == (num_labels,) else ""
        raise DataError(
            f"{where}: expected an image for each of {num_labels:,} labels, got {array.name} of shape"
            f" {array.shape}{remedy or '; the two arrays belong to different sets'}"
        )
    layout = layout_of(where, array.shape, options.layout, "set data.options.layout to NHWC or NCHW")
    if math.prod(array.shape) == 0:
        raise DataError(f"{where}: expected images, got {array.name} of shape {array.shape}")
    require_memory([array])
    images = array.load()
    require_uint8(where, images)
    level = logging.WARNING if layout.doubtful else logging.INFO
    doubt = "; if they are single images, store them as (N, H, W, C)" if layout.doubtful else ""
    log.log(level, "%s: %s of shape %s taken as (%s)%s", where, array.name, array.shape, layout.axes, doubt)
    return as_nchw(tensor_of(images), layout)  # type: ignore[arg-type]  # uint8, as required above


def _row(index: int) -> str:
    return f"sample {index}"


SOURCE = Source(load, takes=("train", "test", *OF_LABELS, "options"))
