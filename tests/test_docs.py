"""The documentation matches the program: the messages in troubleshooting.md, commands and options, links."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from dhkd.configs.schema import Experiment
from dhkd.pipeline.cli import cli

ROOT = Path(__file__).parents[1]
SOURCES = [file for folder in ("data", "stages", "pipeline", "configs") for file in (ROOT / folder).rglob("*.py")]
HEADINGS = re.findall(r"^### (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


def messages() -> list[str]:
    """Return every string in the program, with an ellipsis for each value that is filled in."""
    strings = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                strings.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return strings


@pytest.fixture(scope="module")
def program_strings() -> list[str]:
    return messages()


def test_headings_are_found() -> None:
    assert len(HEADINGS) > 20


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_is_a_message_of_the_program(heading: str, program_strings: list[str]) -> None:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in heading.split("…")), re.DOTALL)
    assert any(pattern.search(message) for message in program_strings), heading


def documented() -> list[tuple[str, str]]:
    """Return the page and the line, from `dhkd` on, of every command in a code block; continued lines are joined."""
    commands = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                words = re.search(r"^(?:.* )?(dhkd [a-z].*)", line)
                if words:
                    commands.append((page.name, words[1].partition(" #")[0]))
    return commands


DOCUMENTED = documented()


def test_commands_are_found() -> None:
    assert len(DOCUMENTED) > 30
    assert {page for page, _ in DOCUMENTED} >= {"README.md", "experiments.md", "cache.md", "data.md", "methods.md"}


@pytest.mark.parametrize(("page", "line"), DOCUMENTED)
def test_a_documented_command_exists(page: str, line: str) -> None:
    """The program has a command of this name, and the command has these options."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        # `report DIR` is short for `report runs DIR`.
        name = words[0] if command is not cli.commands["report"] or words[0] in command.commands else "runs"
        named = command.get_command(context, name)
        assert named is not None, line
        words = words[1:] if name == words[0] else words
        if isinstance(named, click.Group) and (not words or words[0].startswith("-")):
            break
        command = named
    options = {option for parameter in named.params for option in parameter.opts}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]
    assert unknown == [], line


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    assert len(links) > 5
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_compares_with_the_programs_of_the_whole_comparison() -> None:
    """Both tables say the same of licenses, and leave no program out."""
    licenses = []
    for page in ("README.md", "docs/comparison.md"):
        lines = [line.strip("| ") for line in (ROOT / page).read_text().splitlines()]
        (row,) = [line.split(" | ") for line in lines if line.startswith("license |")]
        headers = {line for line in lines if line.startswith("dhkd | torchdistill |")}
        assert len(headers) == 1, page
        licenses.append(row)
        assert len(row) == 7
    short, whole = licenses
    assert all(
        full.startswith(word) or (word, full) == ("none", "no license file")
        for word, full in zip(short, whole, strict=True)
    )


def test_pages_that_the_program_names_exist(program_strings: list[str]) -> None:
    named = {page for text in program_strings for page in re.findall(r"docs/[\w/-]+\.md", text)}
    assert "docs/data.md" in named
    assert [page for page in named if not (ROOT / page).is_file()] == []


def undescribed(model: Any, prefix: str = "") -> list[str]:
    """The settings of a section, and of those within it, that say nothing of their meaning."""
    lacking = []
    for name, field in model.model_fields.items():
        sections = [one for one in (field.annotation, *get_args(field.annotation)) if hasattr(one, "model_fields")]
        if not field.description and not sections:
            lacking.append(f"{prefix}{name}")
        lacking += [key for section in sections for key in undescribed(section, f"{prefix}{name}.")]
    return lacking


def test_every_setting_says_what_it_means() -> None:
    assert undescribed(Experiment) == []
