"""Whether a cache and an experiment fit together: each check raises the error that says why not."""

from collections.abc import Iterable, Sequence
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.cache.codecs import row_bytes
from dhkd.data.cache.manifest import (
    Manifest,
    require_identity,
    signal_name,
    teachers_own,
)
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.data.images.base import Images
from dhkd.data.recipes.base import Recipe
from dhkd.pipeline.build.cache import MEAN_OF_TEACHERS, codec_of_signal
from dhkd.pipeline.build.data import dataset_identity, num_views_of
from dhkd.stages.models.signals import parse
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.train.objectives.contract import Setting
from torch import nn

LARGEST_BLOCK_BYTES = 2**30  # a process computes one and writes another, as float32


def require_small_blocks(manifest: Manifest, signals: Sequence[str], location: str) -> None:
    """Raise `ConfigError` where blocks that were cut for small signals would hold too much of these."""
    row = sum(row_bytes(manifest.signals[name].parts) for name in signals)
    if row * manifest.block_rows > LARGEST_BLOCK_BYTES:
        raise ConfigError(
            f"cache at {location}: its blocks of {manifest.block_rows:,} rows would hold"
            f" {row * manifest.block_rows / 1e9:.1f} GB of {', '.join(signals)}, expected at most"
            f" {LARGEST_BLOCK_BYTES / 1e9:.1f}; write all signals to another --out, where blocks are cut for them, or"
            f" run the teacher live"
        )


def require_cache(
    experiment: Experiment,
    reader: LogitReader,
    images: Images,
    recipe: Recipe,
    names: Iterable[str],
    teacher: nn.Module | None,
) -> None:
    """Raise `CacheMismatch` unless the cache is of this data set and recipe and the signals `names` of this teacher.

    The teacher is the preset's architecture, with the hash and normalisation that it names, or that of `teacher`.
    Precision and codec are the cache's own affair: any will do.
    """
    settings = experiment.teacher
    expected: dict[str, Any] = {}
    if experiment.student.teacher != MEAN_OF_TEACHERS:  # which may be of several architectures
        expected["architecture"] = settings.architecture
        for key in ("mean", "std"):
            if getattr(settings, key) is not None:
                expected[key] = list(getattr(settings, key))
    if teacher is not None:
        expected["sha256"] = weights_sha256(teacher)
    elif settings.sha256 is not None:
        expected["sha256"] = settings.sha256
    identity = {
        "dataset": dataset_identity(images).model_dump(mode="json"),
        "recipe": recipe.identity,
        "signals": {name: {"teacher": expected} for name in names},
    }
    remedy = "use the preset and settings that it was made with, or make another with 'dhkd cache-teacher'"
    require_identity(identity, reader.manifest, reader.location, remedy)


def require_live(
    experiment: Experiment, setting: Setting, lacking: Sequence[str], reader: LogitReader | None, recipe: Recipe
) -> None:
    """Raise an error unless the experiment says that the teacher runs in every step, for the signals `lacking`.

    It names the two ways to get them, and what each costs: `CacheMismatch`, or `ConfigError` where there is no cache.
    """
    if not lacking or experiment.teacher.live:
        return
    epochs, num_samples = experiment.student.epochs, len(setting.labels_N)
    views = reader.plan.num_views if reader else num_views_of(experiment, recipe)
    live = (
        f"run the teacher in every step with --set teacher.live=true and --teacher FILE ({num_samples * epochs:,}"
        f" forwards for each student)"
    )
    uncacheable = [need for need in lacking if parse(need).batch]
    codec, size = experiment.cache.codec, 0
    for need in lacking:
        parts = codec_of_signal(codec, need, setting.teacher.num_classes).parts(setting.teacher.row(need))
        size += num_samples * row_bytes(parts)
    cache = (
        f"cache it with 'dhkd cache-teacher … --signals {','.join(lacking)}' ({size / 1e6:,.1f} MB a view,"
        f" {num_samples * views:,} forwards once for {views} views), or {live}"
    )
    remedy = f"{', '.join(uncacheable)} can't be cached: {live}" if uncacheable else cache
    if reader is None:
        raise ConfigError(
            f"--cache: objective {experiment.objective!r} needs the signal {', '.join(lacking)}, no cache was given;"
            f" {remedy}"
        )
    named = experiment.student.teacher
    wanted = [signal_name(None if named == MEAN_OF_TEACHERS else named, need) for need in lacking]
    if {teachers_own(name) for name in reader.manifest.signals} >= set(lacking):
        remedy = f"choose another teacher of it with --set student.teacher=NAME, or {remedy}"
    raise CacheMismatch(
        f"cache at {reader.location}: objective {experiment.objective!r} needs the signal {', '.join(wanted)}, it holds"
        f" {', '.join(reader.manifest.signals)}; {remedy}"
    )
