"""The command line: options in, one call, one line or one JSON object out. Only click is imported until one runs.

Results go to standard output, logs and progress to standard error; exit code 0, 1 (failed) or 2 (wrong usage).
"""

import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from dhkd.data.errors import ConfigError, DhkdError
from dhkd.pipeline.data_options import DataOptions

if TYPE_CHECKING:
    from dhkd.configs.schema import Experiment
    from dhkd.pipeline.report.rows import Analysis

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
CACHE = "The cache: a folder, or a URL (s3://, gs://, az://; https:// to read)."


def _part(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    """I/N, the I-th (from 1) of N shares, as (I - 1, N)."""
    number, slash, parts = value.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise click.BadParameter(f"expected I/N with I from 1 to N, got {value!r}", context, parameter)
    return int(number) - 1, int(parts)


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


overrides_option = _options(
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the preset; repeatable.",
    ),
    click.option("--smoke", is_flag=True, help="Apply the preset's smoke settings: a run of seconds."),
)
preset_option = _options(click.argument("preset"), overrides_option)
_data_options = _options(
    click.option(
        "--data-root",
        help="Where the data set's files are: a folder (torchvision's layout, or class folders), or a URL of shards.",
    ),
    click.option("--download", is_flag=True, help="Download the data set if it is missing."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        help="Processes that decode photographs, for each process that computes [default: its share of the cores].",
    ),
    click.option(
        "--allow-bad",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="So many files may be unreadable in a call, to each process: black images stand in, and they are listed.",
    ),
    click.option(
        "--fetched-gb",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        help="Disk for what was fetched from URLs: shards of images, parts of caches.",
    ),
)


def data_options(function: F) -> F:
    """The options that say where data is and how it is read, handed on together as `data`."""

    @functools.wraps(function)
    def together(
        *args: Any,
        data_root: str | None,
        download: bool,
        workers: int | None,
        allow_bad: int,
        fetched_gb: int,
        **options: Any,
    ) -> Any:
        return function(*args, data=DataOptions(data_root, download, workers, allow_bad, fetched_gb), **options)

    return cast(F, _data_options(together))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
