"""The example command of docs/extending.md works like the built-in commands once it is added to `cli`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from dhkd.pipeline.cli import cli

from tests.e2e.command_line import SMALL, assert_one_line, dhkd, done
from tests.extending.examples import example


@pytest.fixture(autouse=True)
def best() -> Iterator[None]:
    cli.add_command(example("A command")["best"])
    yield
    del cli.commands["best"]


def test_it_is_listed_and_explained() -> None:
    assert "Name the finished run in FOLDER" in done("--help").out
    assert "--json" in done("best", "--help").out


def test_it_names_the_best_run(tmp_path: Path) -> None:
    words = ["--set", "student=resnet8", "--set", "student.epochs=1", "--set", "objective=ce"]
    done("sweep", "digits", *SMALL, *words, "--grid", "student.lr=0.05,1e-9", "--out", tmp_path / "runs")
    accuracies = {
        file.parent.name: json.loads(file.read_bytes())["last_top1"]
        for file in (tmp_path / "runs").glob("*/result.json")
    }
    assert len(accuracies) == 2
    name, top1 = max(accuracies.items(), key=lambda item: item[1])
    assert done("best", tmp_path / "runs", "--json").result == {"run": name, "top1": top1}
    assert done("best", tmp_path / "runs").out == f"{name}: top-1 {top1:.2f} %\n"


def test_a_folder_without_runs_is_one_line(tmp_path: Path) -> None:
    assert_one_line(dhkd("best", tmp_path), 1, ["expected finished runs of train-student or sweep"])
