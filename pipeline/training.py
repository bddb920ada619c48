"""`train-teacher` and `train-student`: from experiments to runs, one or several side by side.

The way through each function is the way of the data. Students that train together share what does not depend on them:
images, test set and cache in memory, and the batches of those that see the same keys.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment, Training
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import ConfigError, DhkdError
from dhkd.data.images.base import Images
from dhkd.data.recipes.base import ENDLESS, Recipe
from dhkd.data.render import Normalization, Renderer
from dhkd.data.runs.folder import RunFolder
from dhkd.data.stream.batches import Live, Stream
from dhkd.data.stream.signals import Names, NoSignals, Signals
from dhkd.pipeline.build.cache import block_rows_of, cached_names, digest_for, of_views, reader_of, signals_of
from dhkd.pipeline.build.checks import require_cache, require_live
from dhkd.pipeline.build.data import (
    images_of,
    normalization_of,
    recipe_of,
    renderer_of,
    test_renderer_of,
)
from dhkd.pipeline.build.networks import Trained, trained_network
from dhkd.pipeline.build.training import learning_rate_of, objective_of, optimizer_of, setting_of, student_of
from dhkd.pipeline.caching import EVALUATION_BATCH, describe, info, unreadable
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.drift import check_pixels
from dhkd.pipeline.environment import hardware, versions
from dhkd.stages.models import count_parameters
from dhkd.stages.models.evaluate import Accuracy, evaluate
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.models.weights import save_weights, weights_sha256
from dhkd.stages.processes import Processes, resolve_precision
from dhkd.stages.trackers import installed_trackers
from dhkd.stages.train.loop import Figures, Task, train, train_together
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Objective, Setting
from torch import Tensor, nn


def train_teacher(
    experiment: Experiment,
    out: Path,
    *,
    data: DataOptions,
    track: Sequence[str] = (),
    cpu: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the preset's teacher with cross-entropy on freshly drawn views; the run's result, also in `out`.

    `track` names the trackers that are shown it, as `installed_trackers` takes them.
    """
    trackers = installed_trackers(track)
    settings = experiment.teacher
    processes = Processes(resolve_precision(settings.precision, cpu), cpu)
    try:
        run = _claim(out, experiment, {"command": "train-teacher"}, processes, resume)
        if run.result is not None:
            return run.result
        images, recipe = images_of(experiment, "train", data), recipe_of(experiment.views)
        renderer = renderer_of(images, recipe, processes.device, data)
        normalize = normalization_of(settings, images)
        objective = build_objective("ce", {})
        setting = setting_of(experiment, settings, images, objective)
        signals, block_rows = NoSignals(recipe.num_views or ENDLESS), block_rows_of(experiment, images, setting)
        stream = _stream(experiment, settings, renderer, normalize, signals, "independent", block_rows, None, processes)
        test = test_renderer_of(experiment, processes.device, data)
        task = _task(settings, objective, setting, stream, normalize, test, run, trackers, processes)
        return _finish("teacher", task, train(task, processes), setting, normalize, test, processes, {})
    finally:
        processes.end()


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
) -> dict[str, Any]:
    """Train the preset's student from the cache; the run's result, also in `out`.

    The cache must be complete and of this data set, recipe and (where the experiment or `teacher` names one) teacher.
    Without one, the objective must need no teacher or the experiment say that it runs live. Pixels that differ from
    those that the teacher saw are an error, with `allow_drift` a warning. `track` names the trackers that are shown the
    run, as `installed_trackers` takes them.
    """
    (outcome,) = train_students(
        {out: experiment},
        cache,
        data=data,
        teacher=teacher,
        allow_drift=allow_drift,
        track=track,
        cpu=cpu,
        resume=resume,
    ).values()
    if isinstance(outcome, DhkdError):
        raise outcome
    return outcome


