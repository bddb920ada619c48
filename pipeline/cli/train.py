"""The commands `train-teacher`, `train-student` and `sweep`: from a preset to trained networks."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from dhkd.data.errors import DhkdError
from dhkd.pipeline.cli.engines import engine_options
from dhkd.pipeline.cli.options import (
    ExperimentOptions,
    Part,
    RunOptions,
    allow_drift_option,
    baseline_option,
    compile_option,
    cpu_option,
    data_options,
    experiment_options,
    gathered,
    json_option,
    part_option,
    precision_option,
    resume_option,
    track_option,
    training_cache_option,
)
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.cli.paths import OUT_LOCATION, RUN, require_apart
from dhkd.pipeline.cli.recorded import recorded_command
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.engines.choice import EngineOptions
from dhkd.pipeline.launch import is_first_process, settle_launch

if TYPE_CHECKING:
    from dhkd.configs.schema import Experiment
    from dhkd.pipeline.report.comparison import Comparison
    from dhkd.pipeline.results import Swept

OF_TEACHER = {"precision": "teacher.precision={}", "compiled": "teacher.compile={}"}
OF_STUDENT = {"precision": "student.precision={}", "compiled": "student.compile={}"}


@click.command("train-teacher")
@experiment_options(OF_TEACHER)
@gathered("run", RunOptions)
@click.option(
    "--out", type=OUT_LOCATION, required=True, help="The run's folder, or its URL in a bucket: s3://, gs://, az://."
)
@precision_option
@compile_option
@track_option
@data_options
@cpu_option
@resume_option
@json_option
def train_teacher(experiment: ExperimentOptions, run: RunOptions, data: DataOptions, as_json: bool) -> None:
    """Train the preset's teacher."""
    _require_apart(run, data)
    loaded = experiment.load()
    from dhkd.pipeline import training
    from dhkd.pipeline.claims import near_runs

    with near_runs(run.out, resume=run.resume) as runs:
        near = runs[""]
        result = training.train_teacher(
            *(loaded, near.folder),
            data=data,
            track=run.track,
            cpu=run.cpu,
            resume=run.resume,
            held={near.folder: near},
        )
    emit(result, as_json, lambda: f"{run.out}: {result}")


@click.command("train-student")
@experiment_options(OF_STUDENT)
@gathered("run", RunOptions)
@training_cache_option
@click.option(
    "--out", type=OUT_LOCATION, required=True, help="The run's folder, or its URL in a bucket: s3://, gs://, az://."
)
@click.option(
    "--teacher",
    type=RUN,
    help="Teacher weights: a run's folder, a weights file, or packaged[:TAG] for the pretrained weights that"
    " torchvision or timm provides (TAG chooses among several). Only a cache of this teacher is accepted. Required if"
    " the teacher runs in every step, and by methods that reuse part of its network (simkd).",
)
@allow_drift_option
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=A,B",
    help="Train one student for each value of this setting, side by side on one device, each in its own subfolder of"
    " --out. Repeatable: trains one student for every combination.",
)
@click.option(
    "--together", type=click.IntRange(min=1), help="Number of students to train at a time, with --grid [default: all]."
)
@precision_option
@compile_option
@track_option
@data_options
@cpu_option
@resume_option
@json_option
def train_student(
    experiment: ExperimentOptions,
    run: RunOptions,
    grid: Sequence[str],
    together: int | None,
    data: DataOptions,
    as_json: bool,
) -> None:
    """Train one student from the cache, or several with --grid.

    Choose the method with --set objective=NAME, or combine several, as in --set objective='NAME + 0.5 * NAME'; 'dhkd
    methods' lists all names. If the cache lacks a teacher output that the method needs, add it with 'dhkd cache-teacher
    --signals', or run the teacher in every step with --set teacher.live=true.
    """
    _require_apart(run, data)
    if grid:
        return _train_grid(experiment.load_grid(grid), run, together, data, as_json)
    if together is not None:
        raise click.UsageError("--together is for a --grid")
    loaded = experiment.load()
    from dhkd.pipeline import training
    from dhkd.pipeline.claims import near_runs

    with near_runs(run.out, resume=run.resume) as runs:
        near = runs[""]
        result = training.train_student(
            loaded,
            run.cache,
            near.folder,
            data=data,
            teacher=run.teacher,
            allow_drift=run.allow_drift,
            track=run.track,
            cpu=run.cpu,
            resume=run.resume,
            held={near.folder: near},
        )
    return emit(result, as_json, lambda: f"{run.out}: {result}")


