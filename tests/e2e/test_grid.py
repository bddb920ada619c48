"""`train-student --grid`: a student for every combination, side by side, each as it is alone."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from dhkd.configs.grid import combinations
from dhkd.data.errors import ConfigError

from tests.e2e.command_line import ENVIRONMENT, SMALL, dhkd, done, spawn

TWO_THREADS = {"env": {**ENVIRONMENT, "OMP_NUM_THREADS": "2"}}
GRID = ("--grid", "objective=ce,dhkd", "--grid", "seed=0,1")
NAMES = [f"objective={objective},seed={seed}" for objective in ("ce", "dhkd") for seed in (0, 1)]


def words_for(cache: Path, out: Path, *more: object, epochs: int = 2) -> list[object]:
    return [
        "train-student",
        "digits",
        *SMALL,
        "--set",
        f"student.epochs={epochs}",
        "--cache",
        cache,
        "--out",
        out,
        *more,
    ]


def result_of(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def test_names_of_own_code_stay_short_and_safe() -> None:
    grid = [
        "student.architecture=my_nets.py:A,/home/someone/nets/my_nets.py:B",
        "objective=kd + 2 * ../x-1/loss.py:far",
    ]
    assert combinations(grid) == {
        "student.architecture=my_nets.py_A,objective=kd_+_2_*_loss.py_far": [
            "student.architecture=my_nets.py:A",
            "objective=kd + 2 * ../x-1/loss.py:far",
        ],
        "student.architecture=my_nets.py_B,objective=kd_+_2_*_loss.py_far": [
            "student.architecture=/home/someone/nets/my_nets.py:B",
            "objective=kd + 2 * ../x-1/loss.py:far",
        ],
    }
    with pytest.raises(ConfigError, match="expected different values"):
        combinations(["student.architecture=a/nets.py:A,b/nets.py:A"])


def test_a_grid_becomes_named_combinations() -> None:
    assert combinations(["objective=ce,dhkd + 0.5 * kd", "student.milestones=[1,2],[3]"]) == {
        "objective=ce,student.milestones=_1,_2_": ["objective=ce", "student.milestones=[1, 2]"],
        "objective=ce,student.milestones=_3_": ["objective=ce", "student.milestones=[3]"],
        "objective=dhkd_+_0.5_*_kd,student.milestones=_1,_2_": [
            "objective=dhkd + 0.5 * kd",
            "student.milestones=[1, 2]",
        ],
        "objective=dhkd_+_0.5_*_kd,student.milestones=_3_": ["objective=dhkd + 0.5 * kd", "student.milestones=[3]"],
    }


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (["seed"], "--grid seed: expected KEY=VALUE,VALUE"),
        (["seed="], "--grid seed=: expected KEY=VALUE,VALUE"),
        (["=1,2"], "--grid =1,2: expected KEY=VALUE,VALUE"),
        (["seed=[1"], "expected KEY=VALUE,VALUE"),
        (["seed=1", "seed=2"], "expected each key once, got seed twice"),
        (["seed=1,1"], "expected different values, got seed=1 twice"),
    ],
)
def test_text_that_is_no_grid(grid: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        combinations(grid)
    assert says in str(error.value)


@pytest.mark.soak
def test_killed_and_resumed_each_student_is_as_it_is_alone(cache: Path, tmp_path: Path) -> None:
    """Four students at once on two threads, and each alone on one thread."""
    together, alone, epochs = tmp_path / "together", tmp_path / "alone", 8
    process = spawn(*words_for(cache, together, *GRID, epochs=epochs), **TWO_THREADS)
    while not all((together / name / "checkpoint" / "state.pt").exists() for name in NAMES):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not all((together / name / "result.json").exists() for name in NAMES), "it was killed too late"
    process = spawn(*words_for(cache, together, *GRID, "--resume", "--json", epochs=epochs), **TWO_THREADS)
    out, err = process.communicate()
    assert process.returncode == 0, err
    printed = json.loads(out)
    assert printed["failed"] == {}
    for name in NAMES:
        settings = [word for pair in name.split(",") for word in ("--set", pair)]
        done(*words_for(cache, alone / name, *settings, epochs=epochs))
        by_itself, of_four = result_of(alone / name), result_of(together / name)
        assert printed["runs"][str(together / name)] == of_four
        assert (by_itself["sha256"], by_itself["last_top1"]) == (of_four["sha256"], of_four["last_top1"])
        assert (by_itself["together"], of_four["together"]) == (1, 4)


def test_a_student_that_fails_does_not_stop_the_others(cache: Path, tmp_path: Path) -> None:
    words = words_for(cache, tmp_path, "--grid", "student.lr=1e30,0.01", "--set", "objective=kd")
    outcome = dhkd(*words)
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert "1 of 2 students ended early" in line
    assert "student.lr=1e30: loss term" in line
    assert result_of(tmp_path / "student.lr=0.01")["epochs"] == 2
    assert not (tmp_path / "student.lr=1e30" / "result.json").exists()
    again = dhkd(*words, "--resume", "--json")
    assert again.code == 1
    assert list(json.loads(again.out)["runs"]) == [str(tmp_path / "student.lr=0.01")]


def test_a_few_at_a_time(cache: Path, tmp_path: Path) -> None:
    printed = done(*words_for(cache, tmp_path, "--grid", "seed=0,1,2", "--together", 2, "--json", epochs=1)).result
    assert [run["together"] for run in printed["runs"].values()] == [2, 2, 1]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--together", 2], 2, "--together is for a --grid"),
        (["--grid", "student.precision=bf16,float32"], 2, "expected one student.precision, got bf16 and float32"),
        (["--grid", "teacher=resnet8,resnet14"], 2, "expected one teacher, got two that differ"),
        (["--grid", "student=torchvision:mobilenet_v2,resnet8"], 2, "draws from torch's own generator"),
        (["--grid", "objective=ce,dhdk"], 2, "unknown objective 'dhdk'"),
    ],
)
def test_impossible_grids(more: list[object], code: int, says: str, cache: Path, tmp_path: Path) -> None:
    words = [word for word in words_for(cache, tmp_path, epochs=1) if word not in ("--precision", "float32")]
    outcome = dhkd(*words, *more)
    assert outcome.code == code, outcome.err
    assert says in outcome.err
    assert not list(tmp_path.rglob("config.yaml"))
