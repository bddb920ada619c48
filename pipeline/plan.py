"""What caching and training will cost, computed from an experiment's settings before anything runs.

Left out on purpose: rendering and decoding, which caching and training both pay for; reading the cache, which costs
next to nothing; and evaluation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from dhkd.configs.schema import Codec as CodecSettings
from dhkd.configs.schema import Experiment, Student
from dhkd.data.cache.blocks import Plan
from dhkd.data.cache.codecs import Codec, Float, Int8, row_bytes
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.pipeline.build.cache import LOGITS, asked_signals, codec_of, codec_of_signal
from dhkd.pipeline.build.checks import require_one_class
from dhkd.pipeline.build.data import num_views_of, recipe_of
from dhkd.pipeline.build.training import objective_of
from dhkd.pipeline.cluster_plan import CacheSize, Cluster, ClusterPlan, plan_on
from dhkd.pipeline.measure import Rates, measure_rates
from dhkd.pipeline.sizes import DataSize, data_size_of, setting_without_data
from dhkd.stages.models.signals import parse
from dhkd.stages.train.objectives.contract import Setting

WITNESS_BYTES = 4  # a witness is a CRC-32 of a row's rendered pixels
USUAL_STUDENTS = (1, 2, 4, 8, 16)
USUAL_K = 20  # k of top-k, if the preset has another codec
INT8_FROM_CLASSES = 1000

# How training holds the cache in memory: all of it, the current view and the next one, or two windows of blocks.
Held = Literal["resident", "views", "windows"]


def online_cost(students: int, ratio: float) -> float:
    """Return S(1 + r), the cost of S students if the teacher runs in every step of each of them.

    The unit is the cost of one student's training. r (`ratio`) is the cost of a teacher forward pass as a fraction of a
    student's step, per row.
    """
    return students * (1 + ratio)


def cached_cost(students: int, ratio: float, views: int, epochs: int) -> float:
    """Return r·V/E + S, the cost of S students if the teacher runs once over each of V views.

    E is the number of epochs of a student; r (`ratio`) and the unit are as for `online_cost`.
    """
    return ratio * views / epochs + students


def pays_from(views: int, epochs: int) -> int:
    """Return the smallest number S of students for which the cache costs less than running the teacher live: S > V/E.

    V is the number of views, and E that of a student's epochs. S depends neither on the networks nor on the hardware.
    """
    return views // epochs + 1


# The fields below are the keys of `dhkd plan --json`, in the order in which they are printed.


@dataclass(frozen=True)
class Memory:
    """Bytes in memory for each way in which training can hold the cache."""

    resident: int
    views: int
    windows: int


@dataclass(frozen=True)
class Storage:
    """The size of a cache of logits in one codec.

    `k` is the number of logits that top-k keeps, and None for other codecs. `preset` says whether the preset uses this
    codec.
    """

    codec: str
    k: int | None
    row_bytes: int
    view_bytes: int
    bytes: int
    block_rows: int
    block_bytes: int
    blocks: int
    objects: Mapping[str, int]  # files, or objects in a bucket, in each layout
    memory: Memory
    preset: bool


@dataclass(frozen=True)
class SignalSize:
    """A signal other than logits.

    `cached` says whether the preset caches the signal, `needed` whether the preset's objective needs it, `cacheable`
    whether it can be cached at all.
    """

    signal: str
    shape: tuple[int, ...]
    row_bytes: int
    view_bytes: int
    bytes: int
    cached: bool
    needed: bool
    cacheable: bool


@dataclass(frozen=True)
class StudentsCost:
    """Teacher forward passes and total cost for a number of students; costs are None if the ratio r is unknown."""

    students: int
    online_forwards: int
    cached_forwards: int
    online: float | None
    cached: float | None
    online_over_cached: float | None


@dataclass(frozen=True)
class CachePlan:
    """What an experiment's cache costs and saves; hours and bytes per second are None if their rate is unknown."""

    data: DataSize
    views: int
    view_kind: str
    all_views: bool
    teacher: str
    student: str
    epochs: int
    window: int | None
    in_memory: Held
    store: str
    block_mb: float
    codecs: tuple[Storage, ...]
    signals: tuple[SignalSize, ...]
    witness_bytes: int
    suggestion: str | None
    forwards: int
    rates: Rates
    stage_one_hours: float | None
    bytes_per_second: float | None
    student_hours: float | None
    pays_from: int
    students: tuple[StudentsCost, ...]
    asked_students: int | None
    cluster: ClusterPlan | None = None


