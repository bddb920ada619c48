"""The programs and the notebook in examples/, as they stand there, learn something."""

import json
import re
import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.command_line import SMALL, done

EXAMPLES = Path(__file__).parents[2] / "examples"
LONGEST = 40  # lines
# From a program to the package that it is about, and the words after the cache.
PROGRAMS = {
    "pytorch_loop": ("torch", []),
    "huggingface_trainer": ("transformers", ["trainer"]),
    "lightning_distill": ("pytorch_lightning", []),
    "timm_student": ("timm", []),
}
LONGER = {"data.limit=150": "data.limit=450", "teacher.epochs=1": "teacher.epochs=5"}


@pytest.fixture(scope="module")
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 450 digits and a teacher that knows them."""
    folder = tmp_path_factory.mktemp("examples")
    words = [LONGER.get(word, word) for word in SMALL]
    done("train-teacher", "digits", *words, "--out", folder / "teacher")
    done("cache-teacher", "digits", *words, "--teacher", folder / "teacher", "--out", folder / "digits.zarr")
    return folder / "digits.zarr"


def accuracies(printed: str) -> Sequence[float]:
    return [float(number) for number in re.findall(r"accuracy (0\.\d+)", printed)]


def test_every_program_is_run_and_short() -> None:
    programs = sorted(EXAMPLES.glob("*.py"))
    assert {file.stem for file in programs} == set(PROGRAMS)
    assert [file.name for file in programs if len(file.read_text().splitlines()) > LONGEST] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_learns(
    name: str, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, words = PROGRAMS[name]
    pytest.importorskip(package, reason=f"the example needs {package}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, str(digits_cache), *words])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, for their authors
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert accuracies(capsys.readouterr().out)[-1] > 0.25, "guessing gives 0.1"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_a_table(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient")
    nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbformat")
    file = EXAMPLES / "own_network.ipynb"
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "committed without"
    executed = nbclient.NotebookClient(
        notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = {number: cell.outputs for number, cell in enumerate(executed.cells) if cell.cell_type == "code"}
    shown = [output.get("data", {}) for of_cell in outputs.values() for output in of_cell]
    tables = [data["text/html"] for data in shown if "text/html" in data]
    assert len(tables) == 1
    assert tables[0].count("<tr>") == 4
    assert "cosine" in tables[0]
    assert max(len(of_cell) for of_cell in outputs.values()) <= 3, "a cell has its progress, its result, and a warning"
    assert len(json.dumps(outputs)) < 20_000