cpu_option = click.option("--cpu", is_flag=True, help="Compute on the CPU even where there is a GPU.")
resume_option = click.option("--resume", is_flag=True, help="Continue the run in --out, if there is one.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bf16", "fp16"]),
    help="What the network computes in; auto takes bf16 where the hardware has it.",
)
compile_option = click.option(
    "--compile",
    "compiled",
    type=click.Choice(["off", "reduce-overhead", "max"]),
    help="reduce-overhead: a GPU replays a step as one graph; max: the network is compiled as well [default: off].",
)
track_option = click.option(
    "--track",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "mlflow", "none"]),
    help="Show runs there; repeatable. Each is set up by its own environment variables [default: tensorboard, where it"
    " is installed].",
)
teacher_help = (
    "The teacher: a run's folder, a file of weights (.safetensors, .pth), or packaged[:TAG], what its library offers."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dhkd")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Distil many students from one teacher that runs once.

    PRESET is a name that 'dhkd presets' lists, a YAML file, or the folder of a run (its own settings again).
    """
    context.obj = debug


@cli.command("train-teacher")
@preset_option
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@precision_option
@compile_option
@track_option
@data_options
@cpu_option
@resume_option
@json_option
def train_teacher(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    out: Path,
    precision: str | None,
    compiled: str | None,
    track: Sequence[str],
    data: DataOptions,
    cpu: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train the preset's teacher."""
    experiment = _experiment(preset, overrides, smoke, teacher__precision=precision, teacher__compile=compiled)
    from dhkd.pipeline import training

    result = training.train_teacher(experiment, out, data=data, track=track, cpu=cpu, resume=resume)
    _print_run(result, out, as_json)


@cli.command("cache-teacher")
@preset_option
@click.option("--teacher", type=PATH, required=True, help=teacher_help)
@click.option("--out", required=True, help=f"{CACHE} One that is there is gone on with, or extended.")
@click.option("--views", help="How many views to cache: a number, or all.")
@click.option("--store", type=click.Choice(["zarr", "webdataset"]), help="How the cache is laid out [default: zarr].")
@click.option("--codec", help="How logits are stored: float16, float32, int8, or as --set cache.codec says.")
@click.option(
    "--name", help="What this teacher is called in a cache of several; its logits are added to what is there."
)
@click.option(
    "--part",
    callback=_part,
    metavar="I/N",
    default="1/1",
    help="Do the I-th of N shares; whoever ends last completes the cache.",
)
@click.option(
    "--signals",
    metavar="A,B",
    help="Which of the teacher's outputs to cache [default: logits]: logits, embedding, last_map, map2-before, …;"
    " cam and attention stand for what cat-kd and at need. They may be added later.",
)
@precision_option
@data_options
@cpu_option
@json_option
def cache_teacher(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    teacher: Path,
    out: str,
    views: str | None,
    store: str | None,
    codec: str | None,
    name: str | None,
    part: tuple[int, int],
    signals: str | None,
    precision: str | None,
    data: DataOptions,
    cpu: bool,
    as_json: bool,
) -> None:
    """Run the teacher once over every view and cache its logits, or other outputs.

    Interrupted, it goes on where it stopped: run the same command again. What is damaged is written again. Several
    processes share the work under 'torchrun' or 'accelerate launch', several machines by --part or as they come.
    """
    experiment = _experiment(
        preset,
        overrides,
        smoke,
        cache__precision=precision,
        cache__views=views,
        cache__store=store,
        cache__codec=codec,
        cache__signals=None if signals is None else f"[{signals}]",
    )
    from dhkd.pipeline import caching

    words = ["dhkd", "cache-teacher", preset, "--teacher", str(teacher)]
    words += [word for override in overrides for word in ("--set", override)]
    words += [f"--views={views}"] if views else []
    words += [f"--store={store}"] if store else []
    words += [f"--codec={codec}"] if codec else []
    words += [f"--name={name}"] if name else []
    words += [f"--signals={signals}"] if signals else []
    words += [f"--precision={precision}"] if precision else []
    words += ["--smoke"] if smoke else []
    result = caching.cache_teacher(
        experiment, teacher, out, data=data, name=name, part=part, command=shlex.join(words), cpu=cpu
    )
    rate = f", {result['rows_per_second']:,.0f} rows/s" if result["rows_per_second"] else ""
    written = f"{result['blocks_written']} blocks written in {result['seconds']:.1f} s{rate}"
    if not result["complete"]:
        line = f"{out}: not complete yet, {result['blocks_left_to_others']} blocks are left to others; {written}"
    else:
        line = (
            f"{out}: complete, {result['cache']['views']} views of {result['cache']['samples']} samples; {written};"
            f" largest difference from a live forward {result['largest_difference_from_live']:.2g}"
        )
    _emit(result, as_json, line)


@cli.command("train-student")
@preset_option
@click.option("--cache", help=f"{CACHE} Not needed for ce, nor where the teacher runs live.")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option(
    "--teacher",
    type=PATH,
    help="A run's folder or a file of weights: accept only a cache of this teacher, and run it where teacher.live says"
    " so.",
)
@click.option("--allow-drift", is_flag=True, help="Train even where pixels differ from those that the teacher saw.")
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=A,B",
    help="Train a student for each value, side by side on one device, in folders of --out; repeatable: of every"
    " combination.",
)
@click.option("--together", type=click.IntRange(min=1), help="Of a grid, how many at a time [default: all].")
@precision_option
@compile_option
@track_option
@data_options
@cpu_option
@resume_option
@json_option
def train_student(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    cache: str | None,
    out: Path,
    teacher: Path | None,
    allow_drift: bool,
    grid: Sequence[str],
    together: int | None,
    precision: str | None,
    compiled: str | None,
    track: Sequence[str],
    data: DataOptions,
    cpu: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a student from the cache, or with --grid several.

    Choose the method with --set objective=NAME, or several with --set objective='NAME + 0.5 * NAME'; 'dhkd methods'
    lists them. What the cache lacks can be added to it, or the teacher be run in every step: --set teacher.live=true.
    """
    chosen = {"student__precision": precision, "student__compile": compiled}
    if not grid:
        if together is not None:
            raise click.UsageError("--together is for a --grid")
        experiment = _experiment(preset, overrides, smoke, **chosen)
        from dhkd.pipeline import training

        result = training.train_student(
            experiment,
            cache,
            out,
            data=data,
            teacher=teacher,
            allow_drift=allow_drift,
            track=track,
            cpu=cpu,
            resume=resume,
        )
        return _print_run(result, out, as_json)
    from dhkd.configs.grid import combinations

    experiments = {
        out / name: _experiment(preset, [*overrides, *values], smoke, **chosen)
        for name, values in combinations(grid).items()
    }
    from dhkd.pipeline import training

    outcomes = training.train_grid(
        experiments,
        cache,
        data=data,
        together=together or len(experiments),
        teacher=teacher,
        allow_drift=allow_drift,
        track=track,
        cpu=cpu,
        resume=resume,
    )
    failed = {str(run): str(error) for run, error in outcomes.items() if isinstance(error, DhkdError)}
    if as_json:
        results = {str(run): result for run, result in outcomes.items() if str(run) not in failed}
        _emit({"runs": results, "failed": failed}, as_json, "")
    else:
        for run, outcome in outcomes.items():
            if not isinstance(outcome, DhkdError):
                _print_run(outcome, run, as_json)
    if failed:
        lines = "; ".join(f"{run}: {error}" for run, error in failed.items())
        raise DhkdError(f"{len(failed)} of {len(outcomes)} students ended early: {lines}")
    return None


@cli.command()
@preset_option
@click.option("--cache", help=f"{CACHE} Not needed for ce, nor where the teacher runs live.")
@click.option("--out", type=PATH, required=True, help="The folder that takes a folder for each run, and the table.")
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=A,B",
    help="The values that a setting is to take; repeatable: every combination.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Train each with so many seeds, from 0 [default: the preset's]."
)
@click.option(
    "--part", callback=_part, metavar="I/N", default="1/1", help="Do the I-th of N shares: for a cluster's job array."
)
@click.option("--together", type=click.IntRange(min=1), default=1, show_default=True, help="How many side by side.")
@click.option("--again", is_flag=True, help="Go on with runs that failed, which are left alone otherwise.")
@click.option("--baseline", metavar="AXIS=VALUE", help="What each is compared with [default: objective=ce, else kd].")
@click.option("--teacher", type=PATH, help="As for train-student.")
@click.option("--allow-drift", is_flag=True, help="Train even where pixels differ from those that the teacher saw.")
@precision_option
@compile_option
@track_option
@data_options
@cpu_option
@json_option
def sweep(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    cache: str | None,
    out: Path,
    grid: Sequence[str],
    seeds: int | None,
    part: tuple[int, int],
    together: int,
    again: bool,
    baseline: str | None,
    teacher: Path | None,
    allow_drift: bool,
    precision: str | None,
    compiled: str | None,
    track: Sequence[str],
    data: DataOptions,
    cpu: bool,
    as_json: bool,
) -> None:
    """Train every student of a grid, each once, and compare them.

    Interrupted, it goes on where it stopped: run the same command again. Started several times, or under 'torchrun' or
    'accelerate launch' with a device for each process, it shares the runs out; one that fails leaves the others.
    """
    from dhkd.configs.grid import combinations

    listed = [*grid, *([f"seed={','.join(map(str, range(seeds)))}"] if seeds else [])]
    if not listed:
        raise click.UsageError("expected --grid or --seeds; a single student is train-student's")
    chosen = {"student__precision": precision, "student__compile": compiled}
    experiments = {
        name: _experiment(preset, [*overrides, *values], smoke, **chosen)
        for name, values in combinations(listed).items()
    }
    speaks = int(os.environ.get("RANK", "0")) == 0
    _work_alone()
    from dhkd.data.runs.read import read_runs
    from dhkd.pipeline.cli.tables.runs import runs_table
    from dhkd.pipeline.report.comparison import compare, comparison_json
    from dhkd.pipeline.sweep import sweep as train_all

    result = train_all(
        experiments,
        cache,
        out,
        command=shlex.join(["dhkd", *sys.argv[1:]]),
        data=data,
        part=part,
        together=together,
        again=again,
        teacher=teacher,
        allow_drift=allow_drift,
        track=track,
        cpu=cpu,
    )
    if speaks:
        compared = compare(read_runs(out), baseline)
        table = runs_table(compared) if not as_json else ""
        whole = {**result, "comparison": comparison_json(compared)}
        _emit(whole, as_json, f"{table}\n{len(result['finished'])} runs in {result['table']}")
    if result["failed"]:
        lines = "; ".join(f"{run}: {line}" for run, line in result["failed"].items())
        raise DhkdError(f"{len(result['failed'])} of {result['runs']} runs failed: {lines}")


def _work_alone() -> None:
    """Make a process that was started together with others a worker of its own, on its own device."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = [device for device in visible.split(",") if device]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(rank) % len(devices)] if devices else rank
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


class _ReportGroup(click.Group):
    """A group in which a word that is no command's name is a folder, to compare the runs of.

    A folder may be called as an analysis is: where no other word is a folder, it is meant.
    """

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        meant = Path(words[0]).is_dir() and not any(Path(word).is_dir() for word in words[1:])
        named = words[0] in self.commands and not meant
        return super().resolve_command(context, words if named else ["runs", *words])


@cli.group(cls=_ReportGroup)
def report() -> None:
    """Compare the runs in a folder, or analyse them: 'dhkd report DIR', or 'dhkd report ANALYSIS DIR'."""


@report.command("runs")
@click.argument("folder", type=PATH)
@click.option("--baseline", metavar="AXIS=VALUE", help="What each is compared with [default: objective=ce, else kd].")
@click.option("--html", type=PATH, metavar="FILE", help="Write it as a page, too: one file that needs no network.")
@json_option
def report_runs(folder: Path, baseline: str | None, html: Path | None, as_json: bool) -> None:
    """Compare the finished runs in FOLDER: accuracies over seeds, differences, cost. 'runs' may be left out."""
    from dhkd.data.runs.read import require_runs
    from dhkd.pipeline.cli.tables.runs import runs_table
    from dhkd.pipeline.report.analyses import report_comparison
    from dhkd.pipeline.report.comparison import compare, comparison_json
    from dhkd.pipeline.report.table import write_table

    runs = require_runs(folder)
    compared = compare(runs, baseline)
    path = write_table(runs, folder)
    lines = [runs_table(compared), *report_comparison(runs, compared, folder / "report"), f"Every run: {path}"]
    if html is not None:
        from dhkd.pipeline.report.page import write_page

        write_page(runs, folder, html, baseline)
        lines.append(f"Page: {html}")
    _emit(comparison_json(compared), as_json, "\n".join(lines))


@cli.command()
@click.argument("folder", type=PATH)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
@click.option("--baseline", metavar="AXIS=VALUE", help="What each is compared with [default: objective=ce, else kd].")
def serve(folder: Path, port: int, baseline: str | None) -> None:
    """Show the page of FOLDER's runs while they are trained, to this machine alone; Ctrl-C ends it."""
    from dhkd.pipeline.report.serve import server_of

    with server_of(folder, port, baseline) as server:
        click.echo(f"http://127.0.0.1:{server.server_port}/", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _analysis(name: str, *options: Callable[[F], F]) -> Callable[[Callable[..., "Analysis"]], click.Command]:
    """A command of `report` that reads the runs of a folder and writes files: --out says where."""
    common = _options(
        click.argument("folder", type=PATH),
        click.option("--out", type=PATH, help="Where table and pictures go [default: FOLDER/report]."),
        *options,
        json_option,
    )

    def decorate(function: Callable[..., "Analysis"]) -> click.Command:
        @functools.wraps(function)
        def analyse(folder: Path, out: Path | None, as_json: bool, **said: Any) -> None:
            from dhkd.data.runs.read import read_runs
            from dhkd.pipeline.cli.tables.runs import analysis_table
            from dhkd.pipeline.report.rows import analysis_json

            analysis = function(read_runs(folder), out or folder / "report", **said)
            _emit(analysis_json(analysis), as_json, analysis_table(analysis) if not as_json else "")

        return report.command(name)(common(cast(Any, analyse)))

    return decorate


_teacher_of_runs = click.option("--teacher", type=PATH, required=True, help=teacher_help)
_samples = click.option("--samples", type=click.IntRange(2), default=2000, show_default=True, help="How many images.")


@_analysis(
    "views",
    click.option(
        "--teacher-rate",
        type=click.FloatRange(0, min_open=True),
        metavar="ROWS/S",
        help="The teacher's images a second, as 'plan --measure' and cache-teacher print them: adds hours.",
    ),
)
def report_views(runs: Any, out: Path, teacher_rate: float | None) -> "Analysis":
    """Accuracy against the number of cached views: how many are enough, and what they cost."""
    from dhkd.pipeline.report import analyses

    return analyses.report_views(runs, out, teacher_rate=teacher_rate)


@_analysis("collapse")
def report_collapse(runs: Any, out: Path) -> "Analysis":
    """Accuracy and loss over training: cross-entropy and BinaryKL alone, on one head, on two."""
    from dhkd.pipeline.report import analyses

    return analyses.report_collapse(runs, out)


@_analysis(
    "conflict",
    click.option("--cache", required=True, help="The cache that they were trained from."),
    _samples,
    click.option("--temperature", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True),
    _data_options,
    cpu_option,
)
def report_conflict(runs: Any, out: Path, **said: Any) -> "Analysis":
    """Where cross-entropy's gradient and BinaryKL's point apart, over training."""
    from dhkd.pipeline.report import analyses

    return analyses.report_conflict(runs, said.pop("cache"), out, **_with_data(said))


@_analysis("correlation", _teacher_of_runs, _data_options, cpu_option)
def report_correlation(runs: Any, out: Path, **said: Any) -> "Analysis":
    """The teacher's correlation of logits less that of each student."""
    from dhkd.pipeline.report import analyses

    return analyses.report_correlation(runs, said.pop("teacher"), out, **_with_data(said))


@_analysis("tsne", _teacher_of_runs, _samples, _data_options, cpu_option)
def report_tsne(runs: Any, out: Path, **said: Any) -> "Analysis":
    """t-SNE of penultimate features, the teacher's and each student's."""
    from dhkd.pipeline.report import analyses

    return analyses.report_tsne(runs, said.pop("teacher"), out, **_with_data(said))


@_analysis("etf", click.option("--teacher", type=PATH, help=teacher_help), _data_options, cpu_option)
def report_etf(runs: Any, out: Path, **said: Any) -> "Analysis":
    """How far classes have collapsed to a simplex equiangular tight frame."""
    from dhkd.pipeline.report import analyses

    return analyses.report_etf(runs, said.pop("teacher"), out, **_with_data(said))


def _with_data(said: dict[str, Any]) -> dict[str, Any]:
    options = ("data_root", "download", "workers", "allow_bad", "fetched_gb")
    return {**{k: v for k, v in said.items() if k not in options}, "data": DataOptions(*(said[k] for k in options))}


@cli.command()
@preset_option
@click.option("--teacher", type=PATH, help="Evaluate these weights in the preset's teacher.")
@click.option("--student", type=PATH, help="Evaluate these weights in the preset's student.")
@precision_option
@data_options
@cpu_option
@json_option
def evaluate(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    teacher: Path | None,
    student: Path | None,
    precision: str | None,
    data: DataOptions,
    cpu: bool,
    as_json: bool,
) -> None:
    """Test accuracy of a run, or of weights in the preset's teacher or student.

    With a run's folder as PRESET and no further option, that run's network is evaluated.
    """
    run = Path(preset)
    if teacher is None and student is None and run.is_dir():
        teacher, student = (run, None) if (run / "teacher.safetensors").is_file() else (None, run)
    weights = teacher or student
    if weights is None or (teacher and student):
        raise click.UsageError("expected one of --teacher and --student, or a run's folder as PRESET")
    role = "teacher" if teacher else "student"
    settings = {f"{role}__precision": precision}
    experiment = _experiment(preset, overrides, smoke, **settings)
    from dhkd.pipeline import networks

    result = networks.evaluate_network(experiment, weights, role, data=data, cpu=cpu)
    _emit(
        result,
        as_json,
        f"{result['weights']}: {result['architecture']}, top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %"
        f" of {result['samples']} test images ({result['precision']})",
    )


@cli.command()
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, required=True, help="The new .safetensors file.")
@json_option
def export(run: Path, out: Path, as_json: bool) -> None:
    """Write a run's network, without its auxiliary head, as safetensors."""
    from dhkd.pipeline import networks

    result = networks.export(run, out)
    _emit(result, as_json, f"{out}: {result['architecture']}, {result['parameters']:,} parameters")


@cli.command()
@click.argument("cache")
@json_option
def inspect(cache: str, as_json: bool) -> None:
    """Say what a cache is, how complete, how large, and how exact."""
    from dhkd.pipeline import cache_care
    from dhkd.stages.report.tables import cache_table

    result = cache_care.inspect(cache)
    _emit(result, as_json, cache_table(result) if not as_json else "")


@cli.command()
@click.argument("cache")
@click.option("--preset", help="Compare pixels with the data set as well: the preset that the cache was made with.")
@overrides_option
@click.option("--teacher", type=PATH, help=f"{teacher_help} With --preset: recomputes logits as well.")
@click.option("--rows", type=click.IntRange(1), default=256, show_default=True, help="How many rows to render.")
@data_options
@cpu_option
@json_option
def verify(
    cache: str,
    preset: str | None,
    overrides: Sequence[str],
    smoke: bool,
    teacher: Path | None,
    rows: int,
    data: DataOptions,
    cpu: bool,
    as_json: bool,
) -> None:
    """Read all of a cache and check every byte of it; with --preset also pixels, with --teacher also logits.

    Whatever is damaged is listed; 'dhkd cache-teacher', run again with the same arguments, writes just that anew.
    """
    if preset is None and (teacher is not None or overrides or smoke):
        raise click.UsageError("--teacher, --set and --smoke go with --preset")
    experiment = _experiment(preset, overrides, smoke) if preset else None
    from dhkd.data.errors import CacheDamaged
    from dhkd.pipeline import cache_care

    result = cache_care.verify(cache, experiment, data=data, teacher=teacher, rows=rows, cpu=cpu)
    line = f"{cache}: good; {result['objects']} objects read, {result['bytes'] / 1e6:,.1f} MB"
    if "rows_rendered" in result:
        line += f"; {result['rows_rendered']} rows re-rendered, all equal"
    if "rows_recomputed" in result:
        line += (
            f"; {result['rows_recomputed']} rows recomputed,"
            f" largest difference {result['largest_difference_from_live']:.2g}, within tolerance"
        )
    damaged = result["damaged"]
    if not damaged or as_json:
        _emit(result, as_json, line)
    if damaged:
        listed = "; ".join(f"{one['key']} ({one['block'] or 'metadata'}): {one['reason']}" for one in damaged[:5])
        more = f"; and {len(damaged) - 5} more, which --json lists" if len(damaged) > 5 else ""
        raise CacheDamaged(
            f"cache at {cache}: {len(damaged)} of {result['objects']} objects are damaged: {listed}{more}; run 'dhkd"
            f" cache-teacher' again with the same arguments: it writes just those anew"
        )


@cli.command()
@click.argument("cache")
@click.argument("out")
@click.option("--store", type=click.Choice(["zarr", "webdataset"]), help="[default: as it is]")
@click.option("--codec", help="float32, float16, int8 or top-k [default: as it is]")
@click.option("--k", type=click.IntRange(1), help="With --codec top-k: how many logits of a row are kept.")
@click.option("--temperature", type=float, help="With --codec top-k: at which the others' probabilities are added up.")
@click.option("--allow-loss", is_flag=True, help="Convert even where values can't be had back.")
@json_option
def convert(
    cache: str,
    out: str,
    store: str | None,
    codec: str | None,
    k: int | None,
    temperature: float | None,
    allow_loss: bool,
    as_json: bool,
) -> None:
    """Write the cache CACHE anew at OUT: in another store, with another codec, or just elsewhere."""
    from dhkd.configs.load import parse_codec
    from dhkd.pipeline import cache_care

    wanted = parse_codec(codec, k, temperature) if codec or k or temperature else None
    result = cache_care.convert(cache, out, store=store, codec=wanted, allow_loss=allow_loss)
    _emit(
        result,
        as_json,
        f"{out}: complete, {result['store']}, {result['bytes'] / 1e6:,.1f} MB;"
        f" {result['blocks_written']} blocks written in {result['seconds']:.1f} s",
    )


@cli.group(invoke_without_command=True)
@json_option
@click.pass_context
def presets(context: click.Context, as_json: bool) -> None:
    """List the presets; 'show NAME' prints one, 'copy NAME FILE' makes it your own."""
    if context.invoked_subcommand is None:
        from dhkd.configs.load import load_experiment, preset_names
        from dhkd.stages.report.tables import presets_table

        experiments = {name: load_experiment(name) for name in preset_names()}
        rows = [
            {
                "name": name,
                "description": experiment.description,
                "data": experiment.data.source,
                "teacher": experiment.teacher.architecture,
                "student": experiment.student.architecture,
                **{key: experiment.record.get(key, {}) for key in ("parameters", "published", "published_top5")},
            }
            for name, experiment in experiments.items()
        ]
        _emit(rows, as_json, presets_table(rows))


@presets.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a preset."""
    from dhkd.configs.load import preset_text

    click.echo(preset_text(name), nl=False)


@presets.command()
@click.argument("name")
@click.argument("file", type=PATH)
def copy(name: str, file: Path) -> None:
    """Write a preset to a new file, to be edited and used by its path."""
    from dhkd.configs.load import preset_text
    from dhkd.data.disk.atomic import write_atomically

    text = preset_text(name)
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{file}: expected a name that ends in .yaml")
    if file.exists():
        raise ConfigError(f"{file}: expected a new file, it exists; choose another or remove it")
    write_atomically(file, lambda stream: stream.write(text.encode()))
    click.echo(f"{file}: use it as PRESET")


@cli.command()
@preset_option
@click.option("--samples", type=click.IntRange(2), metavar="N", help="Training samples, where the source can't tell.")
@click.option("--classes", type=click.IntRange(2), metavar="K", help="Classes, where the source can't tell.")
@click.option("--students", type=click.IntRange(1), metavar="S", help="How many students there are to be.")
@click.option("--teacher-rate", type=float, metavar="ROWS/S", help="How many images a second the teacher classifies.")
@click.option("--student-rate", type=float, metavar="ROWS/S", help="How many a second a student trains on.")
@click.option("--ratio", type=float, metavar="R", help="A teacher's forward as a share of a student's step.")
@click.option("--measure", is_flag=True, help="Time both networks on this machine, some seconds each.")
@cpu_option
@json_option
def plan(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    samples: int | None,
    classes: int | None,
    students: int | None,
    teacher_rate: float | None,
    student_rate: float | None,
    ratio: float | None,
    measure: bool,
    cpu: bool,
    as_json: bool,
) -> None:
    """Say what caching and training will cost, and from how many students on the cache pays. Reads no data."""
    if measure and any(rate is not None for rate in (teacher_rate, student_rate, ratio)):
        raise click.UsageError("--measure finds out --teacher-rate, --student-rate and --ratio; leave them out")
    experiment = _experiment(preset, overrides, smoke)
    from dhkd.pipeline.plan import Rates, make_plan
    from dhkd.stages.report.plan_table import plan_table

    rates = Rates(teacher_rate, student_rate, ratio)
    result = make_plan(
        experiment, samples=samples, classes=classes, rates=rates, measure=measure, students=students, cpu=cpu
    )
    _emit(result, as_json, plan_table(result) if not as_json else "")


@cli.command()
@click.argument("preset", default="cifar100/resnet32x4-resnet8x4")
@overrides_option
@click.option("--samples", type=click.IntRange(2), metavar="N", help="Training samples, where the source can't tell.")
@click.option("--classes", type=click.IntRange(2), metavar="K", help="Classes, where the source can't tell.")
@json_option
def methods(
    preset: str, overrides: Sequence[str], smoke: bool, samples: int | None, classes: int | None, as_json: bool
) -> None:
    """List the methods: what each needs of PRESET's teacher, how large that is, what is trained beside the student."""
    experiment = _experiment(preset, overrides, smoke)
    from dhkd.pipeline.methods import list_methods
    from dhkd.stages.report.tables import methods_table

    result = list_methods(experiment, samples=samples, classes=classes)
    _emit(result, as_json, methods_table(result) if not as_json else "")


@cli.command()
@click.option("--out", type=PATH, help="Folder for everything it makes [default: a new one under runs/].")
@cpu_option
@click.option("--smoke", is_flag=True, help="Seconds instead of minutes, and nothing learnt.")
@json_option
def demo(out: Path | None, cpu: bool, smoke: bool, as_json: bool) -> None:
    """Teacher, cache and four students on an embedded data set, in a few minutes on a CPU."""
    from dhkd.pipeline.demo import run_demo
    from dhkd.stages.report.tables import demo_table

    result = run_demo(out, cpu=cpu, smoke=smoke)
    _emit(result, as_json, demo_table(result) if not as_json else "")


@cli.command()
@click.option("--quick", is_flag=True, help="A smoke of seconds; its figures mean nothing.")
@click.option("--only", multiple=True, metavar="A,B", help="These points alone; an unknown one lists them.")
@click.option("--out", type=PATH, help="The JSON file [default: runs/bench.json, or runs/bench-quick.json].")
@click.option("--compare", nargs=2, type=PATH, metavar="A B", help="Measure nothing; compare two such files.")
@json_option
def bench(quick: bool, only: Sequence[str], out: Path | None, compare: tuple[Path, Path] | None, as_json: bool) -> None:
    """Measure dhkd's speed and memory on this machine, each figure beside its target."""
    if compare is not None:
        from dhkd.benchmarks.compare import comparison

        return click.echo(comparison(*compare))
    from dhkd.benchmarks.run import POINTS
    from dhkd.benchmarks.run import bench as measure

    out = out or Path("runs") / ("bench-quick.json" if quick else "bench.json")
    points = [point.strip() for points in only for point in points.split(",")]
    result, table = measure(points or POINTS, quick=quick, out=out)
    _emit(result, as_json, table)
    return None


def _experiment(preset: str, overrides: Sequence[str], smoke: bool, **settings: str | None) -> "Experiment":
    """The experiment; an option such as --precision is an override of its own, after all others."""
    from dhkd.configs.load import load_experiment

    extra = [f"{key.replace('__', '.')}={value}" for key, value in settings.items() if value is not None]
    return load_experiment(preset, [*overrides, *extra], smoke=smoke)


def _print_run(result: dict[str, Any], out: Path, as_json: bool) -> None:
    _emit(
        result,
        as_json,
        f"{out}: {result['architecture']} after {result['epochs']} epochs, top-1 {result['last_top1']:.2f} %"
        f" (best {result['best_top1']:.2f}), top-5 {result['last_top5']:.2f} %, {result['seconds']:.1f} s",
    )


def _emit(result: Any, as_json: bool, text: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:  # of several processes, one speaks
        click.echo(json.dumps(result, indent=2) if as_json else text)


def main() -> None:
    """Run the command line; errors that a user can cause are one line and an exit code, never a traceback."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("dhkd").setLevel(logging.INFO)
    debug = "--debug" in sys.argv
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DhkdError as error:
        _fail(str(error), error.exit_code, debug)
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        _fail(f"{name or 'the operating system says'}: {error.strerror or error}", 1, debug)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; the same command (with --resume for training) goes on from here", 1, debug)


def _fail(line: str, code: int, debug: bool) -> None:
    if debug:
        logging.getLogger("dhkd").exception("traceback of the error below")
    rank = os.environ.get("RANK")
    prefix = f"error (process {rank})" if rank is not None else "error"
    click.echo(f"{prefix}: {' '.join(line.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
