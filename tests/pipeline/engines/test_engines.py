"""What every engine does, on real workers: submitit's local executor, and a Ray cluster of one node."""

import itertools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from dhkd.data.errors import DataError, ProcessError
from dhkd.pipeline.engines.base import Ended, Engine, Needs
from dhkd.pipeline.engines.choice import EngineOptions, engine_of
from dhkd.pipeline.engines.same import CODE, Program, this_program

from tests.engine_works import Acting, Refusing, Unit, left

ROOT = Path(__file__).parents[3]
NEEDS = Needs(cpus=1)

Make = Callable[..., AbstractContextManager[Engine]]  # takes the number of tasks


@pytest.fixture(scope="module")
def python_path() -> Iterator[None]:
    """Let workers import the works of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@contextmanager
def on_slurm(tasks: int, path: str | None = None) -> Iterator[Engine]:
    """Run jobs as processes of this machine, with a PYTHONPATH of their own if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        setup = [] if path is None else [f'local_setup=["export PYTHONPATH={path}"]']
        options = EngineOptions("slurm:local", [f"folder={folder}/jobs", *setup], tasks=tasks)
        with engine_of(options) as engine:
            yield engine


def on_ray(tasks: int) -> AbstractContextManager[Engine]:
    return engine_of(EngineOptions("ray", tasks=tasks))


@pytest.fixture(scope="module", params=["slurm:local", pytest.param("ray", marks=pytest.mark.soak)])
def make(request: pytest.FixtureRequest, python_path: None) -> Iterator[Make]:
    """Make an engine; all tests share a Ray cluster of one node, which takes long to start."""
    if request.param == "slurm:local":
        pytest.importorskip("submitit")
        yield on_slurm
        return
    ray = pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        quiet = {"include_dashboard": False, "log_to_driver": False}
        ray.init("local", num_cpus=4, object_store_memory=10**8, _temp_dir=folder, **quiet)
        try:
            yield on_ray
        finally:
            ray.shutdown()


@dataclass
class Heard:
    """What came home from a run."""

    ended: list[Ended[Unit, int]]
    messages: list[tuple[str, object]]
    folder: Path

    def outcome(self, number: int) -> int | Exception:
        [outcome] = [ended.outcome for ended in self.ended if ended.unit.number == number]
        return outcome


def run(make: Make, units: Sequence[Unit], folder: Path, tasks: int = 2) -> Heard:
    messages: list[tuple[str, object]] = []
    with make(tasks) as engine:
        ended = list(engine.run(Acting(folder), units, NEEDS, lambda *message: messages.append(message)))
    return Heard(ended, messages, folder)


# one run of many units


