"""The options that say where a command's work runs: on this machine, on a Ray cluster, or as jobs of Slurm."""

import functools
from typing import Any

import click
from dhkd.pipeline.cli.options import FiniteRange, Function, gathered, options
from dhkd.pipeline.engines.choice import HERE, EngineOptions

_engine_options = (
    click.option(
        "--on",
        default=HERE,
        show_default=True,
        metavar="ENGINE",
        help="Where the work runs: here; ray (a cluster that Ray finds, or else one started on this machine) or"
        " ray://HOST:PORT; slurm, or slurm:local for jobs on this machine.",
    ),
    click.option(
        "--on-option",
        "on_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="With --on: an option for the engine, handed on as it is, for example slurm_partition=gpu; repeatable.",
    ),
    click.option(
        "--cpus",
        type=FiniteRange(0, min_open=True),
        help="With --on: CPU cores that one task needs [default: what the preset implies].",
    ),
    click.option(
        "--gpus",
        type=FiniteRange(0),
        help="With --on: GPUs that one task needs, for example 0.25 to let four tasks share a GPU [default: 1 if the"
        " cluster has any and --cpu is not given].",
    ),
    click.option(
        "--memory",
        "memory_gb",
        type=FiniteRange(0, min_open=True),
        metavar="GB",
        help="With --on: memory that one task needs, in GB [default: what the preset implies].",
    ),
    click.option(
        "--tasks",
        type=click.IntRange(1),
        metavar="N",
        help="With --on: at most N tasks at a time [default: as many as the cluster has room for].",
    ),
)


def engine_options(function: Function) -> Function:
    """Add --on and the options that go with it, gathered into the argument `engine`."""

    @functools.wraps(function)
    def checked(*, engine: EngineOptions, **parameters: Any) -> Any:
        if not engine.elsewhere and engine != EngineOptions():
            raise click.UsageError("--on-option, --cpus, --gpus, --memory and --tasks are for --on")
        return function(**parameters, engine=engine)

    return options(*_engine_options)(gathered("engine", EngineOptions)(checked))
