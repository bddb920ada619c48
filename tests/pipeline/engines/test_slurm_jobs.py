"""Jobs of Slurm, with stand-ins for its commands: job arrays, jobs that start again, refused nodes, cancelling."""

import ast
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dhkd.data.errors import ConfigError, DataError, ProcessError
from dhkd.pipeline.engines import slurm_pool
from dhkd.pipeline.engines.base import Engine, Needs
from dhkd.pipeline.engines.choice import EngineOptions, engine_of

from tests.engine_works import Acting, Refusing, Unit, left
from tests.slurm_commands import NODES, install

pytest.importorskip("submitit")

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the stand-ins keep what they were asked for."""
    for name, value in install(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)]))
    monkeypatch.setattr(slurm_pool, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(slurm_pool, "ASK_SECONDS", 0.5)
    (tmp_path / "works").mkdir()
    return tmp_path / "state"


@contextmanager
def on(state: Path, tasks: int, *options: str) -> Iterator[Engine]:
    settings = [f"folder={state.parent}/jobs", *options]
    with engine_of(EngineOptions("slurm", settings, tasks=tasks)) as engine:
        yield engine


def flags(state: Path) -> list[dict[str, str]]:
    """What sbatch was told, each time."""
    return [ast.literal_eval(line) for line in (state / "flags").read_text().splitlines()]


def test_jobs_are_an_array_with_what_a_task_needs(state: Path) -> None:
    works = state.parent / "works"
    with on(state, 2, "slurm_partition=small", "timeout_min=30") as engine:
        assert engine.has_gpus
        needs = Needs(cpus=1.5, gpus=2, memory_gb=3)
        ended = list(engine.run(Acting(works), [Unit(number) for number in range(5)], needs, print))
    assert sorted((each.unit.number, each.outcome) for each in ended) == [(n, n * n) for n in range(5)]
    assert {each.node for each in ended} <= set(NODES[:2])
    [told] = flags(state)
    wanted = {"array": "0-1%2", "partition": "small", "time": "30", "cpus-per-task": "2", "gpus-per-node": "2"}
    assert {**told, **wanted, "mem": "3GB", "job-name": "dhkd"} == told
    assert len(left(works, "work")) == len(left(works, "ended"))
    assert not (state.parent / "jobs").exists()


def test_a_job_that_slurm_preempts_starts_again_and_the_unit_is_not_lost(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dhkd")
    works = state.parent / "works"

    def preempt() -> None:
        while not (processes := left(works, "unit-1")):
            time.sleep(0.05)
        os.kill(processes[0], signal.SIGUSR2)  # with which Slurm warns a job, as submitit asks for it

    with on(state, 1) as engine:
        threading.Thread(target=preempt, daemon=True).start()
        [ended] = engine.run(Acting(works), [Unit(1, "wait-once")], Needs(), print)
    assert ended.outcome == 1
    assert len(left(works, "unit-1")) == 2
    assert len(flags(state)) == 1  # the same job, which Slurm has started again
    assert [record.getMessage() for record in caplog.records if "is to start again" in record.getMessage()]
    assert not [record for record in caplog.records if "was lost" in record.getMessage()]


def test_a_killed_job_is_noticed_and_submitted_again(state: Path) -> None:
    works = state.parent / "works"
    with on(state, 1) as engine:
        [ended] = engine.run(Acting(works), [Unit(1, "kill-once")], Needs(), print)
    assert ended.outcome == 1
    assert len(flags(state)) == 2


def test_refused_nodes_are_excluded_until_none_is_left(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    with on(state, 1, "slurm_exclude=node3") as engine, pytest.raises(DataError, match="data set cats"):
        list(engine.run(Refusing(), [Unit(1)], Needs(), print))
    assert [each.get("exclude") for each in flags(state)] == ["node3", "node3,node1", "node3,node1,node2"]
    told = [record.getMessage().partition(":")[0] for record in caplog.records if record.levelno == logging.ERROR]
    assert told == ["node1", "node2"]


def test_what_sbatch_refuses_is_one_line(state: Path) -> None:
    with on(state, 1, f"slurm_exclude={','.join(NODES)}") as engine, pytest.raises(ConfigError) as refused:
        list(engine.run(Acting(state.parent / "works"), [Unit(1)], Needs(), print))
    assert str(refused.value).startswith(
        "--on slurm: expected 1 jobs to be accepted, got sbatch: error: Requested node"
    )


def test_jobs_that_say_nothing_end_the_command_with_the_folder(state: Path) -> None:
    with on(state, 1, "slurm_setup=[exit 1]") as engine, pytest.raises(ProcessError) as refused:
        list(engine.run(Acting(state.parent / "works"), [Unit(1)], Needs(), print))
    assert "3 workers were lost before they began" in str(refused.value)
    assert f"expected jobs to write into {state.parent}/jobs/" in str(refused.value)


def test_a_command_that_is_left_cancels_its_jobs(state: Path) -> None:
    works = state.parent / "works"
    with on(state, 2) as engine:
        ended = engine.run(Acting(works), [Unit(1, "wait"), Unit(2), Unit(3, "wait")], Needs(), print)
        assert next(ended).outcome == 4
        ended.close()  # type: ignore[attr-defined]  # a generator
    assert sorted((state / "cancelled").read_text().split()) == ["1_0", "1_1"]
