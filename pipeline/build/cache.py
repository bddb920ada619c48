"""Builds from settings what caches need: identity, codec and blocks for writing, reader and signals for training.

Signals are teacher outputs, such as logits. A codec is the number format in which a signal is stored. A block is a run
of consecutive rows of one view.
"""

import logging
from collections.abc import Mapping

import torch
from dhkd.configs.schema import Codec as CodecSettings
from dhkd.configs.schema import Experiment
from dhkd.configs.schema import Student as StudentSettings
from dhkd.data.cache.blocks import MOST_BLOCKS, Plan
from dhkd.data.cache.codecs import Codec, Float, Int8, TopK, row_bytes
from dhkd.data.cache.manifest import Identity, Manifest, SignalIdentity, signal_name, teachers_own
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.data.images.base import Images
from dhkd.data.recipes.base import Recipe
from dhkd.data.render import Normalization
from dhkd.data.stream.signals import Names, NoSignals, ResidentSignals, Signals, StreamedSignals, WindowedSignals
from dhkd.pipeline.build.data import copies_of, dataset_identity, num_views_of
from dhkd.pipeline.build.networks import Trained, chosen_network, teacher_facts
from dhkd.pipeline.build.teacher import teacher_record
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.limits import available_memory
from dhkd.pipeline.results import CacheSummary
from dhkd.stages.models.signals import Shapes, parse
from dhkd.stages.processes import Precision
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Setting

log = logging.getLogger("dhkd")

LOGITS, EMBEDDING = "logits", "embedding"

MEAN_OF_TEACHERS = "mean"  # used in place of a teacher's name for the mean of all teachers' logits

# Each word stands for all signals that its objective needs. These depend on the objective's options and both networks.
NEEDED_BY = {"cam": "cat-kd", "attention": "at"}


def codec_of(settings: CodecSettings, num_classes: int) -> Codec:
    """Return the preset's codec for logits of `num_classes` classes.

    Raises `ConfigError` if top-k would keep all classes.
    """
    if settings.kind == "top-k":
        assert settings.k is not None
        assert settings.temperature is not None
        if settings.k >= num_classes:
            raise ConfigError(f"cache.codec.k: expected fewer than all {num_classes} classes, got {settings.k}")
        return TopK(k=settings.k, temperature=settings.temperature)
    return Int8() if settings.kind == "int8" else Float(kind=settings.kind)


def gives_logits(teacher: Shapes) -> bool:
    """Return whether a teacher has a classifier; without one, it gives only embeddings and maps."""
    return teacher.gives_logits


def asked_signals(experiment: Experiment, setting: Setting) -> list[str]:
    """Return the names of the teacher's signals that the preset wants cached.

    If the preset names none, these are the logits or, for a teacher without a classifier, the embedding. Raises
    `ConfigError` for an unknown signal, and for a signal that can't be cached.
    """
    names: list[str] = []
    unsaid = "signals" not in experiment.cache.model_fields_set
    words = (EMBEDDING,) if unsaid and not gives_logits(setting.teacher) else experiment.cache.signals
    for word in words:
        if word in NEEDED_BY:
            name = NEEDED_BY[word]
            names += build_objective(name, experiment.objectives.get(name, {})).needs(setting)
        elif parse(word).batch:
            raise ConfigError(f"signal {word!r}: it depends on the other rows of a batch and can't be cached")
        else:
            names.append(word)
    return list(dict.fromkeys(names))


def codec_of_signal(settings: CodecSettings, signal: str, num_classes: int) -> Codec:
    """Return a signal's codec.

    Logits have the preset's codec. Other signals are float32 if that is the preset's codec, or else float16.
    """
    if signal == LOGITS:
        return codec_of(settings, num_classes)
    return Float("float32" if settings.kind == "float32" else "float16")


