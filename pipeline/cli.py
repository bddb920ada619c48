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

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


preset_option = _options(
    click.argument("preset"),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the preset; repeatable.",
    ),
    click.option("--smoke", is_flag=True, help="Apply the preset's smoke settings: a run of seconds."),
)
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
        help="Disk for shards that were fetched from a URL.",
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
    data: DataOptions,
    cpu: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train the preset's teacher."""
    experiment = _experiment(preset, overrides, smoke, teacher__precision=precision)
    from dhkd.pipeline import commands

    result = commands.train_teacher(experiment, out, data=data, cpu=cpu, resume=resume)
    _print_run(result, out, as_json)


@cli.command("cache-teacher")
@preset_option
@click.option("--teacher", type=PATH, required=True, help=teacher_help)
@click.option("--out", type=PATH, required=True, help="The cache's folder, by habit NAME.zarr.")
@click.option("--views", help="How many views to cache: a number, or all.")
@click.option("--signals", help="Which of the teacher's outputs to cache, separated by commas.")
@precision_option
@data_options
@cpu_option
@json_option
def cache_teacher(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    teacher: Path,
    out: Path,
    views: str | None,
    signals: str | None,
    precision: str | None,
    data: DataOptions,
    cpu: bool,
    as_json: bool,
) -> None:
    """Run the teacher once over every view and cache its logits.

    Interrupted, it goes on where it stopped: run the same command again. Several processes share the work under
    'torchrun' or 'accelerate launch'.
    """
    experiment = _experiment(
        preset,
        overrides,
        smoke,
        cache__precision=precision,
        cache__views=views,
        cache__signals=None if signals is None else f"[{signals}]",
    )
    from dhkd.pipeline import commands

    words = ["dhkd", "cache-teacher", preset, "--teacher", str(teacher)]
    words += [word for override in overrides for word in ("--set", override)]
    words += [f"--views={views}"] if views else []
    words += [f"--precision={precision}"] if precision else []
    words += ["--smoke"] if smoke else []
    result = commands.cache_teacher(experiment, teacher, out, data=data, command=shlex.join(words), cpu=cpu)
    rate = f", {result['rows_per_second']:,.0f} rows/s" if result["rows_per_second"] else ""
    _emit(
        result,
        as_json,
        f"{out}: complete, {result['cache']['views']} views of {result['cache']['samples']} samples;"
        f" {result['blocks_written']} blocks written in {result['seconds']:.1f} s{rate};"
        f" largest difference from a live forward {result['largest_difference_from_live']:.2g}",
    )


@cli.command("train-student")
@preset_option
@click.option("--cache", type=PATH, required=True, help="The cache that 'dhkd cache-teacher' wrote.")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--teacher", type=PATH, help="Accept only a cache of this teacher: a run's folder or a file of weights.")
@click.option("--allow-drift", is_flag=True, help="Train even where pixels differ from those that the teacher saw.")
@precision_option
@data_options
@cpu_option
@resume_option
@json_option
def train_student(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    cache: Path,
    out: Path,
    teacher: Path | None,
    allow_drift: bool,
    precision: str | None,
    data: DataOptions,
    cpu: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a student from the cache.

    Choose the method with --set objective=NAME: ce, kd, binary-kl, binary-kl-norm or dhkd.
    """
    experiment = _experiment(preset, overrides, smoke, student__precision=precision)
    from dhkd.pipeline import commands

    result = commands.train_student(
        experiment, cache, out, data=data, teacher=teacher, allow_drift=allow_drift, cpu=cpu, resume=resume
    )
    _print_run(result, out, as_json)


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
    from dhkd.pipeline import commands

    result = commands.evaluate_network(experiment, weights, role, data=data, cpu=cpu)
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
    from dhkd.pipeline import commands

    result = commands.export(run, out)
    _emit(result, as_json, f"{out}: {result['architecture']}, {result['parameters']:,} parameters")


@cli.command()
@click.argument("cache", type=PATH)
@json_option
def inspect(cache: Path, as_json: bool) -> None:
    """Say what a cache is, how complete and how large."""
    from dhkd.pipeline import commands
    from dhkd.stages.report.tables import cache_table

    result = commands.inspect(cache)
    _emit(result, as_json, cache_table(result) if not as_json else "")


@cli.command()
@preset_option
@click.option("--cache", type=PATH, required=True, help="The cache to check.")
@click.option("--teacher", type=PATH, help=f"{teacher_help} Recomputes logits as well.")
@click.option("--rows", type=click.IntRange(1), default=256, show_default=True, help="How many rows to check.")
@data_options
@cpu_option
@json_option
def verify(
    preset: str,
    overrides: Sequence[str],
    smoke: bool,
    cache: Path,
    teacher: Path | None,
    rows: int,
    data: DataOptions,
    cpu: bool,
    as_json: bool,
) -> None:
    """Check a cache: pixels against the data set, and with --teacher logits against a live forward."""
    experiment = _experiment(preset, overrides, smoke)
    from dhkd.pipeline import commands

    result = commands.verify(experiment, cache, data=data, teacher=teacher, rows=rows, cpu=cpu)
    line = f"{cache}: good; {result['rows_rendered']} rows re-rendered, all equal"
    if teacher:
        line += (
            f"; {result['rows_recomputed']} rows recomputed,"
            f" largest difference {result['largest_difference_from_live']:.2g}, within tolerance"
        )
    _emit(result, as_json, line)


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
    from dhkd.data.files import write_atomically

    text = preset_text(name)
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{file}: expected a name that ends in .yaml")
    if file.exists():
        raise ConfigError(f"{file}: expected a new file, it exists; choose another or remove it")
    write_atomically(file, lambda stream: stream.write(text.encode()))
    click.echo(f"{file}: use it as PRESET")


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
