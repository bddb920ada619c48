"""Options that several commands share, and the dataclasses in which a command's function receives their values.

A decorator that adds options may also gather their values into one argument: `@data_options` adds five options, and the
function receives them as one argument, `data`.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click
from dhkd.pipeline.cli.paths import LOCATION, PRESET_OR_RUN
from dhkd.pipeline.data_options import DataOptions

if TYPE_CHECKING:
    from dhkd.configs.schema import Experiment

Function = Callable[..., Any]  # a command's function; click calls it with the values of all options
Decorator = Callable[[Function], Function]

PRESET: Decorator = click.argument("preset", type=PRESET_OR_RUN)
CACHE_HELP = "Location of the cache: a folder, or a URL (s3://, gs://, az://; https:// and hf:// are read-only)."
TEACHER_HELP = (
    "A run's folder, a weights file (.safetensors, .pth), FILE::KEY for one of several networks in a file, or"
    " packaged[:TAG] for the pretrained weights that torchvision or timm provides (TAG chooses among several)."
)


# Values


@dataclass(frozen=True)
class ExperimentOptions:
    """A preset, and the changes to it that make up an experiment.

    `overrides` are the `key=value` arguments of --set. `settings` are the `key=value` forms of options that are short
    for --set, such as --precision; they are applied last.
    """

    preset: str | None  # None only for 'verify', where the preset is optional
    overrides: Sequence[str] = ()
    smoke: bool = False
    settings: Sequence[str] = ()

    def load(self, *overrides: str) -> "Experiment":
        """Load the experiment, with further overrides after those of --set. Raises `ConfigError`."""
        from dhkd.configs.load import load_experiment

        assert self.preset is not None
        return load_experiment(self.preset, [*self.overrides, *overrides, *self.settings], smoke=self.smoke)

    def load_grid(self, grid: Sequence[str]) -> dict[str, "Experiment"]:
        """Load the experiment of every combination of a grid of `key=a,b`; the keys are the combinations' names."""
        from dhkd.configs.grid import combinations

        return {name: self.load(*overrides) for name, overrides in combinations(grid).items()}


@dataclass(frozen=True)
class RunOptions:
    """Where a run is written, what it is trained from, and how it is carried out."""

    out: str
    cache: str | None = None
    teacher: Path | None = None
    allow_drift: bool = False
    track: Sequence[str] = ()
    cpu: bool = False
    resume: bool = False


class Part(NamedTuple):
    """A share of the work: its number, from 0, and the number of shares. As text it is I/N, where I counts from 1."""

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.parts}"


# From options to values


def options(*decorators: Decorator) -> Decorator:
    """Combine several options into one decorator; --help lists them in the order of the arguments."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def gathered(argument: str, kind: Callable[..., Any]) -> Decorator:
    """Gather options into one `argument` of the command's function.

    The argument is an instance of the dataclass `kind`, built from all options that have the name of one of its fields.
    """
    names = [field.name for field in fields(cast(Any, kind))]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_value(**parameters: Any) -> Any:
            values = {name: parameters.pop(name) for name in names if name in parameters}
            return function(**parameters, **{argument: kind(**values)})

        return with_value

    return decorate


def own_code_options(function: Function) -> Function:
    """Add --import and --allow-changed-code; the command's function runs after the code was loaded."""

    @functools.wraps(function)
    def with_own_code(*, imports: Sequence[str], allow_changed_code: bool, **parameters: Any) -> Any:
        from dhkd.data.own_code import imported

        imported(imports, allow_changed=allow_changed_code)
        return function(**parameters)

    return options(_import_option, _allow_changed_code_option)(with_own_code)