def cache_identity(
    experiment: Experiment,
    images: Images,
    recipe: Recipe,
    setting: Setting,
    trained: Trained,
    normalize: Normalization,
    precision: Precision,
    name: str | None,
) -> Identity:
    """Return the identity of the cache that `cache-teacher` writes.

    `name` is the teacher's name in a cache of several teachers; None leaves the teacher without a name.
    """
    teacher = {
        **{key: value for key, value in teacher_facts(chosen_network(experiment.teacher)).items() if value is not None},
        "sha256": trained.sha256,
        "mean": list(normalize.mean),
        "std": list(normalize.std),
        **teacher_record(experiment, trained.classes),
    }
    signals = {
        signal_name(name, signal): SignalIdentity(
            teacher=teacher | _map_of(setting, signal),
            precision=precision,
            codec=codec_of_signal(experiment.cache.codec, signal, images.num_classes),
            row=setting.teacher.row(signal),
        )
        for signal in asked_signals(experiment, setting)
    }
    return Identity(dataset=dataset_identity(images), recipe=recipe.identity, signals=signals)


def _map_of(setting: Setting, signal: str) -> dict[str, str]:
    """Return the entry with the path of the module whose output a map is; empty if the signal's name is enough."""
    path = setting.teacher.map_path(signal)
    return {} if path is None else {"map": path}


def plan_of(experiment: Experiment, images: Images, recipe: Recipe, setting: Setting) -> Plan:
    """Return the `Plan`, which says how the preset's cache is cut into blocks."""
    return _plan(experiment, images, setting, num_views_of(experiment, recipe))


def block_rows_of(experiment: Experiment, images: Images, setting: Setting) -> int:
    """Return the number of rows in a block of the preset's cache.

    Training without a cache uses this number, too, so that it takes samples in the same order as with a cache.
    """
    return _plan(experiment, images, setting, 1).block_rows


def largest_row(experiment: Experiment, setting: Setting) -> int:
    """Return the bytes per row of the largest signal that the preset wants cached; they decide the block size."""
    return max(stored_row_bytes(experiment, signal, setting) for signal in asked_signals(experiment, setting))


def stored_row_bytes(experiment: Experiment, signal: str, setting: Setting) -> int:
    """Return the bytes per row of a signal as the preset stores it."""
    codec = codec_of_signal(experiment.cache.codec, signal, setting.teacher.num_classes)
    return row_bytes(codec.parts(setting.teacher.row(signal)))


def _plan(experiment: Experiment, images: Images, setting: Setting, num_views: int) -> Plan:
    block_bytes = int(experiment.cache.block_mb * 2**20)
    plan = Plan.balanced(num_views, len(images), largest_row(experiment, setting), block_bytes)
    if plan.num_blocks > MOST_BLOCKS:
        raise ConfigError(
            f"cache.block_mb: expected at most {MOST_BLOCKS:,} blocks, got {plan.num_blocks:,}; set a larger"
            f" cache.block_mb, or fewer cache.views"
        )
    return plan


def reader_of(location: str, options: DataOptions) -> LogitReader:
    """Open the complete cache at a path or URL."""
    return open_cache(location, copies_of(options))


def summary_of(location: str, manifest: Manifest) -> CacheSummary:
    """Summarise a cache for the result of a command."""
    first = next(iter(manifest.signals.values()))
    return CacheSummary(
        path=str(location),
        digest=manifest.digest,
        teacher=first.teacher.get("architecture"),
        teacher_sha256=first.teacher.get("sha256"),
        views=manifest.num_views,
        samples=manifest.num_samples,
        classes=manifest.num_classes,
        signals={name: signal.codec.kind for name, signal in manifest.signals.items()},
        row_bytes=sum(row_bytes(signal.parts) for signal in manifest.signals.values()),
    )


def teacher_in(manifest: Manifest, names: Names) -> tuple[str | None, str | None]:
    """Return architecture and weights hash of the teacher of these cached signals; None each for several teachers.

    If there are no signals, as for cross-entropy alone, all of the cache's are meant.
    """
    chosen = [name for signals in names.values() for name in signals] or list(manifest.signals)
    teachers = {
        (manifest.signals[name].teacher.get("architecture"), manifest.signals[name].teacher.get("sha256"))
        for name in chosen
    }
    return teachers.pop() if len(teachers) == 1 else (None, None)


