"""Users' own data: a function that takes the split and returns a data set of torch, a pair of arrays, or an image set.

The function's other arguments come from `data.options`; an argument `root` gets --data-root.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from dhkd.data.errors import ConfigError, OwnCodeError
from dhkd.data.images.base import Images
from dhkd.data.options import with_options
from dhkd.data.own_failures import running
from dhkd.data.sources.assembled import set_of_arrays, set_of_photos
from dhkd.data.sources.base import OF_LABELS, Place, Source
from dhkd.data.sources.class_labels import Labels, Numbering, as_labels, as_named, numbering_of
from dhkd.data.sources.items import Items, labels_told, length_of, read_all, require_steady
from dhkd.data.sources.pixel_layout import as_nchw, layout_of, require_uint8, tensor_of
from torch import Tensor

_CONTRACT = ("labels_N", "num_classes", "fingerprint", "renderer")  # attributes by which an image set is recognised


@dataclass(frozen=True)
class Content:
    """A split's labels, class names and pixels, uint8 (N, 3, H, W); if these are None, `dataset` has the items."""

    labels: Labels
    classes: tuple[str, ...]
    images_NCHW: Tensor | None
    dataset: Any


# How each function's training split numbers the classes, so that its test split needn't read it again. A function that
# the rest of the program has dropped goes, with the data that it holds.
_numberings: "WeakKeyDictionary[object, dict[str, Numbering]]" = WeakKeyDictionary()


def own_source(name: str, function: Callable[..., Any]) -> Source:
    """Return a source that calls the function for each split; `name` is the function's name in the settings."""
    place, colon, attribute = name.rpartition(":")
    called = f"{PurePath(place).name}{colon}{attribute}"  # the same wherever the file lies
    return Source(partial(_load, called, function), takes=(*OF_LABELS, "options"))


def _load(name: str, function: Callable[..., Any], split: str, place: Place) -> Images:
    made = _made(name, function, split, place)
    if all(hasattr(made, attribute) for attribute in _CONTRACT):
        return cast("Images", made)
    return images_of(name, split, lambda other: _made(name, function, other, place), made, place, function)


def images_of(name: str, split: str, make: Callable[[str], Any], made: Any, place: Place, key: object) -> Images:
    """Build a split's image set from `made`, the data set or the arrays that user code or a library returned for it.

    `make` returns the same for another split, and `key` identifies the code that makes all splits.

    Raises `OwnCodeError` or `DataError` for anything that isn't images with class numbers.
    """
    content = content_of(name, split, made)
    known, where = _known_numberings(key), f"{name}: {split}"
    settings = repr((place.root, place.options, place.classes, place.num_classes, place.first_label))
    if split == "train":
        known[settings], labels = numbering_of(where, content.labels, place, content.classes)
    else:
        if settings not in known:
            train = content_of(name, "train", make("train"))
            known[settings], _ = numbering_of(f"{name}: train", train.labels, place, train.classes)
        labels = as_named(where, content.labels, place, content.classes)
    numbering = known[settings]
    label_N = numbering.numbers(where, labels, _item)
    if content.images_NCHW is not None:
        return set_of_arrays(name, split, where, content.images_NCHW, label_N, numbering)
    return set_of_photos(name, split, where, partial(Items, where, content.dataset), label_N, numbering)


def _known_numberings(key: object) -> dict[str, Numbering]:
    """Return the numberings by settings that were found for a function; none are kept where it can't be a weak key."""
    try:
        return _numberings.setdefault(key, {})
    except TypeError:
        return {}


def content_of(name: str, split: str, made: Any) -> Content:
    """Read what a split holds from a pair of arrays or a map-style data set."""
    where = f"{name}: {split}"
    with running(f"{where}: its attribute classes"):
        told = getattr(made, "classes", None)
    classes = tuple(map(str, told)) if isinstance(told, list | tuple) else ()
    if isinstance(made, tuple | list) and len(made) == 2 and all(hasattr(part, "shape") for part in made):
        return _of_arrays(where, *made)
    if not hasattr(made, "__getitem__") or not hasattr(made, "__len__") or isinstance(made, str | dict | tuple):
        iterable = (
            "; one that can only be iterated can't give a sample by its number" if hasattr(made, "__iter__") else ""
        )
        raise OwnCodeError(
            f"{where}: expected a data set with __getitem__ and __len__, a pair of arrays (images, labels), or an image"
            f" set, got a {type(made).__name__}{iterable}"
        )
    num_items = length_of(where, made)
    if not num_items:
        raise OwnCodeError(f"{where}: expected items, got none")
    labels = labels_told(where, made, num_items)
    if labels is not None:
        require_steady(where, made, labels)
        return Content(as_labels(where, labels, _item), classes, None, made)
    read = read_all(where, made, num_items)
    require_steady(where, made, read.labels)
    return Content(as_labels(where, read.labels, _item), classes, read.images_NCHW, made)


def _of_arrays(where: str, images: Any, labels: Any) -> Content:
    pixels, values = (
        part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part) for part in (images, labels)
    )
    require_uint8(where, pixels)
    if len(pixels.shape) < 1 or values.shape[:1] != pixels.shape[:1]:
        raise OwnCodeError(f"{where}: expected an image for each label, got shapes {pixels.shape} and {values.shape}")
    layout = layout_of(where, pixels.shape, remedy="return them as (N, C, H, W) with another size")
    return Content(as_labels(where, values, _item), (), as_nchw(tensor_of(pixels), layout), None)


def _made(name: str, function: Callable[..., Any], split: str, place: Place) -> Any:
    """Call the function with the split and the options."""
    options, where = dict(place.options or {}), f"data.options of {name}"
    with running(f"{name}({split!r})"):
        signature = inspect.signature(function)
        try:
            signature.bind_partial(split)
        except TypeError:
            raise OwnCodeError(f"{name}: expected a function of the split, got one without such an argument") from None
        parameters = signature.parameters
        if "root" in options and place.root is not None:
            raise ConfigError(f"{where}: root: expected this option or --data-root, got both")
        if "root" in parameters and place.root is not None:
            options["root"] = place.root
        return with_options(where, partial(function, split), options)


def _item(index: int) -> str:
    return f"item {index}"
