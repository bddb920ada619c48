"""Classification data sets of torchvision, as it downloads them: `torchvision:CIFAR10`, `torchvision:Food101`, ….

The splits are those of torchvision's class; `data.train` and `data.test` name others. Images that torchvision keeps as
files are read as files, images that it keeps as arrays stay arrays, and all others are read item by item.
"""

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import ConfigError, DataError, one_of, unknown
from dhkd.data.images.base import Images
from dhkd.data.progress import on_terminal
from dhkd.data.shown import printable_line
from dhkd.data.sources.assembled import set_of_arrays, set_of_files
from dhkd.data.sources.base import OF_FILES, OF_LABELS, Place, Source, no_test_split
from dhkd.data.sources.class_labels import as_labels, as_named, numbering_of
from dhkd.data.sources.own_data import images_of
from dhkd.data.sources.pixel_layout import as_nchw, layout_of, require_uint8, tensor_of
from torch import Tensor

PREFIX = "torchvision:"
# Arguments that dhkd chooses itself; all others of a class may be set as options.
CHOSEN = ("self", "root", "transform", "target_transform", "transforms", "download", "loader", "kwargs")
# The names of splits where they aren't train and test.
SPLITS: dict[str, dict[str, str]] = {
    "CLEVRClassification": {"test": "val"},
    "FGVCAircraft": {"train": "trainval"},
    "ImageNet": {"test": "val"},
    "Imagenette": {"test": "val"},
    "OxfordIIITPet": {"train": "trainval"},
    "Places365": {"train": "train-standard", "test": "val"},
}


@dataclass(frozen=True)
class _Content:
    """What torchvision has of a split before any image is decoded: labels, class names, and either pixels or paths."""

    labels: Any
    classes: tuple[str, ...]
    pixels_NCHW: Tensor | None
    paths: Sequence[str] | None


def torchvision_source(name: str) -> Source:
    """Return the source `torchvision:NAME`. Raises `ConfigError` for a name that torchvision doesn't have."""
    from torchvision import datasets

    table = {
        kind: thing
        for kind, thing in vars(datasets).items()
        if inspect.isclass(thing) and issubclass(thing, datasets.VisionDataset) and thing.__module__ != "builtins"
    }
    for base in ("VisionDataset", "DatasetFolder", "ImageFolder", "FakeData"):
        table.pop(base, None)
    kind = one_of("data set of torchvision", name.removeprefix(PREFIX), table)
    takes = (*OF_FILES, *(key for key in OF_LABELS if key not in OF_FILES), "options")
    return Source(partial(_load, name, kind), takes=takes)


def _load(name: str, kind: Any, split: str, place: Place) -> Images:
    root = Path(place.root) if place.root is not None else user_cache_folder() / "datasets"

    def make(wanted: str) -> Any:
        return _made(name, kind, wanted, root, place)

    made = make(split)
    content = _content(name, made, root, place)
    where = f"{name}: {split}"
    if content is None:
        return images_of(name, split, make, made, place, kind)
    labels = as_labels(where, content.labels, _item)
    if split == "train" or (content.classes and place.classes is None):
        numbering, labels = numbering_of(where, labels, place, content.classes)
    else:
        train = _content(name, make("train"), root, place)
        assert train is not None, "both splits are of one class"
        train_labels = as_labels(f"{name}: train", train.labels, _item)
        numbering, _ = numbering_of(f"{name}: train", train_labels, place, train.classes)
        labels = as_named(where, labels, place, content.classes)
    label_N = numbering.numbers(where, labels, _item)
    if content.pixels_NCHW is not None:
        return set_of_arrays(name, split, where, content.pixels_NCHW, label_N, numbering)
    paths = [os.fsencode(path) for path in content.paths or ()]
    return set_of_files(name, split, where, paths, label_N, numbering, replace(place, root=str(root)))


