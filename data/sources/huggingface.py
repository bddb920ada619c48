"""Data sets of the `datasets` library: `huggingface:NAME` from its hub, or `huggingface` for files below the data root.

Files below the data root may be what `save_to_disk` wrote, parquet files, or an image folder as the library reads it.
The library hands out images still encoded, and dhkd's own workers decode them.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import ConfigError, DataError, DhkdError, unknown
from dhkd.data.extras import needing
from dhkd.data.images.chunks import Photos
from dhkd.data.images.decoding import Reading
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.options import with_options
from dhkd.data.shown import printable_line, some_of
from dhkd.data.sources.arrow_images import ArrowRows
from dhkd.data.sources.assembled import set_of_photos, set_without_labels
from dhkd.data.sources.base import OF_FILES, OF_LABELS, Place, Source, no_test_split
from dhkd.data.sources.class_labels import Labels, as_labels, as_named, numbering_of
from dhkd.data.sources.parquet_images import ParquetRows
from numpy.typing import NDArray

log = logging.getLogger("dhkd")

PREFIX = "huggingface:"
TEST_SPLITS = ("test", "validation", "valid", "val", "dev")
_SPLIT_OF_FILE = re.compile(r"(?:^|[/._-])(train|test|validation|valid|val|dev)(?=[/._-])")
WITHHELD = -1  # the label of images whose classes the authors keep for themselves


class Rows(Protocol):
    """The rows of a split."""

    @property
    def features(self) -> Any:
        """The columns and their kinds, of the datasets library, which has no types."""

    def __len__(self) -> int: ...

    def values(self, column: str) -> list[Any]:
        """Return the values of a column."""

    def images(self, where: str, column: str, row_N: NDArray[np.int64], inside: list[Path], reading: Reading) -> Photos:
        """Return the images of these rows. Raises `DataError` if a row has none."""


Splits = Mapping[str, Rows]


@dataclass(frozen=True)
class Options:
    """`image` and `label` are columns; `config` and `revision` say which variant of a data set on the hub is read.

    If `streaming` is true, parquet files are read where they lie, without a copy as an Arrow table.
    """

    image: str | None = None
    label: str | None = None
    config: str | None = None
    revision: str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class _Table:
    """One split, and its columns."""

    where: str
    rows: Rows
    image: str
    label: str | None  # None if labels aren't used

    def row(self, index: int) -> str:
        return f"row {index}"

    def labels(self) -> Labels:
        assert self.label is not None
        return as_labels(self.where, self.rows.values(self.label), self.row)

    @property
    def class_names(self) -> Sequence[str]:
        return getattr(self.rows.features[self.label], "names", None) or ()

    def files(self, place: Place) -> Callable[[NDArray[np.int64]], Photos]:
        """Return a function that gives the images in the order of the rows that it gets."""
        inside = [_library_cache(), *([Path(place.root)] if place.root is not None else [])]
        return lambda row_N: self.rows.images(self.where, self.image, row_N, inside, place.reading)


def source_on_hub(name: str) -> Source:
    """Return the source `huggingface:NAME`."""
    return Source(lambda split, place: _load(split, place, name.removeprefix(PREFIX)), takes=_TAKES)


def load(split: str, place: Place) -> PhotoSet:
    """Load a split from files below the data root. Raises `DataError` for columns that aren't images and labels."""
    return _load(split, place, None)


def _load(split: str, place: Place, hub_name: str | None) -> PhotoSet:
    options = with_options("data.options of huggingface", Options, place.options or {})
    splits = _splits(place, hub_name, options)
    name = "huggingface" if hub_name is None else f"{PREFIX}{hub_name}"
    used = place.train or _only_train(name, splits)
    labelled = place.labels != "none"
    if split == "train":
        train = table = _table(name, splits, used, options, labelled=labelled)
    else:
        train = table = _test_table(name, splits, place, options)
        if labelled and (place.labels is None or _may_have_labels(splits, used, options)):
            train = _table(name, splits, used, options)
    if not labelled:
        return set_without_labels(name, split, table.files(place), len(table.rows), place)
    numbering, labels = numbering_of(train.where, _trained(train), place, train.class_names)
    if train is not table:
        labels = as_named(table.where, table.labels(), place, table.class_names)
        if table.class_names and train.class_names and list(table.class_names) != list(train.class_names):
            raise DataError(f"{table.where}: expected the classes of the training split, got others; correct them")
    label_N = numbering.numbers(table.where, labels, table.row)
    return set_of_photos(name, split, table.where, table.files(place), label_N, numbering, place.levels)


