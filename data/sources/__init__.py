"""The data sets by name. A new one is one file here and one line in a table.

`SOURCES` are whole sets in memory, `image-folder` and `webdataset` encoded images in files of the user's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dhkd.data.errors import ConfigError, unknown
from dhkd.data.images.in_memory import ImageSet, Triple
from dhkd.data.images.photographs import PhotoSet
from dhkd.data.sources import cifar100, digits, glyphs, image_folder, tar_shards

# From split, the folder of files (None: the usual place) and whether to download, to the data set.
Source = Callable[[str, Path | None, bool], ImageSet]

SOURCES: dict[str, Source] = {
    "cifar100": cifar100.load,
    "digits": digits.load,
    "glyphs": glyphs.load,
}
FILE_SOURCES = ("image-folder", "webdataset")


@dataclass(frozen=True)
class Size:
    """Of a training split: samples, classes, and the pixels of a side."""

    samples: int
    classes: int
    pixels: int


# Of the sets in memory, for who asks before any file is there.
SIZES: dict[str, Size] = {
    "cifar100": Size(50_000, 100, 32),
    "digits": Size(digits.NUM_TRAIN, 10, 8),
    "glyphs": Size(glyphs.num_images("train"), len(glyphs.CHARACTERS), glyphs.SIZE),
}
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Selection:
    """What of a source is used, and how it is seen; None stands for the source's own.

    `train` and `test` say where the splits are below the root: folders of class folders, or patterns of shards.
    `limit` and `test_limit` keep the first samples of each. `mean` and `std` are in units of full scale.
    """

    limit: int | None = None
    test_limit: int | None = None
    train: str | None = None
    test: str | None = None
    num_classes: int | None = None
    mean: Triple | None = None
    std: Triple | None = None


def load_source(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    selection: Selection | None = None,
    keep_bytes: int = 20 * 10**9,
) -> ImageSet | PhotoSet:
    """The split "train" or "test" of a data set.

    `root` is where its files are, a folder or (for shards) a URL; missing ones are fetched only if `download`. Fetched
    shards take `keep_bytes` of disk. Raises `ConfigError` for an unknown name or split or an impossible selection,
    `DataError` for missing or damaged files.
    """
    selection = selection or Selection()
    if name not in SOURCES and name not in FILE_SOURCES:
        raise ConfigError(unknown("data source", name, [*SOURCES, *FILE_SOURCES]))
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    images: ImageSet | PhotoSet
    if name in SOURCES:
        for key in ("train", "test", "num_classes"):
            if getattr(selection, key) is not None:
                raise ConfigError(f"data.{key}: {name} has its own; leave it out")
        images = SOURCES[name](split, None if root is None else Path(root), download)
    else:
        images = _from_files(name, split, None if root is None else str(root), selection, keep_bytes)
    images = replace(images, mean=selection.mean or images.mean, std=selection.std or images.std)
    key, limit = ("limit", selection.limit) if split == "train" else ("test_limit", selection.test_limit)
    if limit is None:
        return images
    if not 1 <= limit <= len(images):
        raise ConfigError(f"data.{key}: expected 1 to {len(images)}, the size of {name}, got {limit}")
    return images.first(limit)


def _from_files(name: str, split: str, root: str | None, selection: Selection, keep_bytes: int) -> PhotoSet:
    if root is None:
        raise ConfigError(f"{name}: expected the place of its files; name it with --data-root")
    if name == "image-folder":
        if selection.num_classes is not None:
            raise ConfigError("data.num_classes: image-folder counts its class folders; leave it out")
        train = Path(root) / (selection.train or "train")
        folder = train if split == "train" else Path(root) / (selection.test or "val")
        return image_folder.load(split, folder, train)
    if selection.num_classes is None:
        raise ConfigError("data.num_classes: shards don't say how many classes there are; set it")
    pattern = (selection.train or "train/*.tar") if split == "train" else (selection.test or "val/*.tar")
    urls = tar_shards.expand(root, pattern)
    return tar_shards.load(split, urls, selection.num_classes, keep_bytes)