# What students that train together have in common: the sections of a preset, and fields of its student.
SHARED = ("data", "views", "teacher", "cache")
SHARED_OF_STUDENT = ("precision",)


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
) -> dict[Path, dict[str, Any] | DhkdError]:
    """Train each folder's student as `train_student` does, side by side; their results, or what ended one of them.

    Each ends as it would alone on as many threads. Raises `ConfigError` where the experiments differ in more than their
    students, or several processes share the work.
    """
    trackers = installed_trackers(track)
    experiment = next(iter(experiments.values()))
    processes = Processes(resolve_precision(experiment.student.precision, cpu), cpu)
    try:
        _require_alike(experiments, processes)
        images, recipe = images_of(experiment, "train", data), recipe_of(experiment.views)
        reader = reader_of(cache, data) if cache is not None else None
        trained = None
        if teacher is not None:
            trained = trained_network(experiment.teacher.architecture, images.num_classes, teacher, "teacher")
        students = {out: _prepared(each, images, recipe, reader, trained) for out, each in experiments.items()}
        if reader is not None:
            reader.require_present()
        runs = {out: _claim(out, each.experiment, each.facts, processes, resume) for out, each in students.items()}
        outcomes: dict[Path, dict[str, Any] | DhkdError] = {
            out: run.result for out, run in runs.items() if run.result is not None
        }
        waiting = {out: student for out, student in students.items() if out not in outcomes}
        if waiting:
            renderer = renderer_of(images, recipe, processes.device, data)
            test = test_renderer_of(experiment, processes.device, data)
            normalize = normalization_of(experiment.student, images)
            if reader is not None:
                info(processes, check_pixels(renderer, reader, seed=experiment.seed, allow_drift=allow_drift))
            streams = _streams(waiting, renderer, normalize, reader, trained, processes)
            tasks = {
                out: _task(
                    student.experiment.student,
                    student.objective,
                    student.setting,
                    streams[out],
                    normalize,
                    test,
                    runs[out],
                    trackers,
                    processes,
                )
                for out, student in waiting.items()
            }
            _require_own_draws(tasks)
            for out, figures in zip(tasks, train_together(list(tasks.values()), processes), strict=True):
                if isinstance(figures, DhkdError):
                    outcomes[out] = figures
                    continue
                student = students[out]
                facts = {
                    "objective": student.experiment.objective,
                    "cache": reader
                    and {**describe(reader.location, reader.manifest), "digest": student.facts["cache"]},
                    "live": student.live,
                    "together": len(tasks),
                }
                setting = student.setting
                outcomes[out] = _finish("student", tasks[out], figures, setting, normalize, test, processes, facts)
        return {out: outcomes[out] for out in experiments}
    finally:
        processes.end()


def train_grid(
    experiments: Mapping[Path, Experiment], cache: str | None, *, together: int, **given: Any
) -> dict[Path, dict[str, Any] | DhkdError]:
    """Train as many at a time as `together` says, with what `train_students` is `given`; all results."""
    outcomes: dict[Path, dict[str, Any] | DhkdError] = {}
    outs = list(experiments)
    for start in range(0, len(outs), together):
        group = {out: experiments[out] for out in outs[start : start + together]}
        outcomes |= train_students(group, cache, **given)
    return outcomes


def _require_alike(experiments: Mapping[Path, Experiment], processes: Processes) -> None:
    if len(experiments) == 1:
        return
    if processes.world_size > 1:
        raise ConfigError(
            f"{len(experiments)} students together: expected one process, got {processes.world_size}; start it without"
            f" torchrun, or train one student with several processes"
        )
    if processes.precision == "fp16":
        raise ConfigError(
            "several students together: expected precision bf16 or float32, got fp16; they would share"
            " one gradient scaler"
        )
    first, *others = experiments.values()
    for other in others:
        for section in SHARED:
            if getattr(other, section) != getattr(first, section):
                raise ConfigError(
                    f"several students together: expected one {section}, got two that differ; train them"
                    f" one after the other"
                )
        for field in SHARED_OF_STUDENT:
            if getattr(other.student, field) != getattr(first.student, field):
                raise ConfigError(
                    f"several students together: expected one student.{field}, got"
                    f" {getattr(first.student, field)} and {getattr(other.student, field)}"
                )


