"""The engine on a Ray cluster of three nodes: units, messages, lost workers and nodes, nodes that can't begin."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dhkd.data.errors import ConfigError, DataError, ProcessError
from dhkd.pipeline.engines.base import Ended, Needs, Tell
from dhkd.pipeline.engines.choice import EngineOptions, engine_of

from tests.ray_clusters import Nodes, ray_cluster

if TYPE_CHECKING:
    from dhkd.pipeline.engines.ray import RayEngine

pytestmark = [pytest.mark.soak, pytest.mark.timeout(120)]  # a cluster takes long to start

ONE = Needs()
BAD = "DHKD_TEST_BAD_NODE"


@dataclass(frozen=True)
class Doing:
    """A work whose units are words that say what to do."""

    folder: Path

    @contextlib.contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[str], str]]:
        if os.environ.get(BAD):
            raise DataError(f"data: expected some, got {os.environ[BAD]}")
        tell("begun")
        yield lambda unit: self._do(unit, tell)
        (self.folder / "tidied").touch()

    def _do(self, unit: str, tell: Tell) -> str:
        logging.getLogger("dhkd").info("doing %s", unit)
        word, _, argument = unit.partition(" ")
        match word:
            case "fail":
                raise DataError(argument)
            case "exit":
                raise SystemExit(3)
            case "die":
                os._exit(1)
            case "wait":  # for a file of this name
                while not (self.folder / argument.partition(" ")[0]).exists():
                    time.sleep(0.02)
            case "count":
                for number in range(int(argument)):
                    tell(number)
        return f"{unit} with {os.environ['OMP_NUM_THREADS']} threads"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_cluster() as cluster:
        cluster.add("one")
        cluster.add("two")
        yield cluster


@pytest.fixture
def engine(nodes: Nodes) -> Iterator["RayEngine"]:
    with engine_of(EngineOptions("ray", [f"address={nodes.address}"])) as engine:
        from dhkd.pipeline.engines.ray import RayEngine  # late, so that only processes of these tests load Ray

        assert isinstance(engine, RayEngine)
        yield engine


def done(engine: "RayEngine", folder: Path, *units: str, needs: Needs = ONE) -> tuple[dict[str, object], list[object]]:
    """Outcomes by unit, and what was heard, by node."""
    heard: list[object] = []
    ended: list[Ended[str, str]] = list(engine.run(Doing(folder), units, needs, lambda *said: heard.append(said)))
    assert sorted(each.unit for each in ended) == sorted(units)
    return {each.unit: each.outcome for each in ended}, heard


def test_units_errors_and_messages(engine: "RayEngine", tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dhkd")
    outcomes, heard = done(engine, tmp_path, "count 100", "fail x", "exit")
    assert outcomes["count 100"] == "count 100 with 1 threads"
    assert str(outcomes["fail x"]) == "x"
    assert isinstance(outcomes["fail x"], DataError)
    assert str(outcomes["exit"]) == "SystemExit: 3"
    (node,) = {node for node, message in heard if message == 0}
    assert [message for where, message in heard if where == node and message != "begun"] == list(range(100))
    lines = [record.getMessage() for record in caplog.records if "doing" in record.getMessage()]
    assert sorted(line.partition(": ")[2] for line in lines) == ["doing count 100", "doing exit", "doing fail x"]
    assert {line.partition(": ")[0] for line in lines} <= {"one", "two"}
    assert (tmp_path / "tidied").exists(), "the works' contexts end"


def test_a_unit_that_ends_its_workers_is_given_up(engine: "RayEngine", tmp_path: Path) -> None:
    outcomes, _ = done(engine, tmp_path, "die", "count 1", needs=Needs(cpus=0.5))
    assert outcomes["count 1"] == "count 1 with 1 threads"
    assert isinstance(outcomes["die"], ProcessError)
    assert "got 3 lost workers, the last one on" in str(outcomes["die"])
    assert "\n" not in str(outcomes["die"])


def test_no_room_is_one_line(engine: "RayEngine", tmp_path: Path) -> None:
    from dhkd.pipeline.engines.ray import RayEngine

    says = "one task needs 4 CPUs, 0 GPUs; the largest node has 1 CPUs, 0 GPUs, .* GB of memory; ask for less"
    with pytest.raises(ConfigError, match=says):
        done(RayEngine(patience=0.0), tmp_path, "count 1", needs=Needs(cpus=4))
    assert not engine.has_gpus


def test_a_node_is_killed_and_another_joins(
    nodes: Nodes, engine: "RayEngine", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The lost unit goes to another worker, and the new node gets units."""
    nodes.add("lost")
    begun: set[str] = set()
    killed: list[str] = []

    def hear(node: str, message: object) -> None:
        begun.add(node)
        if begun >= {"one", "two", "lost"} and not killed:
            killed.append("lost")
            nodes.kill("lost")
            nodes.add("new")
        if "new" in begun:
            (tmp_path / "go").touch()

    units = [f"wait go {number}" for number in range(6)]
    ended = engine.run(Doing(tmp_path), units, ONE, hear)
    outcomes = {each.unit: each.outcome for each in ended}
    assert outcomes == {unit: f"{unit} with 1 threads" for unit in units}
    assert [record for record in caplog.records if record.getMessage().startswith("lost: a worker was lost: ")]


def test_a_node_that_can_not_begin_is_told_once(
    nodes: Nodes, engine: "RayEngine", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.add("bad", cpus=4, **{BAD: "none"})

    def ends_waiting(record: logging.LogRecord) -> bool:
        if "it gets no work" in record.getMessage():
            (tmp_path / "told").touch()
        return True

    logging.getLogger("dhkd").addFilter(ends_waiting)
    try:
        outcomes, _ = done(engine, tmp_path, *(f"wait told {number}" for number in range(8)))
    finally:
        logging.getLogger("dhkd").removeFilter(ends_waiting)
    assert all(not isinstance(outcome, Exception) for outcome in outcomes.values())
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == ["bad: it gets no work: data: expected some, got none"]
    with pytest.raises(DataError, match="data: expected some, got none"):  # no other node is large enough
        done(engine, tmp_path, "count 1", needs=Needs(cpus=4))
