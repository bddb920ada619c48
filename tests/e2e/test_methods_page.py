"""docs/methods.md: its worked example trains, and its table is what the program says."""

import re
from pathlib import Path

import pytest
from dhkd.benchmarks.method_table import method_table
from dhkd.configs.load import load_experiment
from dhkd.pipeline import training
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.train.objectives import OBJECTIVES

from tests.e2e.command_line import SMALL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()


def test_the_worked_example_trains(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 30
    (tmp_path / "cosine_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import cosine_of_mine  # type: ignore[import-not-found]

    monkeypatch.setitem(OBJECTIVES, "cosine", cosine_of_mine.Cosine)
    settings = [word for word in SMALL if "=" in str(word)]
    for objective in ("cosine", "dhkd + 0.5 * cosine"):
        experiment = load_experiment("digits", [*settings, f"objective={objective}"])
        out = tmp_path / objective.replace(" ", "")
        result = training.train_student(experiment, str(cache), out, data=DataOptions(), cpu=True)
        metrics = (out / "metrics.jsonl").read_text()
        assert '"cosine":' in metrics
        assert '"short":' in metrics
        assert result.distillation is not None
        assert result.distillation.objective == objective


def test_the_table_is_what_the_program_says() -> None:
    generated = [line.rsplit("|", 2)[0] for line in method_table({})]
    shown = {line.rsplit("|", 2)[0] for line in PAGE.splitlines() if line.startswith("|")}
    assert [line for line in generated if line not in shown] == []
