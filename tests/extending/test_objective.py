"""The example objective of docs/extending.md trains once it has a line in `OBJECTIVES`."""

from pathlib import Path

import pytest
from dhkd.stages.train.objectives import OBJECTIVES

from tests.e2e.command_line import SMALL, assert_one_line, dhkd, done
from tests.extending.examples import example


@pytest.fixture
def cosine(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(OBJECTIVES, "cosine", example("An objective")["Cosine"])
    return "cosine"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    done("train-teacher", "digits", *SMALL, "--out", tmp_path / "teacher")
    done("cache-teacher", "digits", *SMALL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "c.zarr")
    return tmp_path / "c.zarr"


def test_it_trains_alone_and_with_others(cosine: str, cache: Path, tmp_path: Path) -> None:
    for number, objective in enumerate((cosine, f"dhkd + 0.5 * {cosine}")):
        words = ["train-student", "digits", *SMALL, "--cache", cache, "--set", f"objective={objective}"]
        result = done(*words, "--set", "objectives.cosine.cosine_weight=2", "--out", tmp_path / str(number), "--json")
        assert result.result["objective"] == objective
        metrics = (tmp_path / str(number) / "metrics.jsonl").read_text()
        assert '"cosine":' in metrics
        assert '"short":' in metrics


def test_a_wrong_option_is_one_line(cosine: str, tmp_path: Path) -> None:
    words = ["train-student", "digits", *SMALL, "--set", "objective=cosine", "--set", "objectives.cosine.weight=2"]
    line = ["objective 'cosine': unknown option 'weight': did you mean 'cosine_weight'?"]
    assert_one_line(dhkd(*words, "--out", tmp_path / "never"), 2, line)