def _made(name: str, kind: Any, split: str, root: Path, place: Place) -> Any:
    """Make torchvision's data set of a split."""
    from torchvision.datasets import MNIST, DatasetFolder

    parameters = inspect.signature(kind).parameters
    arguments: dict[str, object] = {}
    # EMNIST passes `train` on to MNIST, and its own `split` means something else.
    by_flag = "train" in parameters or issubclass(kind, MNIST)
    arguments |= _of_split(name, kind, split, place, by_flag=by_flag, by_name="split" in parameters)
    options = dict(place.options or {})
    allowed = [key for key in parameters if key not in CHOSEN and key not in arguments]
    for option in options:
        if option not in allowed:
            none = f"unknown option {option!r}: there are none"
            raise ConfigError(f"data.options of {name}: {unknown('option', option, allowed) if allowed else none}")
    if "loader" in parameters or issubclass(kind, DatasetFolder):
        arguments["loader"] = _path
    if place.download and ("download" in parameters or issubclass(kind, MNIST)):
        root.mkdir(parents=True, exist_ok=True)
        arguments["download"] = True
    return _called(name, partial(kind, str(root), **arguments, **options), root, download=place.download)


def _of_split(name: str, kind: Any, split: str, place: Place, *, by_flag: bool, by_name: bool) -> dict[str, object]:
    """Return the argument that chooses a split."""
    named = place.train if split == "train" else place.test
    if by_name and not by_flag:
        return {"split": named or SPLITS.get(kind.__name__, {}).get(split, split)}
    if named is not None:
        raise ConfigError(f"data.{split}: {name} {'has its own' if by_flag else 'has no splits'}; leave it out")
    if by_flag:
        return {"train": split == "train"}
    if split == "test":
        raise no_test_split(name, "no splits, since torchvision has none of this data set")
    return {}


def _called(name: str, make: Callable[[], Any], root: Path, *, download: bool) -> Any:
    """Call torchvision, redirect what it prints, and turn any exception into a one-line error."""
    shown = sys.stderr if on_terminal() else io.StringIO()  # only a command's result belongs on standard output
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            return make()
    except Exception as error:  # from files, archives, the network or missing packages
        text = printable_line(" ".join(str(error).split()), 300) or type(error).__name__
        if isinstance(error, ValueError) and "Valid values are" in text:
            raise ConfigError(f"{name}: {text}; correct data.train, data.test or data.options") from error
        remedy = (
            "fetch it elsewhere and name its folder with --data-root"
            if download
            else ("name the folder above its files with --data-root, or fetch it with --download")
        )
        raise DataError(f"{name}: torchvision can't read it at {root} ({text}); {remedy}") from error


def _content(name: str, made: Any, root: Path, place: Place) -> _Content | None:
    """Return the content of a split, or None if torchvision keeps neither its pixels nor the paths of its images."""
    classes = tuple(", ".join(one) if isinstance(one, tuple) else str(one) for one in getattr(made, "classes", ()))
    labels = getattr(made, "targets", getattr(made, "labels", None))
    pixels = getattr(made, "data", None)
    if isinstance(pixels, np.ndarray | Tensor) and labels is not None and len(pixels) == len(labels):
        array = pixels.numpy() if isinstance(pixels, Tensor) else pixels
        require_uint8(name, array)
        labels = labels.numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        return _Content(labels, classes, as_nchw(tensor_of(array), layout_of(name, array.shape)), None)
    listed = _listed(name, made, place)
    if listed is None:
        return None
    paths = [os.path.relpath(path, root) for path, _ in listed]
    outside = [path for path in paths if path.split(os.sep)[0] == os.pardir]
    if outside:
        raise DataError(f"{name}: {outside[0]}: a path that leads outside of {root}; put the image there")
    return _Content([label for _, label in listed], classes, None, paths)


def _listed(name: str, made: Any, place: Place) -> Sequence[tuple[str, int]] | None:
    """Return path and label of each image, or None if the class doesn't keep paths."""
    if getattr(made, "loader", None) is _path:
        items: list[tuple[str, int]] = _called(
            name, lambda: [made[index] for index in range(len(made))], Path(made.root), download=False
        )
        return items
    samples = getattr(made, "_samples", None)  # GTSRB
    if samples is None and not place.options and hasattr(made, "_images") and hasattr(made, "_labels"):  # OxfordIIITPet
        samples = list(zip(made._images, made._labels, strict=True))
    if samples and isinstance(samples[0][0], str | Path):
        return [(str(path), label) for path, label in samples]
    return None


def _path(path: object) -> str:
    """Stand in for torchvision's loader of images, so that an item is the image's path."""
    return os.fspath(path)  # type: ignore[call-overload,no-any-return]  # a path or a text


def _item(index: int) -> str:
    return f"item {index}"
