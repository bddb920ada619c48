"""The console blocks of the docs run in order, in an empty folder, and print what stands there.

Such a block begins with ```console. Its lines that begin with $ are commands, and each is followed by lines that it
prints, of which some may be left out. Numbers may differ, and so may spaces. Files that a command needs are the page's
blocks whose first line is a comment with their name.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from dhkd.pipeline.cli import cli

from tests.e2e.command_line import dhkd

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [page.name for page in sorted(DOCS.glob("*.md")) if "```console\n" in page.read_text()]
SHORT = (
    *(
        "data.limit=40",
        "data.test_limit=40",
        "cache.views=2",
        "cache.codec=float32",
        "teacher=resnet8",
        "teacher.epochs=1",
    ),
    *("student.epochs=1", "teacher.lr=0.01", "teacher.allow_chance=true"),
    *("teacher.batch_size=20", "student.batch_size=20"),
)


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that it prints."""
    parts = re.split(r"^\$ ", re.sub(r"\\\n\s*", "", text), flags=re.MULTILINE)
    assert parts[0] == "", "a block begins with a command"
    return [(lines[0], [line for line in lines[1:] if line]) for lines in (part.split("\n") for part in parts[1:])]


def alike(line: str) -> str:
    """A line without its numbers and spaces."""
    return re.sub(r"[-+−]?\d[\d.,]*|\s|─", "", line)


def printed(command: str, short: bool) -> str:
    """Run a command and return what it prints."""
    words = shlex.split(command)
    if words[0] != "dhkd":
        words = [sys.executable if words[0] == "python" else words[0], *words[1:]]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    options = {option for parameter in cli.commands[words[1]].params for option in parameter.opts}
    settings = [word for setting in SHORT for word in ("--set", setting)] if short and "--set" in options else []
    local = [*(["--cpu"] if "--cpu" in options else []), *(["--workers", 0] if "--workers" in options else [])]
    outcome = dhkd(*words[1:], *settings, *local)
    assert outcome.code == 0, outcome.err
    return outcome.out + outcome.err


def test_there_is_a_page_with_such_blocks() -> None:
    assert "quickstart.md" in PAGES


@pytest.mark.slow
@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.soak)], ids=["short", "as it stands"])
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_print_what_the_page_shows(page: str, short: bool, no_own_code: Path) -> None:
    for language, text in blocks(page):
        named = re.match(r"# ([\w.-]+)\n", text)
        if named and language in ("python", "yaml"):
            Path(named[1]).write_text(text)
        if language == "console":
            for command, shown in commands(text):
                learned = not short or not command.startswith("dhkd predict")
                expected = shown if learned else shown[:1]  # which classes a network finds that has hardly learned
                lines = {alike(line) for line in printed(command, short).splitlines()}
                assert [line for line in expected if alike(line) not in lines] == [], command