def _trained(train: _Table) -> Labels:
    labels = train.labels()
    if len(labels) and labels.dtype == np.int64 and (labels == WITHHELD).all():
        raise DataError(f"{train.where}: expected labels, got {WITHHELD} alone; they are withheld")
    return labels


def _test_table(name: str, splits: Splits, place: Place, options: Options) -> _Table:
    """Return the split for testing: the named one, or else the first that has labels, if they are used."""
    labelled = place.labels != "none"
    if place.test is not None:
        return _table(name, splits, place.test, options, labelled=labelled)
    used = place.train or _only_train(name, splits)
    for called in (called for called in TEST_SPLITS if called in splits and called != used):
        table = _table(name, splits, called, options, labelled=labelled)
        if not labelled:
            return table
        labels = table.labels()
        if len(labels) and labels.dtype == np.int64 and (labels == WITHHELD).all():
            log.info("%s: its labels are withheld (%d), so it isn't the test split", table.where, WITHHELD)
            continue
        return table
    raise no_test_split(name, some_of(sorted(splits), 6))


def _only_train(name: str, splits: Splits) -> str:
    if "train" in splits:
        return "train"
    raise DataError(f"{name}: expected a split train, found {some_of(sorted(splits), 6)}; name it with data.train")


def _may_have_labels(splits: Splits, split: str, options: Options) -> bool:
    """Return whether a split has the column of labels that the options name, or one that may be it."""
    if split not in splits:
        return True  # which is refused later
    features = splits[split].features
    if options.label is not None:
        return options.label in features
    return any(_kind(feature) in ("class", "label") for feature in features.values())


def _table(name: str, splits: Splits, split: str, options: Options, *, labelled: bool = True) -> _Table:
    if split not in splits:
        raise ConfigError(f"{name}: {unknown('split', split, splits)}")
    rows, where = splits[split], f"{name}: {split}"
    if not len(rows):
        raise DataError(f"{where}: expected samples, got none; check its files and settings")
    kinds = {column: _kind(feature) for column, feature in rows.features.items()}
    image = _column(where, "image", options.image, kinds, ("image", "bytes"))
    label = _column(where, "label", options.label, kinds, ("class", "label")) if labelled else None
    return _Table(where, rows, image, label)


def _kind(feature: Any) -> str:
    """Return what a column may be used as: image, bytes, class, label, or other."""
    kind = type(feature).__name__
    if kind in ("Image", "ClassLabel"):
        return "image" if kind == "Image" else "class"
    if isinstance(feature, dict) and "bytes" in feature:
        return "bytes"
    dtype = getattr(feature, "dtype", "") if kind == "Value" else ""
    if dtype in ("binary", "large_binary"):
        return "bytes"
    return "label" if dtype.startswith(("int", "uint", "string", "large_string", "bool")) else "other"


def _column(where: str, role: str, wanted: str | None, kinds: Mapping[str, str], suitable: tuple[str, str]) -> str:
    """Return the column for a role: the wanted one, or else the only one of the first suitable kind that occurs."""
    listed = some_of([f"{column} ({kind})" for column, kind in kinds.items()], 12)
    if wanted is not None:
        if wanted not in kinds:
            raise ConfigError(f"data.options of huggingface: {where}: {unknown('column', wanted, kinds)}")
        if role == "image" and kinds[wanted] not in suitable:
            raise DataError(
                f"{where}: {wanted}: expected encoded images, found {listed}; name another data.options.image"
            )
        return wanted
    for kind in suitable:
        columns = [column for column, of_kind in kinds.items() if of_kind == kind]
        if len(columns) > 1 and role in columns and kind == "label":
            return role
        if len(columns) == 1:
            return columns[0]
        if columns:
            break
    raise DataError(
        f"{where}: expected one column of {role}s, found {len(columns)} among {listed}; name it with"
        f" data.options.{role}"
    )


