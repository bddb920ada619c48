"""Help: summaries are whole, every option is explained, every command is in the table."""

import ast
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from dhkd.pipeline.cli import COMMANDS, cli

FOLDER = Path(__file__).parents[3] / "pipeline" / "cli"


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below the group, with the words that name it."""
    yield " ".join(path), group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join([*path, name]), command


ALL = dict(commands(cli))
GROUPS = [path for path, command in ALL.items() if isinstance(command, click.Group)]


def help_of(path: str, columns: int) -> str:
    outcome = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli, [*path.split(), "--help"], terminal_width=columns)
    assert outcome.exit_code == 0
    return outcome.output


def commands_in(text: str) -> list[str]:
    """The lines of the commands in a help text."""
    return text.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()


@pytest.mark.parametrize("columns", [78, 80, 100])  # a terminal of 80 columns leaves 78
@pytest.mark.parametrize("group", GROUPS)
def test_summaries_are_whole(group: str, columns: int) -> None:
    """None is cut, and each takes one line: the first sentence of its command's help."""
    text = help_of(group, columns)
    assert "..." not in text.replace("[ARGS]...", "")
    listed = commands_in(text)
    command = ALL[group]
    assert isinstance(command, click.Group)
    summaries = {name: (one.help or "").partition("\n")[0].rstrip(".") for name, one in command.commands.items()}
    assert sorted(listed) == sorted(
        f"  {name.ljust(max(map(len, summaries)))}  {summary}." for name, summary in summaries.items()
    )


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize("group", GROUPS)
def test_a_narrow_terminal_wraps_summaries(group: str, columns: int) -> None:
    text = help_of(group, columns)
    listed = "".join(text.partition("Commands:\n")[2].split())
    command = ALL[group]
    assert isinstance(command, click.Group)
    for one in command.commands.values():
        assert "".join((one.help or "").partition("\n")[0].split()) in listed


@pytest.mark.parametrize("path", ALL)
def test_every_option_is_explained(path: str) -> None:
    unexplained = [
        option.opts[0] for option in ALL[path].params if isinstance(option, click.Option) and not option.help
    ]
    assert unexplained == []
    assert help_of(path, 80).startswith("Usage: cli")


def test_commands_are_listed_in_the_order_of_work() -> None:
    listed = [line.split()[0] for line in commands_in(help_of("", 80))]
    assert listed == [command.name for command in COMMANDS]
    order = ("plan", "train-teacher", "cache-teacher", "train-student", "report")
    assert sorted(order, key=listed.index) == list(order)


def test_every_command_of_a_file_is_in_the_table() -> None:
    """A function that is decorated as a command and missing in the table could not be called."""
    decorated = [
        function.name
        for file in FOLDER.glob("*.py")
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef)
        and any(ast.unparse(line).startswith(("click.command", "click.group")) for line in function.decorator_list)
    ]
    assert sorted(decorated) == sorted(["cli", *((command.name or "").replace("-", "_") for command in COMMANDS)])


def test_functions_take_few_parameters() -> None:
    """What several options say together is one value."""
    long = {
        f"{file.name}: {function.name}": len(function.args.args)
        for file in FOLDER.glob("*.py")
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef) and len(function.args.args) > 7
    }
    assert long == {}
