"""`train-teacher` and `train-student`: train the network of an experiment, or several students side by side.

The steps of each function are in the order in which the data passes through them. Students that train together share
what does not depend on them: images, test set and cache in memory. Students that train on the same
pairs (view, index) also share batches.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError, DhkdError
from dhkd.data.runs.config import begun_views
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.place import NearRun
from dhkd.pipeline.build.checks import (
    require_alike,
    require_batches,
    require_labels,
    require_own_draws,
    require_same_classes,
)
from dhkd.pipeline.build.code import code_facts, code_of_optimizer, code_of_teacher
from dhkd.pipeline.build.data import (
    listed_classes,
    normalization_of,
    plain_identity,
    renderer_of,
    test_renderer_of,
)
from dhkd.pipeline.build.regularizing import require_network, require_regularizing
from dhkd.pipeline.build.streams import student_streams, teacher_stream
from dhkd.pipeline.build.students import PreparedStudent, Source, prepared_student, source_of
from dhkd.pipeline.build.teacher import teacher_normalization, teacher_renderer, teacher_test_renderer
from dhkd.pipeline.build.training import require_trainable, setting_of
from dhkd.pipeline.claims import claimed, settings_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.drift import check_pixels
from dhkd.pipeline.environment import log_once, processes_for
from dhkd.pipeline.evaluation import Evaluator
from dhkd.pipeline.reference import measured, measured_fact, with_reference
from dhkd.pipeline.results import TrainedRun
from dhkd.pipeline.tasks import finished, task_of
from dhkd.stages.agreement import require_agreement
from dhkd.stages.processes import Processes
from dhkd.stages.trackers import installed_trackers
from dhkd.stages.train.loop import train, train_together
from dhkd.stages.train.objectives import build_objective

log = logging.getLogger("dhkd")

Held = Mapping[Path, NearRun]
Outcomes = dict[Path, TrainedRun | DhkdError]  # by run folder: the result, or the error that ended the run


@dataclass(frozen=True)
class TrainingOptions:
    """Options of how runs are trained, which are not part of the experiments.

    `held` says how the caller holds run folders: their locks, where their runs lie, and what is called when a run saved
    something.
    """

    data: DataOptions
    teacher: Path | None
    allow_drift: bool
    track: Sequence[str]
    cpu: bool
    resume: bool
    held: Held = field(default_factory=dict)


def train_teacher(
    experiment: Experiment,
    out: Path,
    *,
    data: DataOptions,
    track: Sequence[str] = (),
    cpu: bool = False,
    resume: bool = False,
    held: Held | None = None,
) -> TrainedRun:
    """Train the preset's teacher with cross-entropy on freshly drawn views; the result is also written into `out`.

    `track` names the trackers that show the run, as `installed_trackers` takes them. `held` says how the caller holds
    the folder, if it does.
    """
    near = (held or {}).get(out, NearRun(out))
    trackers = installed_trackers(track)
    settings = experiment.teacher
    if settings.classes is not None:
        raise ConfigError(
            "teacher.classes: expected none, since a teacher is trained on the data set's own classes; leave it out"
        )
    objective = build_objective("ce", {})
    require_regularizing(experiment, settings, objective)
    with processes_for(settings.precision, cpu=cpu) as processes, ExitStack() as locks:
        objective = build_objective("ce", {})
        require_trainable(settings, objective)
        code = code_facts({**code_of_teacher(experiment), **code_of_optimizer(settings)})
        require_agreement(processes, lambda: code | _told(near, experiment, resume=resume, track=trackers))
        part = {} if experiment.data.val_fraction is None else {"measured": "val accuracy"}
        facts = {"command": "train-teacher", **listed_classes(experiment, data), **part, **code}
        run, result = claimed(near, experiment, facts, processes, resume, locks)
        if result is not None:
            return result
        source = source_of(experiment, None, None, data, cpu=cpu)
        run.class_names = source.images.class_names
        require_labels(experiment.model_copy(update={"objective": "ce"}), objective, source.images)
        require_batches("teacher", settings, source.images, processes)
        renderer = teacher_renderer(experiment, source.images, processes.device, data)
        normalize = teacher_normalization(experiment, source.images)
        setting = setting_of(experiment, settings, source.images, objective)
        require_network(settings, "teacher", setting.student)
        stream = teacher_stream(experiment, setting, source, renderer, normalize, processes)
        test = teacher_test_renderer(experiment, processes.device, data, source.images)
        require_same_classes(source.images, test.images)
        both = (source.images, test.images)
        require_agreement(processes, lambda: {"data": {images.split: plain_identity(images) for images in both}})
        accuracy_of = Evaluator(test, normalize, processes)
        name = measured(experiment, source.images)
        task = task_of(settings, objective, setting, stream, accuracy_of, run, trackers, name)
        return finished("teacher", task, train(task, processes), setting, accuracy_of, None)


def train_student(
    experiment: Experiment,
    cache: str | None,
    out: Path,
    *,
    data: DataOptions,
    teacher: Path | None = None,
    allow_drift: bool = False,
    track: Sequence[str] = (),
    cpu: bool = False,
    resume: bool = False,
    held: Held | None = None,
) -> TrainedRun:
    """Train the preset's student from the cache; the result is also written into `out`.

    The cache must be complete, and made from this data set and recipe with the teacher that the experiment or `teacher`
    specifies. If `cache` is None, the objective must need no teacher, or the experiment must run the teacher live.
    Pixels that differ from those that the teacher saw raise an error; with `allow_drift`, the difference is only
    logged. `track` and `held` are as in `train_teacher`.
    """
    options = TrainingOptions(data, teacher, allow_drift, track, cpu, resume, held or {})
    (outcome,) = _train({out: experiment}, cache, options).values()
    if isinstance(outcome, DhkdError):
        raise outcome
    return outcome


def train_students(
    experiments: Mapping[Path, Experiment],
    cache: str | None,
    *,
    data: DataOptions,
    teacher: Path | None = None,
    allow_drift: bool = False,
    track: Sequence[str] = (),
    cpu: bool = False,
    resume: bool = False,
    held: Held | None = None,
) -> Outcomes:
    """Train each folder's student as `train_student` does, side by side.

    Each student's result is the same as if it were trained alone with as many threads. `held` says how the caller holds
    the runs' folders. Raises `ConfigError` if the students can't train side by side, for
    example because their data differs or several processes share the work.
    """
    return _train(experiments, cache, TrainingOptions(data, teacher, allow_drift, track, cpu, resume, held or {}))


def train_grid(
    experiments: Mapping[Path, Experiment],
    cache: str | None,
    *,
    together: int,
    data: DataOptions,
    teacher: Path | None = None,
    allow_drift: bool = False,
    track: Sequence[str] = (),
    cpu: bool = False,
    resume: bool = False,
    held: Held | None = None,
) -> Outcomes:
    """Train all students as `train_students` does, `together` at a time.

    An error that concerns the whole first group is raised, since nothing was trained. Such an error of a later group is
    the outcome of each of its students, and the groups after it are trained.
    """
    options = TrainingOptions(data, teacher, allow_drift, track, cpu, resume, held or {})
    outcomes: Outcomes = {}
    outs = list(experiments)
    for start in range(0, len(outs), together):
        group = {out: experiments[out] for out in outs[start : start + together]}
        try:
            outcomes |= _train(group, cache, options)
        except Exception as error:  # whatever is at fault, the results so far are not to be lost
            if not outcomes:
                raise
            outcomes |= dict.fromkeys(group, _as_outcome(error))
            log.error("%s: %s", ", ".join(out.name for out in group), outcomes[next(iter(group))])
    return outcomes


def _as_outcome(error: Exception) -> DhkdError:
    if isinstance(error, DhkdError):
        return error
    outcome = DhkdError(f"{type(error).__name__}: {error}")
    outcome.__cause__ = error  # which --debug shows
    return outcome


def _told(near: NearRun, experiment: Experiment, *, resume: bool, track: Sequence[str]) -> dict[str, Any]:
    """Return what all processes must have been told, as plain values: settings and options of the command."""
    return {
        **settings_of(experiment),
        "options": {"out": near.location or str(near.folder), "resume": resume, "track": list(track)},
    }


def _train(experiments: Mapping[Path, Experiment], cache: str | None, options: TrainingOptions) -> Outcomes:
    """Check that experiments, cache and teacher fit together, claim the folders, and train the unfinished students."""
    options = replace(options, track=installed_trackers(options.track))
    first = next(iter(experiments.values()))
    with processes_for(first.student.precision, cpu=options.cpu) as processes, ExitStack() as locks:
        require_alike(list(experiments.values()), processes)
        near = {out: options.held.get(out, NearRun(out)) for out in experiments}
        out, told = next(iter(experiments)), {"cache": cache is not None, "allow_drift": options.allow_drift}
        require_agreement(processes, lambda: told | _told(near[out], first, resume=options.resume, track=options.track))
        source = source_of(first, cache, options.teacher, options.data, cpu=options.cpu)
        views = {out: begun_views(out) if options.resume else None for out in experiments}
        students = {out: prepared_student(experiment, source, views[out]) for out, experiment in experiments.items()}
        if source.reader is not None:
            source.reader.require_present()
        for student in students.values():
            require_batches("student", student.experiment.student, source.images, processes)
        student = students[out]
        require_agreement(processes, lambda: {"data": plain_identity(source.images), "student": student.facts()})
        of_data = listed_classes(first, options.data) | measured_fact(first, source.images)
        claims = {
            out: claimed(near[out], student.experiment, student.facts() | of_data, processes, options.resume, locks)
            for out, student in students.items()
        }
        outcomes: Outcomes = {out: result for out, (_, result) in claims.items() if result is not None}
        unfinished = {out: student for out, student in students.items() if out not in outcomes}
        if unfinished:
            runs = {out: run for out, (run, _) in claims.items()}
            for run in runs.values():
                run.class_names = source.images.class_names
            outcomes |= _train_side_by_side(unfinished, runs, source, options, processes)
        if processes.world_size > 1:  # inside the context, which tells the other processes of an error
            for outcome in outcomes.values():
                if isinstance(outcome, DhkdError):
                    raise outcome
        return {out: outcomes[out] for out in experiments}


def _train_side_by_side(
    students: Mapping[Path, PreparedStudent],
    runs: Mapping[Path, RunFolder],
    source: Source,
    options: TrainingOptions,
    processes: Processes,
) -> Outcomes:
    """Train these students on shared streams, and write the result of each student whose training ends well."""
    experiment = next(iter(students.values())).experiment
    renderer = renderer_of(source.images, source.recipe, processes.device, options.data)
    test = test_renderer_of(experiment, processes.device, options.data, source.images)
    require_same_classes(source.images, test.images)
    require_agreement(processes, lambda: {"test data": plain_identity(test.images)})
    normalize = normalization_of(experiment.student, source.images)
    of_teacher = {student.experiment.student.teacher: student.experiment for student in students.values()}
    evaluators = {
        name: with_reference(Evaluator(test, normalize, processes), experiment, source)
        for name, experiment in of_teacher.items()
    }
    accuracies = {out: evaluators[student.experiment.student.teacher] for out, student in students.items()}
    if source.reader is not None:
        drift = check_pixels(renderer, source.reader, seed=experiment.seed, allow_drift=options.allow_drift)
        log_once(processes, drift)
    for note in dict.fromkeys(student.beginning.note for student in students.values() if student.beginning):
        log_once(processes, note)
    streams = student_streams(students, source, renderer, normalize, processes)
    tasks = {
        out: task_of(
            student.experiment.student,
            student.objective,
            student.setting,
            streams[out],
            accuracies[out],
            runs[out],
            options.track,
            measured(student.experiment, source.images),
            student.beginning,
        )
        for out, student in students.items()
    }
    require_own_draws({out: (task.student, students[out].setting.student) for out, task in tasks.items()})
    outcomes: Outcomes = {}
    for out, figures in zip(tasks, train_together(list(tasks.values()), processes), strict=True):
        if isinstance(figures, DhkdError):
            outcomes[out] = figures
        else:
            distillation = students[out].distillation(source, together=len(tasks))
            setting = students[out].setting
            try:
                outcomes[out] = finished("student", tasks[out], figures, setting, accuracies[out], distillation)
            except DhkdError as error:
                outcomes[out] = error
    return outcomes