def _require_own_draws(tasks: Mapping[Path, Task]) -> None:
    if len(tasks) == 1:
        return
    for out, task in tasks.items():
        if task.student.draws_from_torch():
            raise ConfigError(
                f"several students together: {out.name} has dropout that draws from torch's own generator,"
                f" which they would share; train it alone"
            )


@dataclass(frozen=True)
class _Prepared:
    """An experiment that fits the cache, and what comes from where."""

    experiment: Experiment
    objective: Objective
    setting: Setting
    names: Names  # what comes from the cache
    live: list[str]  # what the teacher says in every step
    facts: Mapping[str, Any]  # what a run of it is, beside its settings


def _prepared(
    experiment: Experiment,
    images: Images,
    recipe: Recipe,
    reader: LogitReader | None,
    trained: Trained | None,
) -> _Prepared:
    settings, objective = experiment.student, objective_of(experiment)
    network = trained.network if trained else None
    if objective.takes_of_teacher and network is None:
        raise ConfigError(
            f"--teacher: objective {experiment.objective!r} takes the teacher's {objective.takes_of_teacher}, which"
            f" no cache holds; expected its weights, got none"
        )
    setting = setting_of(experiment, settings, images, objective, network)
    needs = objective.needs(setting)
    names: Names = {}
    live = list(needs)
    if reader is not None:
        names, live = cached_names(needs, reader, settings.teacher, "choose another objective")
        stored = [name for signals in names.values() for name in signals]
        require_cache(experiment, reader, images, recipe, stored, network)
    require_live(experiment, setting, live, reader, recipe)
    if live and trained is None:
        raise ConfigError(
            f"--teacher: the teacher is to run in every step, for {', '.join(live)}; expected its weights, got none"
        )
    facts = {
        "command": "train-student",
        "cache": reader and digest_for(reader, settings.teacher),
        "views": reader and of_views(reader, settings).plan.num_views,
        "live": {"signals": live, "sha256": weights_sha256(network)} if live and network else None,
    }
    return _Prepared(experiment, objective, setting, names, live, facts)


def _held(student: _Prepared) -> tuple[str | None, int | None]:
    """What of a cache is held in memory where any view of it is drawn: of which teacher, and how many views."""
    return student.experiment.student.teacher, student.experiment.student.views


def _streams(
    students: Mapping[Path, _Prepared],
    renderer: Renderer,
    normalize: Normalization,
    reader: LogitReader | None,
    trained: Trained | None,
    processes: Processes,
) -> dict[Path, Stream]:
    """Each student's stream: one for all that see the same keys, with every signal that any of them needs."""
    alike: dict[tuple[object, ...], list[Path]] = {}
    for out, student in students.items():
        settings = student.experiment.student
        order = (student.experiment.seed, settings.batch_size, settings.view_schedule, settings.window, settings.views)
        alike.setdefault((*order, settings.teacher), []).append(out)
    # In memory once for all streams: the teacher, and by its name the whole cache where any view of it is drawn.
    says = _live_teacher(students, trained, renderer.images, processes)
    resident: dict[tuple[str | None, int | None], Signals] = {}
    streams: dict[Path, Stream] = {}
    for outs in alike.values():
        group = [students[out] for out in outs]
        experiment, settings = group[0].experiment, group[0].experiment.student
        held, independent = _held(group[0]), settings.view_schedule == "independent"
        if reader is None:
            num_views = recipe_of(experiment.views).num_views or ENDLESS
            signals: Signals = NoSignals(min(num_views, settings.views or num_views))
        elif independent and held in resident:
            signals = resident[held]
        else:
            among = [each for each in students.values() if _held(each) == held]
            names = {need: stored for each in (among if independent else group) for need, stored in each.names.items()}
            copies = processes.world_size if processes.device.type == "cpu" else 1
            signals = signals_of(names, of_views(reader, settings), settings, processes.device, copies)
            if independent:
                resident[held] = signals
        if reader is not None:
            block_rows = reader.plan.block_rows
        else:
            block_rows = block_rows_of(experiment, renderer.images, group[0].setting)
        live = list(dict.fromkeys(name for each in group for name in each.live))
        runs_live = partial(says, names=live) if says and live else None
        schedule = settings.view_schedule
        stream = _stream(experiment, settings, renderer, normalize, signals, schedule, block_rows, runs_live, processes)
        streams |= dict.fromkeys(outs, stream)
    return streams


