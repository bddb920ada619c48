"""The results of analyses: typed rows, which are the lines of a CSV file, and the names of the files.

The fields of a row are the columns of the file, in order; the page reads the same rows from the file.
"""

import csv
import types
from collections.abc import Sequence
from dataclasses import Field, asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints

from dhkd.data.disk.csv_table import text_of, write_csv


class Row(Protocol):
    """A row of an analysis, one of the dataclasses in this module."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class ViewsRow:
    """Accuracy in percent over seeds for one kind of run and number of views, and the cost of caching these views.

    In all rows of this module, `runs` is the name of the kind of run, i.e. of all runs that differ only in their seed.
    A field is None if it has no value, e.g. because it was not measured.
    """

    runs: str
    views: int
    seeds: int
    top1: float
    deviation: float | None
    half_interval: float | None
    teacher_forwards: int | None
    teacher_hours: float | None
    cache_bytes: int | None


@dataclass(frozen=True)
class EpochRow:
    """Accuracy in percent and losses of a kind of run after an epoch: means and standard deviations over seeds."""

    runs: str
    epoch: int
    seeds: int
    top1: float | None
    top1_deviation: float | None
    loss: float | None
    loss_deviation: float | None
    ce: float | None
    ce_deviation: float | None


@dataclass(frozen=True)
class ConflictRow:
    """How cross-entropy and BinaryKL act `on` the classifier or the features of a run after `epochs` epochs.

    The fields are the mean cosine of the losses' forces (negative gradients), the share of rows on which the losses
    conflict, and the mean norm of each part (pull, push) of each force.
    """

    runs: str
    seed: int
    epochs: int
    on: str
    cosine: float
    conflicting: float
    ce_pull: float | None
    ce_push: float | None
    binary_kl_pull: float | None
    binary_kl_push: float | None


@dataclass(frozen=True)
class CorrelationRow:
    """How far a run's logit correlation is from the teacher's."""

    runs: str
    seed: int
    mean_absolute_difference: float


@dataclass(frozen=True)
class PointsRow:
    """How many points the t-SNE of a network's features has."""

    runs: str
    points: int


@dataclass(frozen=True)
class EtfRow:
    """A network's distances from a simplex equiangular tight frame, as in `NeuralCollapse`; the teacher has no seed."""

    runs: str
    seed: int | None
    within_class: float
    features_etf: float
    classifier_etf: float
    norms: float
    angles: float
    duality: float


@dataclass(frozen=True)
class Analysis:
    """An analysis's rows, and the names of the files it wrote."""

    rows: Sequence[Row]
    files: Sequence[str]


def columns_of(kind: type[Row]) -> list[str]:
    """Return the names of a row's fields."""
    return [field.name for field in fields(kind)]


def analysis_json(analysis: Analysis) -> dict[str, Any]:
    """Convert the analysis to the JSON object that `dhkd report ANALYSIS --json` prints."""
    return {"rows": [asdict(row) for row in analysis.rows], "files": list(analysis.files)}


def write_rows(path: Path, kind: type[R], rows: Sequence[R]) -> None:
    """Write rows as a CSV file; None becomes an empty field."""
    write_csv(path, columns_of(kind), [astuple(row) for row in rows])


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Read the rows that `write_rows` wrote; return an empty list if there is no file.

    Raises `KeyError` if a column is missing and `ValueError` if a value can't be parsed; extra columns are ignored.
    """
    if not path.exists():
        return []
    hints = get_type_hints(kind)
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            kind(**{name: _parsed(line[name], hints[name]) for name in columns_of(kind)})
            for line in csv.DictReader(stream)
        ]


def _parsed(text: str, hint: Any) -> Any:
    """Parse a field's text as a type such as `int` or `float | None`."""
    if hint is str:
        return text_of(text)
    optional = isinstance(hint, types.UnionType)
    if optional and text == "":
        return None
    return (get_args(hint)[0] if optional else hint)(text)
