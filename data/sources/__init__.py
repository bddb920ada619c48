"""The data sets by name. A new one is one file here and one line in `SOURCES`."""

from collections.abc import Callable
from pathlib import Path

from dhkd.data.errors import ConfigError, one_of, unknown
from dhkd.data.image_set import ImageSet
from dhkd.data.sources import cifar100, digits, glyphs

# From split, the folder of files (None: the usual place) and whether to download, to the data set.
Source = Callable[[str, Path | None, bool], ImageSet]

SOURCES: dict[str, Source] = {
    "cifar100": cifar100.load,
    "digits": digits.load,
    "glyphs": glyphs.load,
}
SPLITS = ("train", "test")


def load_source(
    name: str, split: str, *, root: Path | None = None, download: bool = False, limit: int | None = None
) -> ImageSet:
    """The split "train" or "test" of a data set; `limit` keeps the first samples of "train" and leaves "test" whole.

    `root` is where its files are, for those that have any; missing ones are fetched only if `download`. Raises
    `ConfigError` for an unknown name or split or an impossible limit, `DataError` for missing or damaged files.
    """
    load = one_of("data source", name, SOURCES)
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    images = load(split, root, download)
    if split != "train" or limit is None:
        return images
    if not 1 <= limit <= len(images):
        raise ConfigError(f"data.limit: expected 1 to {len(images)}, the size of {name}, got {limit}")
    return images.first(limit)
