"""The command line that a cache or a sweep records, rebuilt from click's parameters so that no option is forgotten."""

import shlex
from collections.abc import Collection, Iterator
from typing import Any

import click
from click.core import ParameterSource
from dhkd.data.shown import redacted

# Options that a cache does not record, because a cache must be the same to the bit on whichever machine it is written:
# where files are, which share of the work this call does, and how this machine, or which others, do it.
OF_THE_MACHINE = frozenset(
    {
        *(
            "--out",
            "--part",
            "--data-root",
            "--download",
            "--workers",
            "--allow-bad",
            "--fetched-gb",
            "--cpu",
            "--json",
        ),
        *("--on", "--on-option", "--cpus", "--gpus", "--memory", "--tasks"),
    }
)


def recorded_command(context: click.Context, *, without: Collection[str] = ()) -> str:
    """Return the command of `context` with every given option except those in `without`, quoted for a shell.

    Passwords and signatures in URLs are left out.

    The order of options does not depend on how the command was typed: arguments, required options, repeatable options,
    other options with a value, flags; within each of these, the order in which the command declares them.
    """
    arguments: list[str] = []
    required: list[str] = []
    repeatable: list[str] = []
    optional: list[str] = []
    flags: list[str] = []
    for parameter, value in _given(context):
        option = parameter.opts[0]
        if option in without:
            continue
        if isinstance(parameter, click.Argument):
            arguments.append(str(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            flags.append(option)
        elif parameter.multiple:
            repeatable += [word for one in value for word in (option, str(one))]
        elif parameter.required:
            required += [option, str(value)]
        else:
            optional.append(f"{option}={value}")
    words = [*arguments, *required, *repeatable, *optional, *flags]
    return shlex.join(["dhkd", str(context.info_name), *map(redacted, words)])


def _given(context: click.Context) -> Iterator[tuple[click.Parameter, Any]]:
    """Yield each parameter that was given, with the value that click parsed; skip empty strings."""
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params[name]
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT and value not in ("", None):
            yield parameter, value
