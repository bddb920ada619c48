"""The interface of sources: named data sets from which splits are loaded."""

from collections.abc import Callable
from dataclasses import dataclass

from dhkd.data.images.base import Images


@dataclass(frozen=True)
class Size:
    """The size of a training split: its samples, its classes, and the pixels along a side of an image."""

    samples: int
    classes: int
    pixels: int


@dataclass(frozen=True)
class Place:
    """Where the files of a source are, and which files make a split.

    `root` is a folder or, for shards, a URL; if it is None, the source's usual place is used. If `download` is true,
    missing files are fetched from the data set's server. Copies of remote shards take at most about `keep_bytes` of
    disk. `train` and `test` name the splits below the root, as folders of class folders or as shard patterns. If
    `train`, `test` or `num_classes` is None, the source's default applies.
    """

    root: str | None = None
    download: bool = False
    keep_bytes: int = 20 * 10**9
    train: str | None = None
    test: str | None = None
    num_classes: int | None = None


@dataclass(frozen=True)
class Source:
    """One entry of `SOURCES`, the table of data sets by name.

    `load` returns the split "train" or "test" found at a place, and raises `DataError` for missing or damaged files.
    `size` describes the training split; it is None if the size isn't known before files are read. `takes` names the
    fields of `Place` that the source uses besides `root`, `download` and `keep_bytes`.
    """

    load: Callable[[str, Place], Images]
    size: Size | None = None
    takes: tuple[str, ...] = ()
