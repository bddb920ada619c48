"""Builds the streams of batches for prepared students that train side by side and share memory.

Students that train on the same keys, i.e. pairs (view, index), share one stream. All streams share the images and the
live teacher. Streams with the schedule `independent` also share the cache in memory if they have the same teacher and
number of views.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from dhkd.configs.schema import Experiment, Training
from dhkd.data.recipes.base import ENDLESS, Recipe
from dhkd.data.render import Normalization, Renderer
from dhkd.data.stream.batches import Live, Stream
from dhkd.data.stream.signals import NoSignals, Signals
from dhkd.pipeline.build.cache import block_rows_of, signals_of
from dhkd.pipeline.build.students import PreparedStudent, Source
from dhkd.pipeline.build.teacher import teacher_normalization, teacher_recipe_of
from dhkd.pipeline.environment import log_once
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.objectives.contract import Setting

# Cached signals in memory, by teacher and number of views; for the schedule `independent`, which draws from all views.
Resident = dict[tuple[str | None, int | None], Signals]


def teacher_stream(
    experiment: Experiment,
    setting: Setting,
    source: Source,
    renderer: Renderer,
    normalize: Normalization,
    processes: Processes,
) -> Stream:
    """Build the stream that trains the preset's teacher, without signals; it draws from all views of the recipe."""
    return _stream(
        experiment,
        experiment.teacher,
        renderer,
        normalize,
        NoSignals(source.recipe.num_views or ENDLESS),
        schedule="independent",
        block_rows=block_rows_of(experiment, source.images, setting),
        live=None,
        processes=processes,
    )


def student_streams(
    students: Mapping[Path, PreparedStudent],
    source: Source,
    renderer: Renderer,
    normalize: Normalization,
    processes: Processes,
) -> dict[Path, Stream]:
    """Build each student's stream.

    Students that train on the same keys (view, index) share one stream, which has every signal that at least one of
    them needs.
    """
    everyone = list(students.values())
    teacher = _live_teacher(everyone, source, processes)
    resident: Resident = {}
    streams: dict[Path, Stream] = {}
    for outs in _by_keys(students):
        group = [students[out] for out in outs]
        experiment, settings = group[0].experiment, group[0].experiment.student
        if source.reader is not None:
            block_rows = source.reader.plan.block_rows
        else:
            block_rows = block_rows_of(experiment, source.images, group[0].setting)
        live = list(dict.fromkeys(signal for student in group for signal in student.live))
        stream = _stream(
            experiment,
            settings,
            renderer,
            normalize,
            _signals(group, everyone, resident, source, processes),
            schedule=settings.view_schedule,
            block_rows=block_rows,
            live=partial(teacher.signals, names=live) if teacher and live else None,
            live_recipe=teacher.recipe if teacher and live else None,
            processes=processes,
        )
        streams |= dict.fromkeys(outs, stream)
    return streams


def _by_keys(students: Mapping[Path, PreparedStudent]) -> list[list[Path]]:
    """Group the students that can share a stream.

    These train on the same keys (view, index) in the same order and use signals of the same teacher.
    """
    groups: dict[tuple[object, ...], list[Path]] = {}
    for out, student in students.items():
        settings = student.experiment.student
        views = student.num_views or settings.views
        order = (student.experiment.seed, settings.batch_size, settings.view_schedule, settings.window, views)
        groups.setdefault((*order, settings.teacher), []).append(out)
    return list(groups.values())


def _signals(
    group: Sequence[PreparedStudent],
    everyone: Sequence[PreparedStudent],
    resident: Resident,
    source: Source,
    processes: Processes,
) -> Signals:
    """Build a group's source of cached signals; signals that are already in `resident` are used again."""
    settings = group[0].experiment.student
    if source.reader is None:
        num_views = source.recipe.num_views or ENDLESS
        return NoSignals(min(num_views, settings.views or num_views))
    independent, held = settings.view_schedule == "independent", _held(group[0])
    if independent and held in resident:
        return resident[held]
    readers = [student for student in everyone if _held(student) == held] if independent else group
    names = {need: stored for student in readers for need, stored in student.names.items()}
    copies = processes.world_size if processes.device.type == "cpu" else 1
    assert group[0].num_views is not None, "students of a cache see a number of its views"
    reader = source.reader.of_first_views(group[0].num_views)
    signals = signals_of(names, reader, settings, processes.device, copies)
    if independent:
        resident[held] = signals
    return signals


def _held(student: PreparedStudent) -> tuple[str | None, int | None]:
    """Return the key in `Resident` of a student that draws from all views: the teacher and the number of views."""
    return student.experiment.student.teacher, student.num_views


def _live_teacher(students: Sequence[PreparedStudent], source: Source, processes: Processes) -> Teacher | None:
    """Return the teacher that runs in every step, or None if no student needs it."""
    live = dict.fromkeys(signal for student in students for signal in student.live)
    if not live or source.teacher is None:
        return None
    precision = source.teacher_precision
    log_once(processes, f"the teacher runs in every step, in {precision} (cache.precision), for {', '.join(live)}")
    experiment = students[0].experiment
    normalize = teacher_normalization(experiment, source.images, source.teacher.mean_std)
    recipe = teacher_recipe_of(experiment)
    # A copy, because the network itself stays unchanged on the CPU for objectives that reuse a part of it.
    return Teacher(copy.deepcopy(source.teacher.network), normalize, processes, precision, recipe)


def _stream(
    experiment: Experiment,
    settings: Training,
    renderer: Renderer,
    normalize: Normalization,
    signals: Signals,
    *,
    schedule: str,
    block_rows: int,
    live: Live | None,
    live_recipe: Recipe | None = None,
    processes: Processes,
) -> Stream:
    stream = Stream(
        renderer,
        normalize,
        signals,
        schedule=schedule,
        seed=experiment.seed,
        batch_size=settings.batch_size,
        block_rows=block_rows,
        window=experiment.student.window,  # also for the teacher, which reads the same data
        live=live,
        live_recipe=live_recipe,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    dropped = stream.num_samples - stream.samples_per_epoch
    if dropped:
        log_once(processes, f"the last {dropped} samples of each epoch are left out: too few rows for every process")
    return stream
