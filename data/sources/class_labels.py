"""Converts labels as people store them, i.e. whole numbers or names of classes, to class numbers.

Both splits use the numbering of the training split. Labels that can't be a class (missing, fractions, below 0) are
refused, never repaired.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.shown import printable_line, some_of
from dhkd.data.sources.base import Place
from dhkd.data.sources.class_order import in_order, note_on_numbers
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger("dhkd")

MOST_CLASSES = 10**6
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan", re.ASCII | re.IGNORECASE)

# Labels as numbers, int64 (N,), or as names, an array of N str objects.
Labels = NDArray[np.int64] | NDArray[np.object_]


@dataclass(frozen=True)
class Numbering:
    """How labels become class numbers: `first` is subtracted from numbers; names have the number of their position."""

    num_classes: int
    names: tuple[str, ...] = ()
    first: int = 0

    def numbers(self, where: str, labels: Labels, row: Callable[[int], str]) -> Tensor:
        """Return the class numbers, int64 (N,). Raises `DataError` for a label of no class; `row` names a sample."""
        if labels.dtype == np.int64:
            label_N = labels.astype(np.int64) - self.first
            odd = np.flatnonzero((label_N < 0) | (label_N >= self.num_classes))
            if len(odd):
                raise DataError(
                    f"{where}: labels expected {self.first} to {self.first + self.num_classes - 1}, got"
                    f" {labels[odd[0]]} ({row(int(odd[0]))}); correct the labels, or set data.num_classes"
                )
            return torch.from_numpy(label_N)
        number_of = {name: number for number, name in enumerate(self.names)}
        odd_names = [at for at, name in enumerate(labels) if name not in number_of]
        if odd_names:
            name = printable_line(str(labels[odd_names[0]]), 60)
            known = some_of(list(self.names), 5)
            raise DataError(
                f"{where}: label {name!r} ({row(odd_names[0])}) is none of the {len(number_of)} classes ({known}); both"
                f" splits need the same classes"
            )
        return torch.tensor([number_of[name] for name in labels], dtype=torch.int64)


def as_labels(where: str, values: object, row: Callable[[int], str]) -> Labels:
    """Return labels as numbers or as names; if all labels are texts of whole numbers, they become numbers.

    `values` is an array, or a sequence of numbers or of texts. Raises `DataError` for missing labels, fractions and
    anything else; `row` names a sample in the message.
    """
    array = np.asarray(values, dtype=object if isinstance(values, list | tuple) else None)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{where}: labels expected one for each image, got an array of shape {array.shape}")
    if array.dtype.kind in "iub":
        return _within(where, array, row)
    if array.dtype.kind in "US":
        array = array.astype(str).astype(object)
    elif array.dtype.kind != "O":
        raise DataError(
            f"{where}: labels expected whole numbers or names, got {array.dtype}, such as {array[:1].tolist()};"
            f" convert them"
        )
    return _of_objects(where, array, row)


def numbering_of(where: str, train: Labels, place: Place, declared: Sequence[str] = ()) -> tuple[Numbering, Labels]:
    """Return the numbering of classes, from the training split's labels, and these labels in the form that it takes.

    `declared` are the names of the classes as the data set states them, in order. Raises `ConfigError` and `DataError`
    for settings that don't fit the labels.
    """
    if place.classes is not None or train.dtype == object:
        numbering = _by_name(where, train, place, declared)
    elif declared:
        numbering = Numbering(len(declared), tuple(declared))
    else:
        return _by_number(where, train.astype(np.int64), place), train
    if place.first_label is not None:
        raise ConfigError(f"data.first_label: {where}: classes have names; leave it out")
    if place.num_classes not in (None, numbering.num_classes):
        raise ConfigError(
            f"data.num_classes: {where}: expected {numbering.num_classes}, the number of named classes, got"
            f" {place.num_classes}; leave it out"
        )
    return numbering, as_named(where, train, place, declared)


def as_named(where: str, labels: Labels, place: Place, declared: Sequence[str] = ()) -> Labels:
    """Replace numbers by the names that `data.classes` orders, if it is set; return all other labels unchanged."""
    if place.classes is None or labels.dtype == object:
        return labels
    if not declared:
        return labels.astype(str).astype(object)
    numbers = labels.astype(np.int64)
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(declared):
        raise DataError(
            f"{where}: labels expected 0 to {len(declared) - 1}, got {numbers.min()} to {numbers.max()}; correct them"
        )
    return np.array(declared, dtype=object)[numbers]


def _by_name(where: str, train: Labels, place: Place, declared: Sequence[str]) -> Numbering:
    """Number the names of classes: in the order that `data.classes` sets, or else as declared, or else sorted."""
    if declared and place.classes is None:
        return Numbering(len(declared), tuple(declared))
    names = sorted(set(declared) or set(as_named(where, train, place)))
    ordered = in_order(names, place.classes, Path(place.root or "."), kind="label")
    note = note_on_numbers(ordered, place.classes, kind="label")
    if note:
        log.warning("%s: %s", where, note)
    return Numbering(len(ordered), tuple(ordered))


def _by_number(where: str, train: NDArray[np.int64], place: Place) -> Numbering:
    if not len(train):
        raise DataError(f"{where}: expected samples, got none; check its files and settings")
    first, least, most = place.first_label or 0, int(train.min()), int(train.max())
    num_classes = place.num_classes or most - first + 1
    used = np.unique(train)
    begins_at_one = place.first_label is None and least == 1 and len(used) == most and most >= num_classes - 1
    if begins_at_one and most > 1:
        raise DataError(
            f"{where}: labels expected to begin at 0, got 1 to {most}, so nothing has label 0; if the first class is 1,"
            f" set data.first_label=1, or else data.first_label=0"
        )
    if least < first:
        raise DataError(
            f"{where}: labels expected {first} or more, got {least}; correct them (-1 often means that there is none)"
        )
    if num_classes > MOST_CLASSES:
        raise DataError(
            f"{where}: labels are numbers up to {most:,}, too many for classes; if they name the classes, set"
            f" data.classes=number"
        )
    if len(used) < num_classes:
        lacking = min(set(range(first, first + len(used) + 1)) - set(used.tolist()))
        log.warning(
            "%s: %d of %d classes have no training sample, %d among them; check data.num_classes, or set"
            " data.classes=number to number only those that occur",
            *(where, num_classes - len(used), num_classes, lacking),
        )
    return Numbering(num_classes, first=first)


def _within(where: str, array: NDArray[np.generic], row: Callable[[int], str]) -> NDArray[np.int64]:
    numbers = array.astype(np.int64)
    if array.dtype == np.uint64 and (numbers < 0).any():
        raise DataError(f"{where}: labels expected at most 2^63 - 1 ({row(int(np.argmin(numbers)))}); correct them")
    return numbers


def _of_objects(where: str, array: NDArray[np.object_], row: Callable[[int], str]) -> Labels:
    """Return Python objects as numbers or names."""
    for at, value in enumerate(array):
        missing = value is None or (isinstance(value, str) and not value.strip())
        if missing or not isinstance(value, str | int | np.integer):
            problem = "no label" if missing else f"{printable_line(repr(value), 60)} ({type(value).__name__})"
            raise DataError(
                f"{where}: labels expected whole numbers or names, got {problem} ({row(at)}); correct or remove it"
            )
    texts = [value for value in array if isinstance(value, str)]
    if not texts:
        return array.astype(np.int64)
    if len(texts) < len(array):
        raise DataError(f"{where}: labels expected all numbers or all names, got both; make them one kind")
    if all(_WHOLE.fullmatch(text) for text in texts):
        try:
            return np.array([int(text) for text in texts], dtype=np.int64)
        except OverflowError:
            return array
    if all(_NUMBER.fullmatch(text) for text in texts):
        at, odd = next((at, text) for at, text in enumerate(texts) if not _WHOLE.fullmatch(text))
        raise DataError(
            f"{where}: labels expected whole numbers or names, got {odd!r} ({row(at)}); correct it: 3.0 should be 3"
        )
    return array