def digest_for(reader: LogitReader, teacher: str | None) -> str:
    """Return the digest of what a teacher's students learn from: the teacher's logits on these images.

    `teacher` is a name in the cache; None stands for the teacher without a name, and "mean" for all teachers. The
    digest stays the same when other signals, teachers or views are added to the cache. If the cache lacks these logits,
    the digest covers all signals of the cache.
    """
    return reader.manifest.digest_of(_signals_named(LOGITS, reader, teacher) or reader.manifest.signals)


def _signals_named(signal: str, reader: LogitReader, teacher: str | None) -> list[str]:
    """Return the cache's names for a signal of one teacher, or of all teachers."""
    if teacher == MEAN_OF_TEACHERS:
        return [name for name in reader.manifest.signals if teachers_own(name) == signal]
    return [name for name in reader.manifest.signals if name == signal_name(teacher, signal)]


def cached_names(
    needs: Mapping[str, float | None], reader: LogitReader, teacher: str | None, otherwise: str
) -> tuple[Names, list[str]]:
    """Return the cache's names for each signal that an objective `needs`, and the signals that the cache lacks.

    `needs` maps each signal to the temperature at which the objective reads it, or to None if the objective reads raw
    values. `teacher` is a name in the cache; None stands for the teacher without a name, and "mean" for all teachers.
    Raises `CacheMismatch` if the codec of a signal keeps too little for the objective; the message suggests another
    codec or the remedy `otherwise`. Raises `ConfigError` if `teacher` is "mean" and a signal other than logits is
    needed.
    """
    names: dict[str, list[str]] = {}
    lacking: list[str] = []
    for need, temperature in needs.items():
        if teacher == MEAN_OF_TEACHERS and need != LOGITS:
            raise ConfigError(
                f"student.teacher {MEAN_OF_TEACHERS}: several teachers have a mean of their logits, not of {need};"
                f" choose one with --set student.teacher=NAME"
            )
        matches = _signals_named(need, reader, teacher)
        if not matches:
            lacking.append(need)
            continue
        names[need] = matches
        for name in matches:
            codec = reader.manifest.signals[name].codec
            refusal = codec.refusal(temperature)
            if len(matches) > 1 and codec.kept is not None:
                refusal = (
                    f"the mean of {len(matches)} teachers needs all logits of each, and the cache holds {codec.kept}"
                )
            if refusal:
                raise CacheMismatch(
                    f"cache at {reader.location}: signal {name} can't serve the objective: {refusal}; cache the teacher"
                    f" with --set cache.codec=float16 or int8, or {otherwise}"
                )
    return names, lacking


def of_views(reader: LogitReader, student: StudentSettings) -> LogitReader:
    """Return the cache's reader, limited to the first `student.views` views.

    If `student.views` is None, the reader keeps all views. Raises `ConfigError` if the cache holds fewer views.
    """
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
    """Build the source of the cached signals `names`.

    The source reads windows of blocks if the student's order has windows, reads one view at a time for the schedule
    `cycle`, and holds all views in memory otherwise. `copies` is the number of processes on this machine, each of which
    holds a copy of its own unless they can share one. Raises `ConfigError` if all views are to be in memory but do not
    fit.
    """
    if not names:
        return NoSignals(reader.plan.num_views)
    if student.window is not None and student.view_schedule != "independent":
        return WindowedSignals(reader, names, device, student.window)
    stored, cycle = [name for signals in names.values() for name in signals], student.view_schedule == "cycle"
    why = reader.why_unmapped(stored, 2 * reader.plan.blocks_per_view if cycle else None)
    if device.type == "cpu" and why is None:
        copies = 1
    if copies > 1:
        where = f"cache at {reader.location}"
        log.info("%s: each of %d processes holds a copy of its own in memory, because %s", where, copies, why)
    if cycle:
        return StreamedSignals(reader, names, device)
    needed = copies * reader.stored_bytes(stored)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > 0.9 * free:
        raise ConfigError(
            f"student.view_schedule {student.view_schedule} keeps the whole cache in memory: expected at most"
            f" {free / 1e9:.1f} GB free, got {needed / 1e9:.1f} GB; use --set student.view_schedule=cycle, or for"
            f" 'dhkd train-student' block with student.window"
        )
    return ResidentSignals(reader, names, device)
