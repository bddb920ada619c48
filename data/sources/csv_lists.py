"""Lists of images: train.csv and test.csv, or .tsv, with the path and the label of an image in each row.

The lists lie in the data root, unless `data.train` and `data.test` name others below it. Paths are relative to the data
root or, for a list in a folder below the root, to that folder. A path that leads out of the data root is refused.
Samples have the order of the rows.
"""

import csv
import io
import logging
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dhkd.data.disk.regular import open_regular
from dhkd.data.errors import ConfigError, DataError, unknown
from dhkd.data.images.decoding import SUFFIXES
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.options import with_options
from dhkd.data.shown import printable_line, some_of
from dhkd.data.sources.assembled import set_of_files
from dhkd.data.sources.base import OF_FILES, OF_LABELS, Place, Source, no_test_split
from dhkd.data.sources.class_labels import Labels, as_labels, as_named, numbering_of

log = logging.getLogger("dhkd")

USUAL_LISTS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Options:
    """`path` and `label` are columns, by name or by number from 0; `header` says whether the first row names them."""

    path: str | int | None = None
    label: str | int | None = None
    header: bool | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class Table:
    """The rows of a list, without a header; `line_N` has the number of each row's last line in the file."""

    file: Path
    names: tuple[str, ...]  # of the columns; empty if there is no header
    rows: Sequence[Sequence[str]]
    line_N: Sequence[int]

    @property
    def where(self) -> str:
        """The list's name, with which messages begin."""
        return f"csv: {self.file.name}"

    def row(self, index: int) -> str:
        """Return the place of a row in the file."""
        return f"line {self.line_N[index]}"


def load(split: str, place: Place) -> PhotoSet:
    """Load a split. Raises `DataError` for an unreadable list, and for images that are missing or outside the root."""
    if place.root is None:
        raise ConfigError("csv: expected the folder of its files; name it with --data-root")
    options = with_options("data.options of csv", Options, place.options or {})
    table = _table(split, place, options)
    path = _path_column(table, options)
    label_N, numbering = None, None
    if place.labels != "none":
        train = table if split == "train" else _table("train", place, options)
        if place.labels == "test" and not _may_have_labels(train, options):
            train = table
        numbering, labels = numbering_of(train.where, _labels(train, options), place)
        if train is not table:
            labels = as_named(table.where, _labels(table, options), place)
        label_N = numbering.numbers(table.where, labels, table.row)
    paths = _paths(table, path, Path(place.root), follow=bool(place.follow_links))
    _require_once(table, paths, None if label_N is None else label_N.tolist())
    return set_of_files("csv", split, table.where, paths, label_N, numbering, place)


