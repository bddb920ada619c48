"""The size of an experiment's data set, images and signals, as far as its settings determine it. No data is read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError
from dhkd.data.sources import source_of
from dhkd.data.sources.base import Size
from dhkd.pipeline.build.data import recipe_of
from dhkd.pipeline.build.networks import chosen_network
from dhkd.stages.models.signals import Shapes
from dhkd.stages.train.objectives.contract import Setting

USUAL_PIXELS = 32


@dataclass(frozen=True)
class DataSize:
    """The size of the training split; `from_record` says that the number of samples comes from the preset's record."""

    source: str
    samples: int
    classes: int
    from_record: bool


def data_size_of(experiment: Experiment, samples: int | None = None, classes: int | None = None) -> DataSize:
    """Return the size of the experiment's training split without what is held out, limited by `data.limit`.

    `samples` and `classes` are for sources whose size is unknown until they are read; a number that is None is taken
    from the preset's record or from `data`. Raises `ConfigError` if the size remains unknown, and if `samples` or
    `classes` is given for a source whose size is known.
    """
    data = experiment.data
    size = _known_size(experiment)
    if size is not None:
        for option, given in (("--samples", samples), ("--classes", classes)):
            if given is not None:
                raise ConfigError(f"{option}: {data.source} has its own; leave it out, or use --set data.limit=N")
        return DataSize(
            data.source, _limited(data.limit, size.samples, data.source, data.val_fraction), size.classes, False
        )
    recorded = _recorded(experiment, "samples")
    total = samples or recorded or data.limit
    num_classes = classes or data.num_classes or _recorded(experiment, "classes")
    if total is None:
        raise ConfigError(f"--samples: {data.source} doesn't tell how many samples it has before it is read; give N")
    if num_classes is None:
        raise ConfigError(f"--classes: {data.source} doesn't tell how many classes it has before it is read; give K")
    used = _limited(data.limit, total, data.source, data.val_fraction)
    return DataSize(data.source, used, num_classes, from_record=samples is None and used == recorded)


def _limited(limit: int | None, total: int, source: str, val_fraction: float | None) -> int:
    total -= int((val_fraction or 0) * total + 0.5)
    if limit is not None and limit > total:
        raise ConfigError(f"data.limit: expected 1 to {total}, the size of {source}, got {limit}")
    return limit or total


def _recorded(experiment: Experiment, key: str) -> int | None:
    """Return the number that the preset's section `record` states under `key`, or None if it states none.

    The entry may be a number N or {train: N, …}; both give N.
    """
    entry = experiment.record.get(key)
    number = entry.get("train") if isinstance(entry, Mapping) else entry
    return number if isinstance(number, int) and number > 1 else None


def pixels_of(experiment: Experiment) -> int | None:
    """Return the height (and width) of the images that networks see, or None if it is unknown before reading data."""
    shape, size = recipe_of(experiment.views).shape, _known_size(experiment)
    return shape[0] if shape is not None else size.pixels if size is not None else None


def _known_size(experiment: Experiment) -> Size | None:
    """Return the size of the training split, or None if the source has to read files to know it."""
    return source_of(experiment.data.source).size


def setting_without_data(experiment: Experiment, num_classes: int) -> Setting:
    """Return a `Setting` with the shapes of both networks and, in place of the data's labels, one label for each class.

    If the image size is unknown, a usual size is assumed. The size affects the shapes of feature maps, but not of
    logits.
    """
    pixels = pixels_of(experiment) or USUAL_PIXELS
    channels, size = experiment.data.channels or 3, experiment.teacher.size or pixels
    student, teacher = (
        Shapes(chosen_network(network), num_classes, (side, side), network.channels or channels)
        for network, side in ((experiment.student, pixels), (experiment.teacher, size))
    )
    return Setting(student, teacher, torch.arange(num_classes), experiment.seed)
