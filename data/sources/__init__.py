"""Data sets by name. Each source is a file in this folder and a line in `SOURCES`; `base.py` has the interface."""

from dhkd.data.errors import ConfigError, one_of, unknown
from dhkd.data.images.base import Images, Triple
from dhkd.data.sources import cifar100, digits, glyphs, image_folder, tar_shards
from dhkd.data.sources.base import Place, Source

SOURCES: dict[str, Source] = {
    "cifar100": cifar100.SOURCE,
    "digits": digits.SOURCE,
    "glyphs": glyphs.SOURCE,
    "image-folder": image_folder.SOURCE,
    "webdataset": tar_shards.SOURCE,
}
SPLITS = ("train", "test")


def load_source(
    name: str,
    split: str,
    place: Place | None = None,
    *,
    limit: int | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
) -> Images:
    """Load the split "train" or "test" of a data set; if `limit` is not None, only the split's first `limit` samples.

    If `place` is None, the files are expected at the source's usual place. `mean` and `std` (full scale is 1) replace
    the source's values unless they are None. Raises `ConfigError` for an unknown name or split, for a `limit` out of
    range and for settings that the source doesn't take, and `DataError` for missing or damaged files.
    """
    place = place or Place()
    source = one_of("data source", name, SOURCES)
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    for key in ("train", "test", "num_classes"):
        if getattr(place, key) is not None and key not in source.takes:
            raise ConfigError(f"data.{key}: {name} has its own; leave it out")
    images = source.load(split, place)
    if limit is not None and not 1 <= limit <= len(images):
        key = "limit" if split == "train" else "test_limit"
        raise ConfigError(f"data.{key}: expected 1 to {len(images)}, the size of {name}, got {limit}")
    if limit is not None:
        images = images.first(limit)
    return images.normalized_with(mean, std)
