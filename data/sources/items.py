"""Reads map-style data sets of torch, whose items are pairs of an image and a label, item by item.

Labels are needed before the first training step. An attribute `targets` or `labels` gives them at once;
without one, all items are read, and images of one size are then kept in memory if they are few enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dhkd.data.errors import OwnCodeError
from dhkd.data.images.decoding import Photo, as_rgb, photo_of
from dhkd.data.images.reduced import Reduction
from dhkd.data.own_failures import running
from dhkd.data.progress import progress
from dhkd.data.sources.pixel_layout import as_nchw, layout_of, require_uint8, tensor_of
from numpy.typing import NDArray
from torch import Tensor

READ_TWICE = 16  # evenly spaced items that are read twice and compared
MOST_BYTES = 10**9  # of pixels that are kept in memory
ATTRIBUTES = ("targets", "labels")


@dataclass(frozen=True)
class Read:
    """The result of reading all items: their labels and, if they were kept, the pixels, uint8 (N, 3, H, W)."""

    labels: list[Any]
    images_NCHW: Tensor | None


class Items:
    """The items of a data set as photos; sample i is item `item_N[i]`. `name` names the code in messages."""

    def __init__(self, name: str, dataset: Any, item_N: NDArray[np.int64]) -> None:
        self._name, self._dataset, self._item_N = name, dataset, item_N

    def photo(self, index: int, reduction: Reduction | None = None) -> Photo:
        """Return the whole image of sample `index` as RGB. Raises `OwnCodeError` if anything goes wrong."""
        return item_of(self._name, self._dataset, int(self._item_N[index]))[0]

    def name(self, index: int) -> str:
        """Return the number of the item."""
        return f"item {self._item_N[index]}"

    def names(self, num_samples: int) -> bytes:
        """Return, for a fingerprint, the sizes of some images, because pixels may depend on a decoder's version."""
        sizes = [self.photo(index).size for index in positions(num_samples)]
        return b"\n".join(f"{width} {height}".encode() for width, height in sizes)

    def expect(self, index_B: Tensor) -> None:
        """Do nothing, because items are read where they are."""


def item_of(name: str, dataset: Any, index: int) -> tuple[Photo, Any]:
    """Return image and label of an item. Raises `OwnCodeError` for an exception, and for anything but a pair."""
    where = f"{name}: item {index}"
    with running(where):
        item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        shape = f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        raise OwnCodeError(f"{where}: expected an image and a label, got {shape}")
    label = _plain(item[1])
    if isinstance(label, Tensor | np.ndarray):
        raise OwnCodeError(
            f"{where}: expected a class number as its label, got an array of shape {tuple(label.shape)}; if it is"
            f" one-hot, give the position of the 1"
        )
    return photo_of_item(where, item[0]), label


def photo_of_item(where: str, image: object) -> Photo:
    """Convert a PIL image, or an array or tensor of uint8 values (H, W), (H, W, C) or (C, H, W), to RGB."""
    if isinstance(image, Photo):
        with running(where):
            return as_rgb(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy() if image.dtype is not torch.bfloat16 else image.float().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise OwnCodeError(f"{where}: expected a PIL image, an array or a tensor, got a {type(image).__name__}")
    if image.dtype.kind == "f":
        span = f" from {np.nanmin(image):g} to {np.nanmax(image):g}" if image.size else ""
        raise OwnCodeError(
            f"{where}: expected an image of uint8, 0 to 255, got {image.dtype}{span}; take ToTensor and Normalize out"
            f" of the data set, because dhkd normalises by itself"
        )
    require_uint8(where, image[None])
    layout = layout_of(where, (1, *image.shape), remedy="return a PIL image")
    return photo_of(as_nchw(tensor_of(image[None]), layout)[0].numpy())


def length_of(name: str, dataset: Any) -> int:
    """Return the number of items."""
    with running(f"{name}: its length"):
        return len(dataset)


def labels_told(name: str, dataset: Any, num_items: int) -> Sequence[Any] | NDArray[Any] | None:
    """Return the labels that an attribute of the data set holds, or None if it has no such attribute."""
    for attribute in ATTRIBUTES:
        with running(f"{name}: its attribute {attribute}"):
            told = getattr(dataset, attribute, None)
        if isinstance(told, Tensor):
            told = told.cpu().numpy()
        if isinstance(told, list | tuple | np.ndarray):
            if len(told) != num_items:
                raise OwnCodeError(
                    f"{name}: expected {attribute} to hold a label for each of {num_items:,} items, got {len(told):,}"
                )
            return told
    return None


def positions(num_items: int) -> list[int]:
    """Return the positions of the items that are checked in advance: evenly spaced, with the first and the last."""
    return sorted({round(at) for at in np.linspace(0, num_items - 1, min(num_items, READ_TWICE))})


def require_steady(name: str, dataset: Any, labels: Sequence[Any] | NDArray[Any]) -> None:
    """Raise `OwnCodeError` if an item differs when it is read again, or has another label than the attribute says."""
    for index in positions(len(labels)):
        photo, label = item_of(name, dataset, index)
        again, label_again = item_of(name, dataset, index)
        if photo.size != again.size or photo.tobytes() != again.tobytes() or label != label_again:
            raise OwnCodeError(
                f"{name}: item {index}: expected the same image and label at each reading, got others; take random"
                f" transforms out of the data set, because views augment it"
            )
        if label != _plain(labels[index]):
            raise OwnCodeError(
                f"{name}: item {index}: expected label {_plain(labels[index])!r}, as its attribute says, got {label!r}"
            )


def read_all(name: str, dataset: Any, num_items: int) -> Read:
    """Read every item, for the labels and, if images have one size and aren't too many, for the pixels."""
    labels: list[Any] = []
    pixels_NHWC: NDArray[np.uint8] | None = None
    with progress(f"reading the items of {name}", num_items, bar=False) as advance:
        for index in range(num_items):
            photo, label = item_of(name, dataset, index)
            if index == 0 and 3 * photo.width * photo.height * num_items <= MOST_BYTES:
                pixels_NHWC = np.empty((num_items, photo.height, photo.width, 3), dtype=np.uint8)
            if pixels_NHWC is not None:
                if (photo.height, photo.width) == pixels_NHWC.shape[1:3]:
                    pixels_NHWC[index] = np.asarray(photo)
                else:
                    pixels_NHWC = None
            labels.append(label)
            advance(1)
    return Read(labels, None if pixels_NHWC is None else torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2))


def _plain(label: Any) -> Any:
    """Convert a scalar label of torch or NumPy to a Python value."""
    if isinstance(label, Tensor | np.ndarray | np.generic) and getattr(label, "ndim", 0) == 0:
        return label.item()
    return label