def _train_grid(
    experiments: Mapping[str, "Experiment"], run: RunOptions, together: int | None, data: DataOptions, as_json: bool
) -> None:
    """Train the students of a grid in subfolders of `run.out`. Raises `DhkdError` at the end if any student failed."""
    from dhkd.pipeline import training
    from dhkd.pipeline.claims import near_runs

    with near_runs(run.out, list(experiments), resume=run.resume) as runs:
        trained = training.train_grid(
            {near.folder: experiments[name] for name, near in runs.items()},
            run.cache,
            data=data,
            together=together or len(experiments),
            teacher=run.teacher,
            allow_drift=run.allow_drift,
            track=run.track,
            cpu=run.cpu,
            resume=run.resume,
            held={near.folder: near for near in runs.values()},
        )
    outcomes = {near.location or str(near.folder): trained[near.folder] for near in runs.values()}
    for near in runs.values():
        if isinstance(error := trained[near.folder], DhkdError):
            near.rename(error)
    failed = {out: str(error) for out, error in outcomes.items() if isinstance(error, DhkdError)}
    finished = {out: result for out, result in outcomes.items() if not isinstance(result, DhkdError)}
    if finished or as_json:
        result = {"runs": finished, "failed": failed}
        emit(result, as_json, lambda: "\n".join(f"{out}: {figures}" for out, figures in finished.items()))
    if failed:
        lines = "; ".join(f"{out}: {error}" for out, error in failed.items())
        raise DhkdError(f"{len(failed)} of {len(outcomes)} students ended early: {lines}")


def _require_apart(run: RunOptions, data: DataOptions) -> None:
    require_apart(run.out, **{"--cache": run.cache, "--teacher": run.teacher, "--data-root": data.root})


@dataclass(frozen=True)
class SweepOptions:
    """Which runs make up a sweep, and which of them this call trains."""

    grid: Sequence[str]
    seeds: int | None
    part: Part
    together: int
    again: bool
    baseline: str | None

    @property
    def whole_grid(self) -> list[str]:
        """The grid, with the seeds of --seeds as one more key."""
        return [*self.grid, *([f"seed={','.join(map(str, range(self.seeds)))}"] if self.seeds else [])]


@click.command()
@experiment_options(OF_STUDENT)
@gathered("run", RunOptions)
@gathered("chosen", SweepOptions)
@training_cache_option
@click.option(
    "--out",
    type=OUT_LOCATION,
    required=True,
    help="Output folder, or its URL in a bucket: one subfolder per run, and the results table.",
)
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=A,B",
    help="Train one student for each value of this setting. Repeatable: trains one student for every combination.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Repeat every combination with N seeds, 0 to N-1 [default: only the preset's seed].",
)
@part_option("Train only share I (from 1) of N of the runs, for example in a cluster's job array.")
@click.option(
    "--together", type=click.IntRange(min=1), default=1, show_default=True, help="Number of runs to train side by side."
)
@click.option("--again", is_flag=True, help="Also retry failed runs; by default they are skipped.")
@baseline_option
@click.option(
    "--teacher",
    type=RUN,
    help="Teacher weights: a run's folder or a weights file. Needed if the teacher runs in every step"
    " (teacher.live=true) or the method reuses part of its network (simkd).",
)
@allow_drift_option
@precision_option
@compile_option
@track_option
@data_options
@cpu_option
@engine_options
@json_option
def sweep(
    experiment: ExperimentOptions,
    run: RunOptions,
    chosen: SweepOptions,
    data: DataOptions,
    engine: EngineOptions,
    as_json: bool,
) -> None:
    """Train and compare students for every combination in a grid.

    If interrupted, run the same command again: it resumes. To split the runs among processes, start the command several
    times, or once with 'torchrun' or 'accelerate launch', which give each process its own device. With --on, the runs
    are trained on the machines of a cluster. A failed run does not stop the others.
    """
    _require_apart(run, data)
    if not chosen.whole_grid:
        raise click.UsageError("expected --grid or --seeds; a single student is train-student's")
    experiments = experiment.load_grid(chosen.whole_grid)
    if settle_launch().world_size > 1 and engine.elsewhere:
        raise click.UsageError("--on: expected one process, which gives the work to others; leave torchrun out")
    prints = is_first_process()
    _work_alone()
    from dhkd.data.runs.place import runs_at
    from dhkd.data.runs.read import read_runs
    from dhkd.pipeline.report.comparison import compare, comparison_json
    from dhkd.pipeline.results import plain

    result = _sweep_of(engine)(
        experiments,
        run.cache,
        run.out,
        command=recorded_command(click.get_current_context()),
        data=data,
        part=chosen.part,
        together=chosen.together,
        again=chosen.again,
        teacher=run.teacher,
        allow_drift=run.allow_drift,
        track=run.track,
        cpu=run.cpu,
    )
    if prints:
        from dhkd.pipeline.results import plain

        place = runs_at(run.out)
        compared = compare(read_runs(place.folder, place.shown), chosen.baseline)
        emit(
            {**plain(result), "comparison": comparison_json(compared)},
            as_json,
            lambda: _text_of_sweep(result, compared),
        )
    if result.failed:
        lines = "; ".join(f"{name}: {line}" for name, line in result.failed.items())
        raise DhkdError(f"{len(result.failed)} of {result.runs} runs failed: {lines}")


def _sweep_of(engine: EngineOptions) -> Callable[..., "Swept"]:
    if not engine.elsewhere:
        from dhkd.pipeline.sweep import sweep

        return sweep
    from dhkd.pipeline.sweep_on import sweep_on

    return functools.partial(sweep_on, engine)


def _text_of_sweep(result: "Swept", compared: "Comparison") -> str:
    from dhkd.pipeline.cli.tables.runs import runs_table

    return f"{runs_table(compared)}\n{len(result.finished)} runs in {result.table}"


def _work_alone() -> None:
    """Make this process, if it was started together with others, an independent worker on its own device."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = [device for device in visible.split(",") if device]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(rank) % len(devices)] if devices else rank
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
