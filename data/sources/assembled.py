"""Builds image sets from what a source has read: pixels or single images, and class numbers in the order of the files.

This module also gives samples that are sorted by label a seeded order, for sources that can read images in any order.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from dhkd.data.images.chunks import Photos
from dhkd.data.images.encoded import MEAN, STD, PhotoSet
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.images.levels import Levels
from dhkd.data.sources.base import Place
from dhkd.data.sources.class_labels import Numbering
from dhkd.data.sources.image_folder import FolderFiles
from dhkd.data.sources.mixed_order import mixed_order, permutation
from numpy.typing import NDArray
from torch import Tensor


def set_of_arrays(
    name: str, split: str, where: str, images_NCHW: Tensor, label_N: Tensor, numbering: Numbering
) -> ImageSet:
    """Build the set of images, uint8 (N, 3, H, W); `where` begins the log line that says that the order is seeded."""
    order = mixed_order(where, split, label_N.numpy())
    if order is not None:
        images_NCHW, label_N = images_NCHW[torch.from_numpy(order)], label_N[torch.from_numpy(order)]
    return ImageSet(name, split, images_NCHW, label_N, numbering.num_classes, MEAN, STD, numbering.names)


def set_of_photos(
    name: str,
    split: str,
    where: str,
    files: Callable[[NDArray[np.int64]], Photos],
    label_N: Tensor,
    numbering: Numbering,
    levels: Levels | None = None,
) -> PhotoSet:
    """Build the set of single images; `files` takes the samples' numbers in the set's order and returns the images."""
    order = mixed_order(where, split, label_N.numpy())
    if order is None:
        order = np.arange(len(label_N))
    photos, label_N = files(order), label_N[torch.from_numpy(order)]
    return PhotoSet(name, split, photos, label_N, numbering.num_classes, levels=levels, class_names=numbering.names)


def set_without_labels(
    name: str, split: str, files: Callable[[NDArray[np.int64]], Photos], num_samples: int, place: Place
) -> PhotoSet:
    """Return the set of single images without labels, in a seeded order, since they may be sorted by what they show."""
    photos, num_classes = files(permutation(num_samples)), place.classes_without_labels
    return PhotoSet(name, split, photos, None, num_classes, levels=place.levels, num_samples=num_samples)


def set_of_files(
    name: str,
    split: str,
    where: str,
    paths: Sequence[bytes],
    label_N: Tensor | None,
    numbering: Numbering | None,
    place: Place,
) -> PhotoSet:
    """Return the set of image files at `paths`, which are relative to the root of `place`, with labels or without."""
    path_N, root, reading = np.array(paths, dtype=np.bytes_), Path(place.root or "."), place.reading

    def files(order: NDArray[np.int64]) -> FolderFiles:
        return FolderFiles(root, path_N[order], reading)

    if label_N is None or numbering is None:
        return set_without_labels(name, split, files, len(paths), place)
    return set_of_photos(name, split, where, files, label_N, numbering, place.levels)
