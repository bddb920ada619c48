"""What a source is: a data set by name, from which a split is loaded."""

from collections.abc import Callable
from dataclasses import dataclass

from dhkd.data.images.base import Images


@dataclass(frozen=True)
class Size:
    """Of a training split: samples, classes, and the pixels of a side."""

    samples: int
    classes: int
    pixels: int


@dataclass(frozen=True)
class Place:
    """Where the files of a source are, and what of them makes a split.

    `root` is a folder or, for shards, a URL; None: the source's usual place. `download` allows fetching what is missing
    from the data set's own server, and fetched files may take `keep_bytes` of disk. `train` and `test` say where the
    splits are below the root (folders of class folders, or patterns of shards), `num_classes` how many classes there
    are; None: as the source itself has it.
    """

    root: str | None = None
    download: bool = False
    keep_bytes: int = 20 * 10**9
    train: str | None = None
    test: str | None = None
    num_classes: int | None = None


@dataclass(frozen=True)
class Source:
    """One entry of the table of sources.

    `load` gives the split "train" or "test" of what is at a place; it raises `DataError` for files that are missing or
    damaged. `size` is that of the training split, where it is known before any file is read. `takes` are the fields of
    `Place` beside root and download that mean something here.
    """

    load: Callable[[str, Place], Images]
    size: Size | None = None
    takes: tuple[str, ...] = ()
