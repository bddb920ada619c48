"""Data sets of a Python program: arrays, a torch Dataset, a function of the split, or names as on the command line."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhkd.data.errors import ConfigError
from dhkd.data.own_code import offer
from dhkd.data.sources import SOURCES
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.python.objects import name_of_function

# Any: what a function of the split may return: a torch Dataset, images and labels as arrays, or an image set.
Split = Any
Dataset = Split | Mapping[str, Split] | Callable[[str], Split] | str | Path


@dataclass(frozen=True, eq=False)  # equal only to itself, since arrays can't be compared as a whole
class OwnSplits:
    """A function of the split's name that returns a training or a test split, which were given as objects."""

    name: str
    train: Split
    test: Split

    def __call__(self, split: str) -> Split:
        """Return the split "train" or "test"."""
        chosen = self.train if split == "train" else self.test
        if chosen is None:
            raise ConfigError(
                f"{self.name}: expected a test split, got none; pass test=…, or hold out a part of the training split"
                f" with settings={{'data.val_fraction': 0.1}}"
            )
        return chosen


def settings_of_data(
    dataset: Dataset | None, test: Split | None, data: DataOptions | None, *, training: bool = True
) -> tuple[dict[str, object], DataOptions]:
    """Return the settings of the section `data`, and the options for reading; no settings without a data set.

    If `dataset` is a path, it is that of a folder with a subfolder for each class. Unless `training` is set, `test`
    alone is enough.
    """
    data = data or DataOptions()
    if dataset is None and (test is None or training):
        if test is not None:
            raise ConfigError("test: expected the training split beside it, as dataset, got none")
        return {}, data
    if isinstance(dataset, str | os.PathLike):
        if test is not None:
            raise ConfigError(f"test: expected none beside the data set {dataset}, which has its own; leave it out")
        return _named(os.fspath(dataset), data)
    if callable(dataset) and not hasattr(dataset, "__getitem__"):  # a data set has items
        if test is not None:
            raise ConfigError("test: expected none beside a function, which gives both splits; leave it out")
        return {"source": offer(name_of_function(dataset), dataset)}, data
    train: Split = test if dataset is None else dataset  # a test split alone defines the classes
    if isinstance(dataset, Mapping):
        if "train" not in dataset or set(dataset) - {"train", "test"} or (test is not None and "test" in dataset):
            raise ConfigError(f"dataset: expected the keys train and test, got {', '.join(map(str, dataset))}")
        train, test = dataset["train"], dataset.get("test", test)
    name = _name_of(train)
    return {"source": offer(name, OwnSplits(name, train, test))}, data


def _named(name: str, data: DataOptions) -> tuple[dict[str, object], DataOptions]:
    if name in SOURCES or not os.path.exists(name):
        return {"source": name}, data
    if data.root is not None:
        raise ConfigError(f"dataset {name}: expected no DataOptions.root beside a path; leave one of them out")
    return {"source": "image-folder"}, DataOptions(**{**vars(data), "root": name})


def _name_of(dataset: object) -> str:
    kind = type(dataset)
    return (
        "arrays-in-memory"
        if kind in (tuple, list) or kind.__module__ == "builtins"
        else f"{kind.__module__}:{kind.__qualname__}"
    )