def _live_teacher(
    students: Mapping[Path, _Prepared], trained: Trained | None, images: Images, processes: Processes
) -> Callable[..., dict[str, Tensor]] | None:
    """`Teacher.signals` of the teacher that runs in every step, if one does."""
    live = dict.fromkeys(name for student in students.values() for name in student.live)
    if not live or trained is None:
        return None
    info(processes, f"the teacher runs in every step, for {', '.join(live)}")
    teacher = next(iter(students.values())).experiment.teacher
    normalize = normalization_of(teacher, images, trained.mean_std)
    # A copy: what the objective takes of the network stays on the CPU, as it is.
    return Teacher(copy.deepcopy(trained.network), normalize, processes).signals


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """What makes a run of it what it is, as plain values."""
    return experiment.model_dump(mode="json", exclude={"smoke", "record"})


def _claim(
    out: Path, experiment: Experiment, facts: Mapping[str, Any], processes: Processes, resume: bool
) -> RunFolder:
    config = {"run": {**facts, "precision": processes.precision}, "experiment": settings_of(experiment)}
    run = RunFolder(out, config, resume=resume)
    processes.wait()  # before the first process writes into the folder that the others look at
    if run.result is not None:
        info(processes, f"run at {out}: already finished")
    return run


def _stream(
    experiment: Experiment,
    settings: Training,
    renderer: Renderer,
    normalize: Normalization,
    signals: Signals,
    schedule: str,
    block_rows: int,
    live: Live | None,
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
        window=experiment.student.window,  # what the data's size asks of the student's order, it asks of the teacher's
        live=live,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    dropped = stream.num_samples - stream.samples_per_epoch
    if dropped:
        info(processes, f"the last {dropped} samples of each epoch are left out: too few rows for every process")
    return stream


def _task(
    settings: Training,
    objective: Objective,
    setting: Setting,
    stream: Stream,
    normalize: Normalization,
    test: Renderer,
    run: RunFolder,
    trackers: Sequence[str],
    processes: Processes,
) -> Task:
    def accuracy_of(network: nn.Module) -> Accuracy:
        return evaluate(network, test, normalize, batch_size=EVALUATION_BATCH, processes=processes)

    student = student_of(objective, setting)
    return Task(
        student,
        optimizer_of(settings, student, fused=processes.device.type == "cuda"),
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
    role: str,
    task: Task,
    figures: Figures,
    setting: Setting,
    normalize: Normalization,
    test: Renderer,
    processes: Processes,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The result of a finished run, which it writes into the run's folder beside the weights."""
    network, architecture = task.student.backbone, setting.student.architecture
    result = {
        "role": role,
        "architecture": architecture,
        "parameters": count_parameters(network),
        **asdict(figures),
        "seed": setting.seed,
        **facts,
        **unreadable(task.stream.renderer, processes),
        "sha256": weights_sha256(network),
        "precision": processes.precision,
        "hardware": hardware(processes.device),
        "processes": processes.world_size,
        "versions": versions(),
    }
    if processes.is_first:
        about = {
            "architecture": architecture,
            "num_classes": str(test.images.num_classes),
            "mean": json.dumps(normalize.mean),
            "std": json.dumps(normalize.std),
        }
        save_weights(task.run.path / f"{role}.safetensors", network, about)
        task.run.write_result(result)
    return result