def make_plan(
    experiment: Experiment,
    *,
    samples: int | None = None,
    classes: int | None = None,
    rates: Rates | None = None,
    measure: bool = False,
    students: int | None = None,
    cpu: bool = False,
    cluster: Cluster | None = None,
) -> CachePlan:
    """Compute disk, memory, forward passes, hours and break-even of the experiment's cache.

    `samples` and `classes` are for sources whose size is unknown until they are read. With `measure`, the rates are
    measured on this machine; if they are neither given nor measured, hours and costs are None. `students` adds this
    number of students to those for which costs are computed. With `cluster`, the costs on it are computed as well.
    """
    rates = (rates or Rates()).completed()
    data = data_size_of(experiment, samples, classes)
    settings, epochs = experiment.student, experiment.student.epochs
    require_one_class(experiment, objective_of(experiment))
    views = num_views_of(experiment, recipe_of(experiment.views))
    codec = codec_of(experiment.cache.codec, data.classes)
    signals = tuple(_other_signals(experiment, setting_without_data(experiment, data.classes), data.samples, views))
    codecs = tuple(_storages(experiment, codec, signals, data, views))
    if measure:
        rates = measure_rates(experiment, data.classes, cpu)
    forwards, row = data.samples * views, row_bytes(codec.parts((data.classes,))) + WITNESS_BYTES
    size = _cache_size(experiment, codecs, signals, forwards)
    numbers = sorted({*USUAL_STUDENTS, *([students] if students else [])})
    return CachePlan(
        data=data,
        views=views,
        view_kind=experiment.views.kind,
        all_views=experiment.cache.views == "all",
        teacher=experiment.teacher.architecture,
        student=settings.architecture,
        epochs=epochs,
        window=settings.window,
        in_memory=_in_memory(settings),
        store=experiment.cache.store,
        block_mb=experiment.cache.block_mb,
        codecs=codecs,
        signals=signals,
        witness_bytes=forwards * WITNESS_BYTES,
        suggestion=_suggestion(codec, data.classes),
        forwards=forwards,
        rates=rates,
        stage_one_hours=forwards / rates.teacher / 3600 if rates.teacher else None,
        bytes_per_second=rates.teacher * row if rates.teacher else None,
        student_hours=data.samples * epochs / rates.student / 3600 if rates.student else None,
        pays_from=pays_from(views, epochs),
        students=tuple(_students_cost(number, rates.ratio, data.samples, views, epochs) for number in numbers),
        asked_students=students,
        cluster=None
        if cluster is None
        else plan_on(cluster, experiment, size, rates.teacher, rates.student, students, data.samples),
    )


def _cache_size(
    experiment: Experiment, codecs: Iterable[Storage], signals: Iterable[SignalSize], rows: int
) -> CacheSize:
    """Return the size of the preset's cache: logits, other signals and witness."""
    (logits,) = [storage for storage in codecs if storage.preset]
    with_logits = LOGITS in experiment.cache.signals
    others = [signal for signal in signals if signal.cached]
    per_block = LAYOUTS[experiment.cache.store].objects_per_block(1)
    return CacheSize(
        rows=rows,
        row_bytes=WITNESS_BYTES + logits.row_bytes * with_logits + sum(signal.row_bytes for signal in others),
        blocks=logits.blocks,
        objects=(logits.objects[experiment.cache.store] if with_logits else logits.blocks)
        + len(others) * logits.blocks * per_block,
    )