def _splits(place: Place, hub_name: str | None, options: Options) -> Splits:
    """Open all splits."""
    with needing("datasets", "huggingface"):
        import datasets
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # the hub counts every opening, also of local files
    if hub_name is None and place.root is None:
        raise ConfigError(
            "huggingface: expected the folder of its files; name it with --data-root, or set data.source to"
            " huggingface:NAME for a data set of the hub"
        )
    if hub_name is not None and place.root is not None:
        raise ConfigError(f"{PREFIX}{hub_name}: a data set of the hub has no --data-root; leave it out")
    if hub_name is None and (options.config, options.revision) != (None, None):
        raise ConfigError(
            "data.options of huggingface: config and revision are for data sets of the hub; leave them out"
        )
    if hub_name is not None and options.streaming:
        raise ConfigError(
            f"data.options of huggingface: streaming: expected the folder of parquet files of {hub_name} as --data-root"
            f" and data.source=huggingface, got a name of the hub"
        )
    what = f"{PREFIX}{hub_name}" if hub_name is not None else f"huggingface: {place.root}"
    try:
        if hub_name is None:
            root = Path(place.root or ".")
            return _streamed(root) if options.streaming else _below(datasets, root)
        return _on_hub(datasets, hub_name, options, download=place.download)
    except DhkdError:
        raise
    except Exception as error:  # the library raises dozens of kinds of exceptions, its dependencies more
        reason = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        text = printable_line(" ".join(str(reason).split()), 300) or type(reason).__name__
        fetch = (
            "" if hub_name is None or place.download else "; if it isn't on this machine yet, fetch it with --download"
        )
        raise DataError(f"{what}: datasets can't read it ({text}){fetch}") from error


def _on_hub(datasets: Any, name: str, options: Options, *, download: bool) -> Splits:
    import huggingface_hub

    kept = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    if not download:  # read only what was fetched before
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        return _of_library(datasets.load_dataset(name, options.config, revision=options.revision))
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = kept


def _below(datasets: Any, root: Path) -> Splits:
    """Open what lies in a folder."""
    _require_folder(root)
    saved = {path.parent.name: path.parent for path in sorted(root.glob("*/state.json"))}
    if (root / "state.json").is_file():
        saved = {"train": root}
    if saved:
        return _of_library({split: datasets.load_from_disk(str(folder)) for split, folder in saved.items()})
    cache = str(user_cache_folder() / "arrow")
    parquet = _parquet_below(root)
    if parquet:
        return _of_library(
            {
                split: datasets.Dataset.from_parquet(paths, cache_dir=cache, split=split)
                for split, paths in parquet.items()
            }
        )
    return _of_library(datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=cache))


def _streamed(root: Path) -> Splits:
    """Open the parquet files in a folder where they lie."""
    _require_folder(root)
    parquet = _parquet_below(root)
    if not parquet:
        raise DataError(
            f"huggingface: {root}: data.options.streaming: expected parquet files, found none; name their folder with"
            f" --data-root, or leave the option out"
        )
    return {split: ParquetRows(paths) for split, paths in parquet.items()}


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"huggingface: {root}: expected a folder, got none; name it with --data-root")


def _parquet_below(root: Path) -> dict[str, list[str]]:
    """Return the parquet files of each split."""
    parquet: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.parquet")):
        match = _SPLIT_OF_FILE.search(path.relative_to(root).as_posix())
        parquet.setdefault(match[1] if match else "train", []).append(str(path))
    return parquet


def _of_library(splits: Mapping[str, Any]) -> Splits:  # Any: a `datasets.Dataset`, of a library without types
    """Return the rows of the library's data sets."""
    # Rows that are chosen or reordered in memory are copied in their order.
    return {
        split: ArrowRows(dataset if dataset._indices is None else dataset.flatten_indices())
        for split, dataset in splits.items()
    }


def _library_cache() -> Path:
    """Return the folder into which the library unpacks what it fetches."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE)


_TAKES = (*OF_FILES, *(key for key in OF_LABELS if key not in OF_FILES), "options")
SOURCE = Source(load, takes=_TAKES)
