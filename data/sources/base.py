"""The interface of sources: named data sets from which splits are loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from dhkd.data.errors import ConfigError
from dhkd.data.images.base import Images
from dhkd.data.images.decoding import USUAL, Reading
from dhkd.data.images.levels import Levels

# Which labels are used: none, or only those of the test split.
Labelled = Literal["none", "test"]


@dataclass(frozen=True)
class Size:
    """The size of a training split: its samples, its classes, and the pixels along a side of an image.

    `tested` is the number of samples of the test split.
    """

    samples: int
    classes: int
    pixels: int
    tested: int | None = None


@dataclass(frozen=True)
class Place:
    """Where the files of a source are, and which files make a split.

    `root` is a folder or, for shards, a URL; if it is None, the source's usual place is used. If `download` is true,
    missing files are fetched from the data set's server. Copies of remote shards take at most about `keep_bytes` of
    disk. `train` and `test` name the splits, as folders of class folders, patterns of shards, files or a library's own
    names. `options` are settings that only this source has, which checks them itself. `network_classes` is the number
    of the networks' classes, if it is known; images without labels have that many. The other fields are settings of the
    preset's section `data`; for each field that is None, the source's default applies.
    If `labels` is "none", a source needs no labels in its files; the images that it loads may have labels or none.
    """

    root: str | None = None
    download: bool = False
    keep_bytes: int = 20 * 10**9
    train: str | None = None
    test: str | None = None
    num_classes: int | None = None
    classes: str | None = None
    label: str | None = None
    first_label: int | None = None
    follow_links: bool | None = None
    levels: Levels | None = None
    max_megapixels: float | None = None
    max_metadata_mb: float | None = None
    options: Mapping[str, object] | None = None
    labels: Labelled | None = None
    network_classes: int | None = None

    @property
    def classes_without_labels(self) -> int:
        """The number of classes for images without labels. Raises `ConfigError` if it isn't known."""
        if self.network_classes is None:
            raise ConfigError(
                "data.num_classes: images without labels don't say how many classes the networks have; set it, or give"
                " a cache or the teacher's weights"
            )
        return self.network_classes

    @property
    def reading(self) -> Reading:
        """How encoded images are read. Raises `ConfigError` unless `levels` are two growing numbers."""
        if self.levels is not None and self.levels[0] >= self.levels[1]:
            raise ConfigError(
                f"data.levels: expected the value of black and a larger one of white, got {list(self.levels)}"
            )
        return Reading(
            self.levels,
            USUAL.max_pixels if self.max_megapixels is None else int(self.max_megapixels * 10**6),
            USUAL.max_metadata if self.max_metadata_mb is None else int(self.max_metadata_mb * 10**6),
        )


# The settings that say how classes and pixels are read, which the provenance of a cache records where they are set.
READING = ("classes", "label", "first_label", "follow_links", "levels", "max_megapixels", "max_metadata_mb", "options")
# The fields of `Place` that come from the preset's section `data`; a source names those that it takes.
SETTINGS = ("train", "test", "num_classes", *READING)
# What every source of encoded files takes.
OF_FILES = ("train", "test", "classes", "levels", "max_megapixels", "max_metadata_mb")
# What every source takes that gets its labels as a list of numbers or names.
OF_LABELS = ("num_classes", "classes", "first_label")


@dataclass(frozen=True)
class Source:
    """One entry of `SOURCES`, the table of data sets by name.

    `load` returns the split "train" or "test" found at a place, and raises `DataError` for missing or damaged files.
    `size` describes the training split; it is None if the size isn't known before files are read. `takes` names the
    fields of `Place` that the source uses besides `root`, `download` and `keep_bytes`. `labelled` says whether its
    images have labels. `bundled` says whether they come with a package, so that no files are needed.
    """

    load: Callable[[str, Place], Images]
    size: Size | None = None
    takes: tuple[str, ...] = ()
    labelled: bool = True
    bundled: bool = False


def no_test_split(name: str, found: str) -> ConfigError:
    """Return the error for a data set that has no test split; `found` says which splits it has."""
    return ConfigError(
        f"{name}: expected a test split, found {found}; name it with data.test, or hold out a part of the training"
        f" split with data.val_fraction"
    )
