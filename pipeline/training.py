"""`train-teacher` and `train-student`: train the network of an experiment, or several students side by side.

The steps of each function are in the order in which the data passes through them. Students that train together share
what does not depend on them: images, test set and cache in memory. Students that train on the same
pairs (view, index) also share batches.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dhkd.configs.schema import Experiment, Training
from dhkd.data.errors import DhkdError
from dhkd.data.runs.config import begun_views
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.lock import RunLock
from dhkd.data.stream.batches import Stream
from dhkd.pipeline.build.checks import require_alike, require_batches, require_own_draws, require_same_classes
from dhkd.pipeline.build.code import code_facts, code_metadata, code_of_teacher
from dhkd.pipeline.build.data import (
    listed_classes,
    normalization_of,
    plain_identity,
    renderer_of,
    test_renderer_of,
)
from dhkd.pipeline.build.networks import architecture_metadata
from dhkd.pipeline.build.streams import student_streams, teacher_stream
from dhkd.pipeline.build.students import PreparedStudent, Source, prepared_student, source_of
from dhkd.pipeline.build.training import learning_rate_of, optimizer_of, setting_of, student_of
from dhkd.pipeline.claims import claimed, locker, settings_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.drift import check_pixels
from dhkd.pipeline.environment import hardware, log_once, processes_for, unreadable_files, versions
from dhkd.pipeline.evaluation import Evaluator
from dhkd.pipeline.results import Distillation, TrainedRun, plain
from dhkd.stages.agreement import require_agreement
from dhkd.stages.models import count_parameters
from dhkd.stages.models.weights import save_weights, weights_sha256
from dhkd.stages.processes import Processes
from dhkd.stages.trackers import installed_trackers
from dhkd.stages.train.loop import Figures, Task, train, train_together
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Objective, Setting

log = logging.getLogger("dhkd")

Outcomes = dict[Path, TrainedRun | DhkdError]  # by run folder: the result, or the error that ended the run


@dataclass(frozen=True)
class TrainingOptions:
    """Options of how runs are trained, which are not part of the experiments.

    `locks` holds the locks of run folders that the caller has taken already.
    """

    data: DataOptions
    teacher: Path | None
    allow_drift: bool
    track: Sequence[str]
    cpu: bool
    resume: bool
    locks: Mapping[Path, RunLock] = field(default_factory=dict)


def train_teacher(
    experiment: Experiment,
    out: Path,
    *,
    data: DataOptions,
    track: Sequence[str] = (),
    cpu: bool = False,
    resume: bool = False,
) -> TrainedRun:
    """Train the preset's teacher with cross-entropy on freshly drawn views; the result is also written into `out`.

    `track` names the trackers that show the run, as `installed_trackers` takes them.
    """
    trackers = installed_trackers(track)
    settings = experiment.teacher
    with processes_for(settings.precision, cpu=cpu) as processes, ExitStack() as locks:
        code = code_facts(code_of_teacher(experiment))
        require_agreement(processes, lambda: code | _told(out, experiment, resume=resume, track=trackers))
        facts = {"command": "train-teacher", **listed_classes(experiment, data), **code}
        run, result = claimed(out, experiment, facts, processes, resume, locker(locks, {}))
        if result is not None:
            return result
        source = source_of(experiment, None, None, data, cpu=cpu)
        require_batches("teacher", settings, source.images, processes)
        renderer = renderer_of(source.images, source.recipe, processes.device, data)
        normalize = normalization_of(settings, source.images)
        objective = build_objective("ce", {})
        setting = setting_of(experiment, settings, source.images, objective)
        stream = teacher_stream(experiment, setting, source, renderer, normalize, processes)
        test = test_renderer_of(experiment, processes.device, data, source.images)
        require_same_classes(source.images, test.images)
        both = (source.images, test.images)
        require_agreement(processes, lambda: {"data": {images.split: plain_identity(images) for images in both}})
        accuracy_of = Evaluator(test, normalize, processes)
        task = _task(settings, objective, setting, stream, accuracy_of, run, trackers)
        return _finish("teacher", task, train(task, processes), setting, accuracy_of, None)


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
) -> TrainedRun:
    """Train the preset's student from the cache; the result is also written into `out`.

    The cache must be complete, and made from this data set and recipe with the teacher that the experiment or `teacher`
    specifies. If `cache` is None, the objective must need no teacher, or the experiment must run the teacher live.
    Pixels that differ from those that the teacher saw raise an error; with `allow_drift`, the difference is only
    logged. `track` names the trackers that show the run, as `installed_trackers` takes them.
    """
    options = TrainingOptions(data, teacher, allow_drift, track, cpu, resume)
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
    locks: Mapping[Path, RunLock] | None = None,
) -> Outcomes:
    """Train each folder's student as `train_student` does, side by side.

    Each student's result is the same as if it were trained alone with as many threads. `locks` holds the locks of run
    folders that the caller has taken already. Raises `ConfigError` if the students can't train side by side, for
    example because their data differs or several processes share the work.
    """
    return _train(experiments, cache, TrainingOptions(data, teacher, allow_drift, track, cpu, resume, locks or {}))


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
) -> Outcomes:
    """Train all students as `train_students` does, `together` at a time.

    An error that concerns the whole first group is raised, since nothing was trained. Such an error of a later group is
    the outcome of each of its students, and the groups after it are trained.
    """
    options = TrainingOptions(data, teacher, allow_drift, track, cpu, resume)
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


def _told(out: Path, experiment: Experiment, *, resume: bool, track: Sequence[str]) -> dict[str, Any]:
    """Return what all processes must have been told, as plain values: settings and options of the command."""
    return {**settings_of(experiment), "options": {"out": str(out), "resume": resume, "track": list(track)}}


def _train(experiments: Mapping[Path, Experiment], cache: str | None, options: TrainingOptions) -> Outcomes:
    """Check that experiments, cache and teacher fit together, claim the folders, and train the unfinished students."""
    options = replace(options, track=installed_trackers(options.track))
    first = next(iter(experiments.values()))
    with processes_for(first.student.precision, cpu=options.cpu) as processes, ExitStack() as locks:
        require_alike(list(experiments.values()), processes)
        out, told = next(iter(experiments)), {"cache": cache is not None, "allow_drift": options.allow_drift}
        require_agreement(processes, lambda: told | _told(out, first, resume=options.resume, track=options.track))
        source = source_of(first, cache, options.teacher, options.data, cpu=options.cpu)
        views = {out: begun_views(out) if options.resume else None for out in experiments}
        students = {out: prepared_student(experiment, source, views[out]) for out, experiment in experiments.items()}
        if source.reader is not None:
            source.reader.require_present()
        for student in students.values():
            require_batches("student", student.experiment.student, source.images, processes)
        student = students[out]
        require_agreement(processes, lambda: {"data": plain_identity(source.images), "student": student.facts()})
        lock, classes = locker(locks, options.locks), listed_classes(first, options.data)
        claims = {
            out: claimed(out, student.experiment, student.facts() | classes, processes, options.resume, lock)
            for out, student in students.items()
        }
        outcomes: Outcomes = {out: result for out, (_, result) in claims.items() if result is not None}
        unfinished = {out: student for out, student in students.items() if out not in outcomes}
        if unfinished:
            runs = {out: run for out, (run, _) in claims.items()}
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
    accuracy_of = Evaluator(test, normalize, processes)
    if source.reader is not None:
        drift = check_pixels(renderer, source.reader, seed=experiment.seed, allow_drift=options.allow_drift)
        log_once(processes, drift)
    streams = student_streams(students, source, renderer, normalize, processes)
    tasks = {
        out: _task(
            student.experiment.student,
            student.objective,
            student.setting,
            streams[out],
            accuracy_of,
            runs[out],
            options.track,
        )
        for out, student in students.items()
    }
    require_own_draws({out: task.student for out, task in tasks.items()})
    outcomes: Outcomes = {}
    for out, figures in zip(tasks, train_together(list(tasks.values()), processes), strict=True):
        if isinstance(figures, DhkdError):
            outcomes[out] = figures
        else:
            distillation = students[out].distillation(source, together=len(tasks))
            setting = students[out].setting
            try:
                outcomes[out] = _finish("student", tasks[out], figures, setting, accuracy_of, distillation)
            except DhkdError as error:
                outcomes[out] = error
    return outcomes


def _task(
    settings: Training,
    objective: Objective,
    setting: Setting,
    stream: Stream,
    accuracy_of: Evaluator,
    run: RunFolder,
    trackers: Sequence[str],
) -> Task:
    student = student_of(objective, setting)
    return Task(
        student,
        optimizer_of(settings, student, fused=accuracy_of.processes.device.type == "cuda"),
        objective,
        stream,
        accuracy_of,
        learning_rate_of(settings),
        epochs=settings.epochs,
        seed=setting.seed,
        clip_norm=settings.clip_norm,
        run=run,
        compiled=settings.compile,
        keep_every=settings.keep_every,
        trackers=trackers,
    )


def _finish(
    role: Literal["teacher", "student"],
    task: Task,
    figures: Figures,
    setting: Setting,
    accuracy_of: Evaluator,
    distillation: Distillation | None,
) -> TrainedRun:
    """Write the weights and the result of a run that ended well into the run folder, and return the result."""
    network, architecture = task.student.backbone, setting.student.wanted
    processes = accuracy_of.processes
    result = TrainedRun(
        role=role,
        architecture=architecture.name,
        parameters=count_parameters(network),
        **asdict(figures),
        seed=setting.seed,
        distillation=distillation,
        unreadable_files=unreadable_files(task.stream.renderer, processes),
        sha256=weights_sha256(network),
        settings_sha256=task.run.settings_sha256,
        precision=processes.precision,
        hardware=hardware(processes.device),
        processes=processes.world_size,
        versions=versions(),
    )
    if processes.is_first:
        task.run.require_lock()
        metadata = {
            **architecture_metadata(architecture),
            "num_classes": str(accuracy_of.renderer.images.num_classes),
            "mean": json.dumps(accuracy_of.normalize.mean),
            "std": json.dumps(accuracy_of.normalize.std),
            **code_metadata(architecture.name),
        }
        save_weights(task.run.path / f"{role}.safetensors", network, metadata)
        task.run.write_result(plain(result))
    return result