def _table(split: str, place: Place, options: Options) -> Table:
    """Read the list of a split."""
    root, named = Path(place.root or "."), place.train if split == "train" else place.test
    file = root / named if named is not None else _found(split, root)
    try:
        with open_regular(str(file)) as stream:
            text = stream.read().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"csv: {file}: expected a list of images, got: {error.strerror}; check data.{split}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"csv: {file}: expected text in UTF-8, got other bytes at {error.start}; convert it") from error
    delimiter = options.delimiter or DELIMITERS.get(file.suffix.lower(), ",")
    if len(delimiter) != 1:
        raise ConfigError(f"data.options of csv: delimiter: expected one character, got {delimiter!r}")
    rows, lines = _rows(file, text, delimiter)
    width = len(rows[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise DataError(
                f"csv: {file}: line {line}: expected {width} columns, as in the first row, got {len(row)}; quote texts"
                f" that hold the delimiter {delimiter!r}, or set data.options.delimiter"
            )
    if _has_header(rows[0], options):
        return Table(file, tuple(name.strip() for name in rows[0]), rows[1:], lines[1:])
    return Table(file, (), rows, lines)


def _found(split: str, root: Path) -> Path:
    for called in USUAL_LISTS[split]:
        for suffix in DELIMITERS:
            if (root / f"{called}{suffix}").exists():
                return root / f"{called}{suffix}"
    there = sorted(path.name for path in root.glob("*.?sv")) if root.is_dir() else []
    if split == "test" and there:
        raise no_test_split("csv", some_of(there, 6))
    raise DataError(
        f"csv: {root}: expected {split}.csv or {split}.tsv, found {some_of(there, 6) or 'no lists'}; name its folder"
        f" with --data-root, or the list with data.{split}"
    )


def _rows(file: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """Return the rows that aren't blank, and the number of each one's last line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"csv: {file}: line {reader.line_num}: expected rows of text, got: {error}; check quotes and delimiter"
        ) from error
    if not rows:
        raise DataError(f"csv: {file}: expected a row for each image, got none; check its files and settings")
    return rows, lines


def _has_header(first: Sequence[str], options: Options) -> bool:
    """Return whether the first row names the columns: as the options say, or if no cell in it is an image's path."""
    if options.header is not None:
        return options.header
    by_name = [column for column in (options.path, options.label) if isinstance(column, str)]
    return bool(by_name) or not any(_is_path(cell) for cell in first)


def _path_column(table: Table, options: Options) -> int:
    """Return the number of the column of paths."""
    if not table.rows:
        raise DataError(
            f"{table.where}: expected a row for each image, got a header alone; check its files and settings"
        )
    width = len(table.rows[0])
    paths = [column for column in range(width) if _is_path(table.rows[0][column])]
    return _column(table, "path", options.path, paths)


def _label_column(table: Table, options: Options) -> int:
    """Return the number of the column of labels, which is another one than that of paths."""
    path = _path_column(table, options)
    others = [column for column in range(len(table.rows[0])) if column != path]
    label = _column(table, "label", options.label, others)
    if path == label:
        raise ConfigError("data.options of csv: path and label: expected two columns, got one for both")
    return label


def _may_have_labels(table: Table, options: Options) -> bool:
    """Return whether a list has a second column, and the one that the options name."""
    named = not isinstance(options.label, str) or options.label in table.names
    return named and any(len(row) > 1 for row in table.rows[:1])


def _column(table: Table, kind: str, wanted: str | int | None, candidates: Sequence[int]) -> int:
    """Return the number of the `wanted` column, or else of the only candidate, or else of the one named `kind`."""
    width = len(table.rows[0])
    if isinstance(wanted, int):
        if not 0 <= wanted < width:
            raise ConfigError(f"data.options of csv: {kind}: expected a column 0 to {width - 1}, got {wanted}")
        return wanted
    if wanted is not None:
        if table.names.count(wanted) != 1:
            problem = "names it twice" if wanted in table.names else unknown("column", wanted, table.names)
            raise ConfigError(f"data.options of csv: {kind}: {table.file.name}: {problem}")
        return table.names.index(wanted)
    if len(candidates) == 1:
        return candidates[0]
    named = [column for column in candidates if table.names and table.names[column].lower() == kind]
    if len(named) == 1:
        return named[0]
    columns = some_of(list(table.names), 10) if table.names else f"columns 0 to {width - 1}"
    what = "paths of images (by their endings)" if kind == "path" else "labels"
    raise DataError(
        f"{table.where}: expected one column of {what}, found {len(candidates)} among {columns}; name it with"
        f" data.options.{kind}"
    )


def _is_path(cell: str) -> bool:
    return os.path.splitext(cell.strip())[1].lower() in SUFFIXES


def _labels(table: Table, options: Options) -> Labels:
    column = _label_column(table, options)
    return as_labels(table.where, [row[column].strip() for row in table.rows], table.row)


def _paths(table: Table, column: int, root: Path, *, follow: bool) -> list[bytes]:
    """Return the images' paths below the data root."""
    cells = [row[column].strip() for row in table.rows]
    inside = os.path.realpath(root)
    beside = os.path.relpath(table.file.parent, root)
    # Paths start at the root or at the list's folder; the first row decides for all rows.
    base = "" if beside == "." or (root / cells[0]).exists() else beside
    below = _below(table, root, inside, follow)
    paths, missing = [], []
    for at, cell in enumerate(cells):
        path = below(at, cell, base)
        mode = _mode(root / path)
        if mode is None:
            missing.append(at)
        elif not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a named pipe or a device"
            raise DataError(f"{table.where}: {table.row(at)}: {path}: expected an image file, got {kind}")
        paths.append(os.fsencode(path))
    if missing:
        at = missing[0]
        raise DataError(
            f"{table.where}: {len(missing):,} of {len(cells):,} images are missing below {root}, first"
            f" {printable_line(cells[at], 100)} ({table.row(at)}); paths are relative to the data root or to the list"
        )
    return paths


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError for a NUL in the path
        return None


def _below(table: Table, root: Path, inside: str, follow: bool) -> Callable[[int, str, str], str]:
    """Return a function that turns a cell into the path below the root; it refuses paths that lead elsewhere."""
    checked: dict[str, bool] = {}  # whether folders lie inside, kept since most images share a few

    def lies_inside(path: str) -> bool:
        folder = os.path.dirname(path)
        if folder not in checked:
            checked[folder] = _is_below(os.path.realpath(root / folder), inside)
        return checked[folder] and (not os.path.islink(root / path) or _is_below(os.path.realpath(root / path), inside))

    def path_of(at: int, cell: str, base: str) -> str:
        where = f"{table.where}: {table.row(at)}: {printable_line(cell, 100)}"
        if "\n" in cell or "\0" in cell or "://" in cell or not cell:
            raise DataError(f"{where}: expected the path of an image; correct it")
        absolute = os.path.isabs(cell)
        path = os.path.normpath(os.path.relpath(cell, root) if absolute else os.path.join(base, cell))
        if path.split(os.sep)[0] == os.pardir:
            raise DataError(f"{where}: a path that leads outside of the data root; put the image there")
        if not follow and not lies_inside(path):
            raise DataError(
                f"{where}: a link that leads outside of the data root; put the image there, or set"
                f" data.follow_links=true if you trust the link"
            )
        return path

    return path_of


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _require_once(table: Table, paths: Sequence[bytes], labels: Sequence[int] | None) -> None:
    """Raise `DataError` for an image with two labels, and warn of images that are listed twice."""
    first_of: dict[bytes, int] = {}
    twice = 0
    for at, path in enumerate(paths):
        first = first_of.setdefault(path, at)
        if first == at:
            continue
        twice += 1
        if labels is not None and labels[first] != labels[at]:
            raise DataError(
                f"{table.where}: {os.fsdecode(path)} has two labels, in {table.row(first)} and {table.row(at)}; correct"
                f" the list"
            )
    if twice:
        log.warning("%s: %d images are listed more than once; each row is a sample", table.where, twice)


SOURCE = Source(load, takes=(*OF_FILES, *(key for key in OF_LABELS if key not in OF_FILES), "follow_links", "options"))
