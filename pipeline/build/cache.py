"""From settings to a cache: identity, codec and blocks to write it with, reader and signals to train from it."""

from collections.abc import Mapping

import psutil
import torch
from dhkd.configs.schema import Codec as CodecSettings
from dhkd.configs.schema import Experiment
from dhkd.configs.schema import Student as StudentSettings
from dhkd.data.cache.blocks import Plan
from dhkd.data.cache.codecs import Codec, Float, Int8, TopK, row_bytes
from dhkd.data.cache.manifest import (
    Identity,
    SignalIdentity,
    signal_name,
    teachers_own,
)
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.data.images.base import Images
from dhkd.data.recipes.base import Recipe
from dhkd.data.render import Normalization
from dhkd.data.stream.signals import Names, NoSignals, ResidentSignals, Signals, StreamedSignals, WindowedSignals
from dhkd.pipeline.build.data import dataset_identity, num_views_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models.signals import parse
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.processes import Precision
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Setting
from torch import nn

LOGITS = "logits"


MEAN_OF_TEACHERS = "mean"  # instead of a teacher's name


def codec_of(settings: CodecSettings, num_classes: int) -> Codec:
    """How the preset wants logits of `num_classes` classes stored."""
    if settings.kind == "top-k":
        assert settings.k is not None
        assert settings.temperature is not None
        if settings.k >= num_classes:
            raise ConfigError(f"cache.codec.k: expected fewer than all {num_classes} classes, got {settings.k}")
        return TopK(k=settings.k, temperature=settings.temperature)
    return Int8() if settings.kind == "int8" else Float(kind=settings.kind)


# Words for what an objective needs, where its needs depend on its options and both networks.
NEEDED_BY = {"cam": "cat-kd", "attention": "at"}


def asked_signals(experiment: Experiment, setting: Setting) -> list[str]:
    """The teacher's signals that the preset wants cached, by their own names. Raises `ConfigError` for others."""
    names: list[str] = []
    for word in experiment.cache.signals:
        if word in NEEDED_BY:
            objective = NEEDED_BY[word]
            names += build_objective(objective, experiment.objectives.get(objective, {})).needs(setting)
        elif parse(word).batch:
            raise ConfigError(f"signal {word!r}: it depends on the other rows of a batch, and can't be cached")
        else:
            names.append(word)
    return list(dict.fromkeys(names))


def codec_of_signal(settings: CodecSettings, own: str, num_classes: int) -> Codec:
    """How the preset wants a signal stored: logits with its codec, others as floats, float16 unless it says float32."""
    if own == LOGITS:
        return codec_of(settings, num_classes)
    return Float("float32" if settings.kind == "float32" else "float16")


def cache_identity(
    experiment: Experiment,
    images: Images,
    recipe: Recipe,
    setting: Setting,
    network: nn.Module,
    normalize: Normalization,
    precision: Precision,
    name: str | None,
) -> Identity:
    """The identity of the cache that stage one is to write; `name` is the teacher's, where a cache holds several."""
    teacher = {
        "architecture": experiment.teacher.architecture,
        "sha256": weights_sha256(network),
        "mean": list(normalize.mean),
        "std": list(normalize.std),
    }
    signals = {
        signal_name(name, own): SignalIdentity(
            teacher=teacher,
            precision=precision,
            codec=codec_of_signal(experiment.cache.codec, own, images.num_classes),
            row=setting.teacher.row(own),
        )
        for own in asked_signals(experiment, setting)
    }
    return Identity(dataset=dataset_identity(images), recipe=recipe.identity, signals=signals)


def plan_of(experiment: Experiment, images: Images, recipe: Recipe, setting: Setting) -> Plan:
    """How the cache is cut into blocks."""
    return _plan(experiment, images, setting, num_views_of(experiment, recipe))


def block_rows_of(experiment: Experiment, images: Images, setting: Setting) -> int:
    """How many rows a block of the preset's cache has, for training without one in the same order."""
    return _plan(experiment, images, setting, 1).block_rows


def largest_row(experiment: Experiment, setting: Setting) -> int:
    """Bytes of a row of the largest signal that the preset wants cached: what a block is measured by."""
    num_classes, sizes = setting.teacher.num_classes, []
    for own in asked_signals(experiment, setting):
        codec = codec_of_signal(experiment.cache.codec, own, num_classes)
        sizes.append(row_bytes(codec.parts(setting.teacher.row(own))))
    return max(sizes)


