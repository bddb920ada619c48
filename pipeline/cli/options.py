"""The options that several commands share, and the values in which a command's function receives them.

A decorator that adds options may also gather them: `@data_options` adds five options, for which the function takes one
`data`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click
from dhkd.pipeline.data_options import DataOptions

if TYPE_CHECKING:
    from dhkd.configs.schema import Experiment

Function = Callable[..., Any]  # a command's, which click calls with whatever it parsed
Decorator = Callable[[Function], Function]

PATH = click.Path(path_type=Path)
PRESET: Decorator = click.argument("preset")
CACHE_HELP = "The cache: a folder, or a URL (s3://, gs://, az://; https:// for reading)."
TEACHER_HELP = (
    "The teacher: a run's folder, a file of weights (.safetensors, .pth), or packaged[:TAG] for the weights that its"
    " library offers."
)


# Values


@dataclass(frozen=True)
class ExperimentOptions:
    """What describes an experiment: a preset and what is changed of it.

    `settings` are the `key=value` of options that are short for --set, such as --precision; they are applied last.
    """

    preset: str | None  # None only of 'verify', where it may be left out
    overrides: Sequence[str] = ()
    smoke: bool = False
    settings: Sequence[str] = ()

    def load(self, *overrides: str) -> "Experiment":
        """The experiment, with these further overrides. Raises `ConfigError`."""
        from dhkd.configs.load import load_experiment

        assert self.preset is not None
        return load_experiment(self.preset, [*self.overrides, *overrides, *self.settings], smoke=self.smoke)

    def load_grid(self, grid: Sequence[str]) -> dict[str, "Experiment"]:
        """The experiment of each combination of a grid of `key=a,b`, by the combination's name."""
        from dhkd.configs.grid import combinations

        return {name: self.load(*overrides) for name, overrides in combinations(grid).items()}


@dataclass(frozen=True)
class RunOptions:
    """Where a run goes, what it is trained from, and how it is carried out."""

    out: Path
    cache: str | None = None
    teacher: Path | None = None
    allow_drift: bool = False
    track: Sequence[str] = ()
    cpu: bool = False
    resume: bool = False


class Part(NamedTuple):
    """A share of the work: its number, from 0, and how many shares there are. As text I/N, with I from 1."""

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.parts}"


# From options to values


def options(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which --help lists them."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def gathered(argument: str, kind: Callable[..., Any]) -> Decorator:
    """Give a command's function one `argument` of the dataclass `kind` for all options that are named as its fields."""
    names = [field.name for field in fields(cast(Any, kind))]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_value(**parameters: Any) -> Any:
            values = {name: parameters.pop(name) for name in names if name in parameters}
            return function(**parameters, **{argument: kind(**values)})

        return with_value

    return decorate


def experiment_options(short_for: Mapping[str, str] | None = None, *, preset: Decorator = PRESET) -> Decorator:
    """PRESET, --set and --smoke, gathered as `experiment`.

    `short_for` maps the names of the command's options that are short for --set to the setting of each, with {} for the
    option's value.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_experiment(**parameters: Any) -> Any:
            values = {template: parameters.pop(name) for name, template in (short_for or {}).items()}
            settings = tuple(template.format(value) for template, value in values.items() if value is not None)
            names = ("preset", "overrides", "smoke")
            experiment = ExperimentOptions(**{name: parameters.pop(name) for name in names}, settings=settings)
            return function(**parameters, experiment=experiment)

        return options(preset, _set_option, _smoke_option)(with_experiment)

    return decorate


def data_options(function: Function) -> Function:
    """The options that say where data is and how it is read, gathered as `data`."""
    return options(*_data_options)(gathered("data", DataOptions)(function))


def _part(context: click.Context, parameter: click.Parameter, value: str) -> Part:
    number, slash, parts = value.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise click.BadParameter(f"expected I/N with I from 1 to N, got {value!r}", context, parameter)
    return Part(int(number) - 1, int(parts))


# Options

_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of the preset; repeatable."
)
_smoke_option = click.option("--smoke", is_flag=True, help="Apply the preset's smoke settings: a run of a few seconds.")
_data_options = (
    click.option(
        "--data-root",
        "root",
        help="Where the data set's files are: a folder (torchvision's layout, or one folder for each class), or the"
        " URL of its shards.",
    ),
    click.option("--download", is_flag=True, help="Download the data set if it is missing."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        help="How many processes decode photographs, for each process that computes [default: its share of the cores].",
    ),
    click.option(
        "--allow-bad",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Accept up to N unreadable files in each process: black images replace them, and the result lists them.",
    ),
    click.option(
        "--fetched-gb",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        help="Disk space for files fetched from URLs (shards of images, parts of caches), in GB.",
    ),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
cpu_option = click.option("--cpu", is_flag=True, help="Compute on the CPU even if there is a GPU.")
resume_option = click.option("--resume", is_flag=True, help="Continue the run in --out, if there is one.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bf16", "fp16"]),
    help="What the network computes in; auto is bf16 if the hardware supports it.",
)
compile_option = click.option(
    "--compile",
    "compiled",
    type=click.Choice(["off", "reduce-overhead", "max"]),
    help="reduce-overhead: a GPU replays each step as one graph; max: the network is compiled as well [default: off].",
)
track_option = click.option(
    "--track",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "mlflow", "none"]),
    help="Show runs in this tracker; repeatable. A tracker reads its own environment variables [default: tensorboard,"
    " if it is installed].",
)
allow_drift_option = click.option(
    "--allow-drift", is_flag=True, help="Train even if pixels differ from those that the teacher saw."
)
training_cache_option = click.option(
    "--cache", help=f"{CACHE_HELP} Not needed for ce, nor if the teacher runs in every step."
)
baseline_option = click.option(
    "--baseline", metavar="AXIS=VALUE", help="What the others are compared with [default: objective=ce, else kd]."
)
samples_option = click.option(
    "--samples", type=click.IntRange(2), metavar="N", help="Training samples, if the source doesn't say."
)
classes_option = click.option(
    "--classes", type=click.IntRange(2), metavar="K", help="Classes, if the source doesn't say."
)


def part_option(text: str) -> Decorator:
    """--part I/N, which gives a `Part`."""
    return click.option("--part", callback=_part, metavar="I/N", default="1/1", help=text)