NUM = 8


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def heard(make: Make, tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Heard:
    """More units than workers; some fail, and one kills its worker the first time."""
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dhkd").addHandler(handler)
    logging.getLogger("dhkd").setLevel(logging.INFO)
    lines.clear()
    actions = {2: "raise", 3: "raise-strange", 4: "exit", 5: "kill-once"}
    units = [Unit(number, actions.get(number, "square")) for number in range(NUM)]
    try:
        return run(make, units, tmp_path_factory.mktemp("works"))
    finally:
        logging.getLogger("dhkd").removeHandler(handler)


def test_every_unit_ends_once(heard: Heard) -> None:
    assert sorted(ended.unit.number for ended in heard.ended) == list(range(NUM))
    assert [heard.outcome(number) for number in (0, 1, 6, 7)] == [0, 1, 36, 49]


def test_a_failing_units_exception_comes_home(heard: Heard) -> None:
    failure, strange, ended = (heard.outcome(number) for number in (2, 3, 4))
    assert (type(failure), str(failure)) == (FloatingPointError, "unit 2")
    assert "raise FloatingPointError" in "".join(getattr(failure, "__notes__", []))
    assert (type(strange), str(strange)) == (ProcessError, "Strange: unit 3")
    assert (type(ended), str(ended)) == (ProcessError, "SystemExit: unit 4")


def test_the_unit_of_a_killed_worker_is_done_by_another(heard: Heard) -> None:
    assert heard.outcome(5) == 25
    first, second = left(heard.folder, "unit-5")
    assert first != second
    assert all(len(left(heard.folder, f"unit-{number}")) == 1 for number in range(NUM) if number != 5)


def test_each_worker_begins_the_work_once_and_no_more_than_the_tasks_work(heard: Heard) -> None:
    workers = left(heard.folder, "work")
    assert len(workers) == len(set(workers))
    assert 2 <= len(workers) <= 3  # two at a time, of which one was killed
    units = {process for number in range(NUM) for process in left(heard.folder, f"unit-{number}")}
    assert units <= set(workers)


def test_workers_end_their_work_when_no_unit_is_left(heard: Heard) -> None:
    assert set(left(heard.folder, "ended")) < set(left(heard.folder, "work"))
    assert not any(psutil.pid_exists(process) and _runs(process) for process in left(heard.folder, "work"))


def test_messages_come_home_in_order(heard: Heard) -> None:
    for number in (0, 1, 5, 6, 7):
        parts = [message for _, message in heard.messages if isinstance(message, tuple) and message[0] == number]
        assert parts == [(number, part) for part in range(3)]
    assert [message for _, message in heard.messages].count("begun") == len(left(heard.folder, "work"))
    assert all(node for node, _ in heard.messages)


def test_lines_of_the_log_come_home_with_the_node(heard: Heard, lines: list[str]) -> None:
    [node] = {node for node, _ in heard.messages}
    for number in (0, 1, 5, 6, 7):
        assert lines.count(f"{node}: unit {number}: done") == 1
    assert sum("a worker was lost" in line for line in lines) == 1


# losses and refusals


def test_a_unit_that_kills_each_worker_is_given_up(make: Make, tmp_path: Path) -> None:
    heard = run(make, [Unit(1, "kill"), Unit(2)], tmp_path, tasks=1)
    outcome = heard.outcome(1)
    assert type(outcome) is ProcessError
    assert "expected a worker to end it, got 3 lost workers" in str(outcome)
    assert heard.outcome(2) == 4
    assert len(left(tmp_path, "unit-1")) == 3


def test_if_no_node_can_begin_the_first_error_is_raised(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with make(1) as engine, pytest.raises(DataError) as refused:
        list(engine.run(Refusing(), [Unit(1), Unit(2)], NEEDS, print))
    assert str(refused.value) == "data set cats: expected a folder, found nothing"
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1
    assert told[0].endswith(": it gets no work: data set cats: expected a folder, found nothing")


def test_another_version_of_dhkd_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if make is on_slurm:
        for folder in ("pipeline", "stages", "data", "configs"):
            shutil.copytree(ROOT / folder, tmp_path / "dhkd" / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pipeline" / "package" / "__init__.py", tmp_path / "dhkd" / "__init__.py")
        with (tmp_path / "dhkd" / "stages" / "processes.py").open("a") as file:
            file.write("# a change\n")
        engine_for_other = on_slurm(1, path=f"{tmp_path}:{ROOT}")
    else:  # the cluster's processes have this code, so the command pretends to have another
        other = Program({**this_program().parts, CODE: "0" * 64})
        monkeypatch.setattr("dhkd.pipeline.engines.packed.this_program", lambda: other)
        engine_for_other = make(1)
    line = r"^program on .*: dhkd's code expected .*…, got .*…; install there"
    with engine_for_other as engine, pytest.raises(ProcessError, match=line):
        list(engine.run(Acting(tmp_path), [Unit(1)], NEEDS, print))
    assert left(tmp_path, "work") == []


def test_an_engine_that_is_left_ends_its_workers(make: Make, tmp_path: Path) -> None:
    """As after Ctrl-C."""
    with make(2) as engine:
        ended = engine.run(Acting(tmp_path), [Unit(1, "wait"), Unit(2), Unit(3, "wait")], NEEDS, print)
        assert next(ended).outcome == 4
        while not left(tmp_path, "unit-1"):
            time.sleep(0.1)
        ended.close()  # type: ignore[attr-defined]  # a generator
        workers = left(tmp_path, "work")
        for _ in itertools.takewhile(lambda _: any(map(_runs, workers)), range(200)):
            time.sleep(0.1)
        assert not any(map(_runs, workers))


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
