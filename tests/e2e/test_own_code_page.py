"""docs/own-code.md: its files and commands, in order, as they stand there, on few images."""

import os
import re
import shlex
from pathlib import Path

import pytest
from dhkd.pipeline.cli import cli

from tests.e2e.command_line import dhkd, done

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "own-code.md").read_text()
SHORT = (
    *("data.limit=150", "data.test_limit=100", "cache.views=2", "teacher.epochs=1", "student.epochs=1"),
    *("teacher.milestones=[]", "student.milestones=[]", "teacher.allow_chance=true"),
)


def blocks(kind: str, page: str = PAGE) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [text for language, text in fenced if language == kind]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("") for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("dhkd ")]


@pytest.mark.slow
def test_the_files_and_commands_of_the_page(no_own_code: Path) -> None:
    for text in blocks("python"):
        Path(text.partition("\n")[0].removeprefix("# ")).write_text(text)
    recipe = (DOCS / "extending.md").read_text().split("\n## A recipe\n")[1]
    Path("my_views.py").write_text(blocks("python", recipe)[0])
    for words in commands():
        options = {option for parameter in cli.commands[words[0]].params for option in parameter.opts}
        short = [word for setting in SHORT for word in ("--set", setting)] if "--set" in options else []
        cpu = ["--cpu", "--precision", "float32"] if "--precision" in options else []
        done(*words, *short, *cpu)
    runs = sorted(path.name for path in Path("runs/swept").iterdir() if path.is_dir() and path.name != "report")
    assert runs == [
        f"student.architecture={student},objective={objective}"
        for student in ("my_nets.py_Plain", "resnet8")
        for objective in ("kd", "kd_+_my_loss.py_far")
    ]
    assert "far" in Path("runs/far/metrics.jsonl").read_text()
    os.environ.pop("DHKD_IMPORT", None)
    assert dhkd("evaluate", "runs/plain", "--import", "my_nets.py", "--cpu").code == 0
