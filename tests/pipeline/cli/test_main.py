"""What `dhkd` does with errors and with results, whatever the command."""

import json

import click
import pytest
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.pipeline.cli import cli
from dhkd.pipeline.cli.output import emit

from tests.e2e.command_line import dhkd


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command 'raise' that raises the one error put into this list."""
    errors: list[BaseException] = []

    def function() -> None:
        raise errors[0]

    monkeypatch.setitem(cli.commands, "raise", click.Command("raise", callback=function))
    return errors


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a: expected 1,\n got 2"), 2, "error: a: expected 1, got 2"),
        (CacheMismatch("cache at c: other"), 1, "error: cache at c: other"),
        (
            FileNotFoundError(2, "No such file or directory", "x/y"),
            1,
            "error: x/y: No such file or directory; check the path",
        ),
        (
            FileNotFoundError(2, "No such file or directory", b"x/y"),
            1,
            "error: x/y: No such file or directory; check the path",
        ),
        (OSError("out of order"), 1, "error: operating system: out of order"),
        (
            KeyboardInterrupt(),
            130,
            "error: interrupted; run the same command again to continue (training needs --resume)",
        ),
        (click.Abort(), 130, "error: interrupted; run the same command again to continue (training needs --resume)"),
    ],
    ids=repr,
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, raising: list[BaseException]
) -> None:
    raising.append(error)
    outcome = dhkd("raise")
    assert (outcome.code, outcome.out, outcome.err.strip()) == (code, "", line)


def test_wrong_usage_ends_with_the_reason(raising: list[BaseException]) -> None:
    raising.append(click.UsageError("expected --grid"))
    outcome = dhkd("raise")
    assert (outcome.code, outcome.out, outcome.err.splitlines()[-1]) == (2, "", "Error: expected --grid")


def test_one_of_several_processes_says_which(raising: list[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    raising.append(CacheMismatch("other"))
    assert dhkd("raise").err == "error (process 3): other\n"


def test_debug_adds_the_traceback(raising: list[BaseException]) -> None:
    raising.append(CacheMismatch("other"))
    lines = dhkd("--debug", "raise").err.splitlines()
    assert lines[0] == "traceback of the error below"
    assert "CacheMismatch: other" in lines[-2]
    assert lines[-1] == "error: other"


def test_a_fault_of_the_program_is_not_hidden(raising: list[BaseException]) -> None:
    raising.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        dhkd("raise")


def test_a_result_is_printed_as_text_or_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    def never() -> str:
        raise AssertionError("a table that nobody sees was made")

    emit({"a": 1}, False, lambda: "one line")
    assert capsys.readouterr().out == "one line\n"
    emit({"a": [1, None]}, True, never)
    assert json.loads(capsys.readouterr().out) == {"a": [1, None]}


def test_the_first_of_several_processes_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        emit({}, False, lambda: "one line")
        printed.append(capsys.readouterr().out)
    assert printed == ["one line\n", ""]