def storage(codec: Codec, size: Plan, num_classes: int, window: int | None, *, preset: bool = False) -> Storage:
    """Compute bytes, objects and memory of a cache of logits in this codec, cut into blocks as `size` says.

    Bytes count the values only, without checksums, tar headers and a few metadata objects. `window` is in samples; None
    stands for the smallest window, one block.
    """
    parts = codec.parts((num_classes,))
    row = row_bytes(parts)
    view, blocks = size.num_samples * row, size.num_views * size.blocks_per_view
    blocks_in_windows = min(2 * max(1, (window or 1) // size.block_rows), blocks)
    return Storage(
        codec=codec.kind,
        k=codec.kept,
        row_bytes=row,
        view_bytes=view,
        bytes=size.num_views * view,
        block_rows=size.block_rows,
        block_bytes=size.block_rows * row,
        blocks=blocks,
        objects={
            name: blocks * (layout.objects_per_block(len(parts)) + layout.objects_per_block(1))
            for name, layout in LAYOUTS.items()
        },
        memory=Memory(
            resident=size.num_views * view,
            views=min(2, size.num_views) * view,
            windows=blocks_in_windows * size.block_rows * row,
        ),
        preset=preset,
    )


def _storages(
    experiment: Experiment, asked: Codec, signals: Iterable[SignalSize], data: DataSize, views: int
) -> Iterable[Storage]:
    """Yield the size of a cache of logits in each codec; the largest signal in the cache decides the block size."""
    largest = max((signal.row_bytes for signal in signals if signal.cached), default=0)
    for codec in _codecs(asked, data.classes):
        row = max(row_bytes(codec.parts((data.classes,))), largest)
        size = Plan.balanced(views, data.samples, row, int(experiment.cache.block_mb * 2**20))
        yield storage(codec, size, data.classes, experiment.student.window, preset=codec == asked)


def _codecs(asked: Codec, num_classes: int) -> Iterable[Codec]:
    """Yield all codecs; top-k has the preset's k, or else `USUAL_K` if there are more classes than `USUAL_K`."""
    yield from (Float("float32"), Float("float16"), Int8())
    if asked.kept is not None:
        yield asked
    elif num_classes > USUAL_K:
        yield codec_of(CodecSettings(kind="top-k", k=USUAL_K, temperature=4), num_classes)


def _other_signals(experiment: Experiment, setting: Setting, num_samples: int, views: int) -> Iterable[SignalSize]:
    """Yield the signals other than logits that the preset caches or that its objective needs."""
    cached = asked_signals(experiment, setting)
    needed = objective_of(experiment).needs(setting)
    for name in dict.fromkeys([*cached, *needed]):
        if name == LOGITS:
            continue
        shape = setting.teacher.row(name)
        row = row_bytes(codec_of_signal(experiment.cache.codec, name, setting.teacher.num_classes).parts(shape))
        yield SignalSize(
            signal=name,
            shape=shape,
            row_bytes=row,
            view_bytes=num_samples * row,
            bytes=num_samples * row * views,
            cached=name in cached,
            needed=name in needed,
            cacheable=not parse(name).batch,
        )


def _in_memory(settings: Student) -> Held:
    """Return how training holds the cache in memory, by the same rule as `build.cache.signals_of`."""
    if settings.window is not None and settings.view_schedule != "independent":
        return "windows"
    return "views" if settings.view_schedule == "cycle" else "resident"


def _suggestion(asked: Codec, num_classes: int) -> str | None:
    share = row_bytes(Int8().parts((num_classes,))) / row_bytes(asked.parts((num_classes,)))
    if num_classes < INT8_FROM_CLASSES or asked.kept is not None or share >= 1:
        return None
    return (
        f"with {num_classes:,} classes, int8 is worth a thought: {share:.0%} of {asked.kind}'s bytes, and it serves"
        f" every objective; --set cache.codec=int8"
    )


def _students_cost(students: int, ratio: float | None, samples: int, views: int, epochs: int) -> StudentsCost:
    online = cached = None
    if ratio is not None:
        online, cached = online_cost(students, ratio), cached_cost(students, ratio, views, epochs)
    return StudentsCost(
        students=students,
        online_forwards=students * epochs * samples,
        cached_forwards=views * samples,
        online=online,
        cached=cached,
        online_over_cached=online / cached if online is not None and cached is not None else None,
    )
