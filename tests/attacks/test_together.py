"""Processes that work together: told different things, killed, stopped, and never started. All are real processes."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks import together
from tests.e2e.command_line import ENVIRONMENT
from tests.forks import forked, joint_environments

pytestmark = pytest.mark.slow

SCRIPT = str(Path(together.__file__))
TRAIN = ["dhkd", "train-student", "digits", "--cpu", "--precision", "float32", "--set", "objective=ce"]
TRAIN += ["--set", "seed=3", "--set", "data.limit=150", "--set", "student=resnet8"]
LONG = ["--set", "student.epochs=400"]


def started(places: dict[str, str], words: list[str]) -> subprocess.Popen[str]:
    """Start one of two processes as a cluster's scheduler does: without torchrun, which would kill the other one."""
    return forked(words, {**ENVIRONMENT, **places})


@pytest.fixture
def pair() -> Iterator[list[subprocess.Popen[str]]]:
    """A list for processes that end with the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def error_of(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait until the process has ended with an error, and return its one line."""
    _, reported = process.communicate(timeout=seconds)
    lines = [line for line in reported.splitlines() if line.startswith("error")]
    assert process.returncode in (1, 2), reported
    assert len(lines) == 1, reported
    assert "Traceback" not in reported
    assert "gloo" not in reported.lower()
    return lines[0]


@pytest.fixture(scope="module")
def said() -> dict[int, dict[str, str | None]]:
    """What both processes said of every case, all in one start."""
    processes = [started(places, [SCRIPT, "agree"]) for places in joint_environments(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    results = [json.loads(printed.splitlines()[-1]) for printed, _ in outputs]
    return {result["rank"]: result["said"] for result in results}


@pytest.mark.parametrize("case", together.CASES)
def test_a_difference_is_named_in_each_process(case: str, said: dict[int, dict[str, str | None]]) -> None:
    _, expected = together.CASES[case]
    first, second = said[0][case], said[1][case]
    assert first == second
    if not expected:
        assert first is None
        return
    assert first is not None
    assert first.startswith("processes: expected the same in all 2, got ")
    assert all(words in first for words in expected), first
    assert "\n" not in first


@pytest.mark.soak  # in CI as cases of the agreement
def test_two_commands_that_differ(pair: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    for places, words in zip(joint_environments(2), ([], ["--set", "student.lr=0.001"]), strict=True):
        pair.append(started(places, [*TRAIN, *words, "--out", str(tmp_path / "run")]))
    for rank, process in enumerate(pair):
        line = error_of(process)
        assert line.startswith(f"error (process {rank}): processes: expected the same in all 2, got ")
        assert "student.lr 0.1 in process 0 and 0.001 in process 1" in line
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_process_that_never_begins_tells_the_other(
    rank: int, pair: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    for number, places in enumerate(joint_environments(2)):
        wrong = ["--set", "student.learning_rate=1"] if number == rank else []
        pair.append(started(places, [*TRAIN, *wrong, "--out", str(tmp_path / "run")]))
    assert "student.learning_rate" in error_of(pair[rank])
    line = error_of(pair[1 - rank], 60)
    assert line.startswith(f"error (process {1 - rank}): process {rank} of 2 ended: ")
    assert "student.learning_rate" in line


def test_a_killed_process_ends_the_other_within_a_minute(pair: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    words = [*TRAIN, *LONG, "--out", str(tmp_path / "run")]
    pair.extend(started(places, words) for places in joint_environments(2))
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.exists():
        assert time.monotonic() < until
        assert [process.poll() for process in pair] == [None, None]
        time.sleep(0.1)
    pair[1].kill()
    assert "process 1 of 2 died" in error_of(pair[0], 60)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_process_that_stands_still_is_named(rank: int, pair: list[subprocess.Popen[str]]) -> None:
    """The script warns after three seconds; a command warns after a minute."""
    pair.extend(started(places, [SCRIPT, "watch"]) for places in joint_environments(2))
    for process in pair:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    watching = pair[1 - rank].stdout
    assert watching is not None
    pair[rank].send_signal(signal.SIGSTOP)
    line = watching.readline()
    pair[rank].send_signal(signal.SIGCONT)
    assert line.startswith(f"process {rank} of 2 has ")
    assert line.strip().endswith(" s")
    pair[rank].kill()
    _, reported = pair[1 - rank].communicate(timeout=60)
    assert f"process {rank} of 2 died" in reported
    assert "Traceback" not in reported