def _plan(experiment: Experiment, images: Images, setting: Setting, num_views: int) -> Plan:
    block_bytes = int(experiment.cache.block_mb * 2**20)
    return Plan.balanced(num_views, len(images), largest_row(experiment, setting), block_bytes)


def reader_of(location: str, options: DataOptions) -> LogitReader:
    """The complete cache at a path or URL."""
    return open_cache(location, BoundedCopies(user_cache_folder() / "objects", options.fetched_gb * 10**9))


def digest_for(reader: LogitReader, teacher: str | None) -> str:
    """The name of what students of a teacher (None, its name there, or "mean") learn from: its logits on these images.

    It stays what it is when other signals, teachers or views are added to the cache.
    """
    signals = reader.manifest.signals
    own = [name for name in signals if name == signal_name(teacher, LOGITS)]
    logits = [name for name in signals if teachers_own(name) == LOGITS] if teacher == MEAN_OF_TEACHERS else own
    return reader.manifest.digest_of(logits or signals)


def cached_names(
    needs: Mapping[str, float | None], reader: LogitReader, teacher: str | None, otherwise: str
) -> tuple[Names, list[str]]:
    """For each signal of an objective's `needs`, the cached ones to take; and the needs that the cache lacks.

    `teacher` is one's name there, None the one without, "mean" all of them.

    Raises `CacheMismatch` where one can't serve as it is stored, `otherwise` being the remedy that needs no other
    cache, and `ConfigError` for the mean of what has none.
    """
    signals = reader.manifest.signals
    names: dict[str, list[str]] = {}
    lacking: list[str] = []
    for need, temperature in needs.items():
        if teacher == MEAN_OF_TEACHERS and need != LOGITS:
            raise ConfigError(
                f"student.teacher {MEAN_OF_TEACHERS}: several teachers have a mean of their logits, not of {need};"
                f" choose one with --set student.teacher=NAME"
            )
        if teacher == MEAN_OF_TEACHERS:
            found = [name for name in signals if teachers_own(name) == need]
        else:
            found = [name for name in signals if name == signal_name(teacher, need)]
        if not found:
            lacking.append(need)
            continue
        names[need] = found
        for name in found:
            refusal = signals[name].codec.refusal(temperature)
            if refusal:
                raise CacheMismatch(
                    f"cache at {reader.location}: signal {name} can't serve the objective: {refusal}; cache the teacher"
                    f" with --set cache.codec=float16 or int8, or {otherwise}"
                )
    return names, lacking


def of_views(reader: LogitReader, student: StudentSettings) -> LogitReader:
    """The cache, or as many of its views as the student is to train on."""
    if student.views is None:
        return reader
    if student.views > reader.plan.num_views:
        raise ConfigError(
            f"student.views: expected at most {reader.plan.num_views}, which the cache at {reader.location} holds, got"
            f" {student.views}; cache more with 'dhkd cache-teacher --views {student.views}'"
        )
    return reader.of_first_views(student.views)


def signals_of(
    names: Names, reader: LogitReader, student: StudentSettings, device: torch.device, copies: int
) -> Signals:
    """How signals come from the cache: block by block where the student's order has windows, view by view for `cycle`,
    else all resident.

    Raises `ConfigError` when a resident cache would not fit into memory, `copies` processes on this machine holding one
    each.
    """
    if not names:
        return NoSignals(reader.plan.num_views)
    if student.window is not None and student.view_schedule != "independent":
        return WindowedSignals(reader, names, device, student.window)
    if student.view_schedule == "cycle":
        return StreamedSignals(reader, names, device)
    needed = copies * reader.stored_bytes([name for signals in names.values() for name in signals])
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise ConfigError(
            f"student.view_schedule {student.view_schedule} keeps the whole cache in memory: expected at most"
            f" {free / 1e9:.1f} GB free, got {needed / 1e9:.1f} GB; use --set student.view_schedule=cycle, or for"
            f" 'dhkd train-student' block with student.window"
        )
    return ResidentSignals(reader, names, device)