def experiment_options(short_for: Mapping[str, str] | None = None, *, preset: Decorator = PRESET) -> Decorator:
    """Add PRESET, --set and --smoke, gathered into the argument `experiment`, and the options for user code.

    `short_for` lists the command's options that are short for --set: it maps the name of each to a `key=value` template
    in which {} stands for the option's value, for example {"precision": "student.precision={}"}.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_experiment(**parameters: Any) -> Any:
            values = {template: parameters.pop(name) for name, template in (short_for or {}).items()}
            settings = tuple(template.format(value) for template, value in values.items() if value is not None)
            names = ("preset", "overrides", "smoke")
            experiment = ExperimentOptions(**{name: parameters.pop(name) for name in names}, settings=settings)
            return function(**parameters, experiment=experiment)

        return options(preset, _set_option, _smoke_option, own_code_options)(with_experiment)

    return decorate


def data_options(function: Function) -> Function:
    """Add the options that set where data is and how it is read, gathered into the argument `data`."""
    return options(*_data_options)(gathered("data", DataOptions)(function))


def _part(context: click.Context, parameter: click.Parameter, value: str) -> Part:
    number, slash, parts = value.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise click.BadParameter(f"expected I/N with I from 1 to N, got {value!r}", context, parameter)
    return Part(int(number) - 1, int(parts))


class FiniteRange(click.FloatRange):
    """A range of numbers without infinity and NaN, which click lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number that the text `value` stands for."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}", param, ctx)
        return number


# Options

_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of the preset; repeatable."
)
_smoke_option = click.option(
    "--smoke", is_flag=True, help="Use the preset's smoke-test settings, for a run of a few seconds."
)
_import_option = click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="FILE|MODULE",
    help="Run this Python file or module, whose functions and classes settings may then name as FILE.py:NAME or"
    " MODULE:NAME; repeatable. DHKD_IMPORT does the same.",
)
_allow_changed_code_option = click.option(
    "--allow-changed-code",
    is_flag=True,
    help="Go on even if a file with code has changed since the run or cache that used it was made.",
)
_data_options = (
    click.option(
        "--data-root",
        "root",
        type=LOCATION,
        help="Location of the data set: a folder (torchvision's layout, or train/ and val/ with one subfolder per"
        " class) or the URL of its shards.",
    ),
    click.option("--download", is_flag=True, help="Download the data set if it is missing."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        help="Image-decoding worker processes per compute process [default: the cores divided evenly among compute"
        " processes].",
    ),
    click.option(
        "--allow-bad",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Tolerate up to N unreadable files per compute process; each file is replaced by a black image and listed"
        " in the result.",
    ),
    click.option(
        "--fetched-gb",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        help="Disk space for files fetched from URLs, in GB: this much for image shards, and as much for caches.",
    ),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of text.")
cpu_option = click.option("--cpu", is_flag=True, help="Use the CPU even if there is a GPU.")
resume_option = click.option("--resume", is_flag=True, help="Continue the run in the --out folder if it has begun.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bf16", "fp16"]),
    help="Numeric precision of the network; auto is bf16 if the hardware supports it, or else float32.",
)
compile_option = click.option(
    "--compile",
    "compiled",
    type=click.Choice(["off", "reduce-overhead", "max"]),
    help="reduce-overhead: replay each step as a CUDA graph (GPU only); max: also compile the network [default: off].",
)
track_option = click.option(
    "--track",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "mlflow", "none"]),
    help="Log runs to this tracker; repeatable [default: tensorboard, if installed]. Trackers are configured through"
    " their usual environment variables.",
)
allow_drift_option = click.option(
    "--allow-drift", is_flag=True, help="Train even if the rendered images differ from those that the teacher saw."
)
training_cache_option = click.option(
    "--cache",
    type=LOCATION,
    help=f"{CACHE_HELP} Not needed for methods that use no teacher, such as ce, or if the teacher runs in every step"
    " (teacher.live=true).",
)
baseline_option = click.option(
    "--baseline",
    metavar="AXIS=VALUE",
    help="Compare the other runs with those whose setting AXIS, one of the --grid, has this value"
    " [default: objective=ce if present, or else objective=kd].",
)
samples_option = click.option(
    "--samples",
    type=click.IntRange(2),
    metavar="N",
    help="Number of training images; needed if the data source doesn't state it.",
)
classes_option = click.option(
    "--classes",
    type=click.IntRange(2),
    metavar="K",
    help="Number of classes; needed if the data source doesn't state it.",
)


def part_option(text: str) -> Decorator:
    """Add the option --part I/N, whose value is a `Part`; `text` is its help."""
    return click.option("--part", callback=_part, metavar="I/N", default="1/1", help=text)
