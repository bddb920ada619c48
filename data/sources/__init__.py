"""Data sets by name. Each source is a file in this folder and a line in `SOURCES`; `base.py` has the interface."""

from dataclasses import replace

from dhkd.data.errors import ConfigError, DataError, unknown
from dhkd.data.images.base import Images, PerChannel
from dhkd.data.images.channels import in_channels
from dhkd.data.images.held_out import parted
from dhkd.data.own_code import find
from dhkd.data.sources import (
    arrays,
    cifar100,
    csv_lists,
    digits,
    folder,
    glyphs,
    huggingface,
    image_folder,
    tar_shards,
    torchvision_sets,
)
from dhkd.data.sources.base import SETTINGS, Place, Source
from dhkd.data.sources.own_data import own_source
from dhkd.data.sources.torchvision_sets import torchvision_source

SOURCES: dict[str, Source] = {
    "arrays": arrays.SOURCE,
    "cifar100": cifar100.SOURCE,
    "csv": csv_lists.SOURCE,
    "digits": digits.SOURCE,
    "folder": folder.SOURCE,
    "glyphs": glyphs.SOURCE,
    "huggingface": huggingface.SOURCE,
    "image-folder": image_folder.SOURCE,
    "webdataset": tar_shards.SOURCE,
}
SPLITS = ("train", "test")
# Prefixes of libraries' names, as in torchvision:CIFAR10, and the functions that return the source of a whole name.
_BY_PREFIX = {huggingface.PREFIX: huggingface.source_on_hub, torchvision_sets.PREFIX: torchvision_source}


def source_of(name: str) -> Source:
    """Return the source of this name: one of `SOURCES`, of a library, or of code that the user wrote.

    Raises `ConfigError` for an unknown name, and for own code that wasn't imported.
    """
    for prefix, source_on in _BY_PREFIX.items():
        if name.startswith(prefix):
            return source_on(name)
    found = find("data source", name, SOURCES, instances=(Source,))
    return found if isinstance(found, Source) else own_source(name, found)


def is_own(name: str) -> bool:
    """Return whether a name stands for own code rather than for a source of the package or of a library."""
    return name not in SOURCES and not name.startswith(tuple(_BY_PREFIX))


def load_source(
    name: str,
    split: str,
    place: Place | None = None,
    *,
    limit: int | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    held_out: tuple[float, int] | None = None,
    channels: int = 3,
) -> Images:
    """Load the split "train" or "test" of a data set; if `limit` is not None, only the split's first `limit` samples.

    If `place` is None, the files are expected at the source's usual place. `mean` and `std` (full scale is 1) replace
    the source's values unless they are None. `held_out` is a fraction and a seed: this part of the training split
    replaces the test split, and the training split is the rest; `limit` applies afterwards. Images have 1 or 3
    `channels`; colours become grey by the weights of ITU-R 601. Raises `ConfigError` for an unknown name or split, for
    a `limit` out of range and for settings that the source doesn't take, and `DataError` for missing or damaged files
    and for a split that nothing can be learnt from.
    """
    place = place or Place()
    source = source_of(name)
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    for key in SETTINGS:
        unlabelled = key == "num_classes" and place.labels is not None  # then that of the networks
        if getattr(place, key) is not None and key not in source.takes and not unlabelled:
            reason = "has its own" if key in ("train", "test", "num_classes") else "doesn't take it"
            raise ConfigError(f"data.{key}: {name} {reason}; leave it out")
    images = _loaded(source, split, place) if held_out is None else _part(source, split, place, *held_out)
    _require_usable(name, split, images)
    if limit is not None and not 1 <= limit <= len(images):
        key = "limit" if split == "train" else "test_limit"
        raise ConfigError(f"data.{key}: expected 1 to {len(images)}, the size of {name}, got {limit}")
    if limit is not None:
        images = images.first(limit)
    mean, std = (values and in_channels(values, channels) for values in (mean, std))
    return images.with_channels(channels).normalized_with(mean, std)


def _loaded(source: Source, split: str, place: Place) -> Images:
    """Load a whole split, without the labels that `place` says are not to be used."""
    if place.labels == "test" and split == "train" and source.labelled:
        place = replace(place, labels="none")  # so that the files need no labels
    images = source.load(split, place)
    if place.labels == "none" or (place.labels == "test" and split == "train"):
        return images.without_labels(place.network_classes)
    if place.labels == "test" and images.labels_N is None:
        raise ConfigError(f"data.labels: expected labels of the test images, {images.name} has none; leave it out")
    return images


def _part(source: Source, split: str, place: Place, fraction: float, seed: int) -> Images:
    """Load the training split, and return its held-out part for the split test, or the rest for the split train."""
    whole = source.load("train", place)
    if place.labels == "none":
        whole = whole.without_labels(place.network_classes)
    _require_usable(whole.name, "train", whole)  # first, because the parts depend on the labels
    if place.labels == "test" and whole.labels_N is None:
        raise ConfigError(
            f"data.labels: expected labels of the held-out images, {whole.name} has none; leave it out, or name"
            f" labelled images with data.test instead of data.val_fraction"
        )
    left, val = parted(whole, fraction, seed)
    if split == "test":
        return val
    return left.without_labels(place.network_classes) if place.labels == "test" else left


def _require_usable(name: str, split: str, images: Images) -> None:
    """Raise `DataError` unless the split has samples, of at least two classes, with labels of these classes."""
    least = 2 if split == "train" else 1  # batch norm needs two samples
    if len(images) < least:
        raise DataError(
            f"{name}: the {split} split: expected at least {least} {'sample' if least == 1 else 'samples'}, got"
            f" {len(images)}; check its files and settings"
        )
    if images.num_classes < 2:
        raise DataError(
            f"{name}: the {split} split: expected at least two classes, got {images.num_classes}, with which any"
            f" network is always right; check its labels"
        )
    if images.labels_N is None:
        return
    lowest, highest = int(images.labels_N.min()), int(images.labels_N.max())
    if split == "train" and lowest == highest:
        raise DataError(
            f"{name}: the train split: expected samples of at least two classes, got class {lowest} alone, with which"
            f" any network is always right; check its labels"
        )
    if lowest < 0 or highest >= images.num_classes:
        raise DataError(
            f"{name}: the {split} split: labels expected 0 to {images.num_classes - 1}, got {lowest} to {highest};"
            f" number the classes from 0"
        )
