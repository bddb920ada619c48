"""A sweep on an engine: what workers get and send home, lost workers, failures, nodes without the data.

The engine of these tests runs units in this process, but all that passes between command and worker is pickled.
"""

import contextlib
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch, DhkdError, ProcessError
from dhkd.data.runs.lock import held
from dhkd.data.runs.names import CHECKPOINT, FAILED, RESULT
from dhkd.pipeline import sweep_on as module
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.engines.base import Ended, Hear, Needs
from dhkd.pipeline.engines.choice import EngineOptions
from dhkd.pipeline.results import Swept
from dhkd.pipeline.sweep import sweep
from dhkd.pipeline.sweep_apart import VARIABLE, Put
from dhkd.pipeline.sweep_on import sweep_on

from tests.pipeline.conftest import experiment_of


@dataclass
class Inside:
    """An engine with one worker in this process, which may be lost: it then begins anew with the same unit.

    `loses` is called with every message, and says whether the worker is lost before the message comes home.
    """

    loses: Callable[[object], bool] = lambda message: False
    has_gpus: bool = True
    needs: list[Needs] = field(default_factory=list)
    units: list[Any] = field(default_factory=list)  # as the worker gets them

    def run(self, work: Any, units: Sequence[Any], needs: Needs, hear: Hear) -> Iterator[Ended[Any, Any]]:
        self.needs.append(needs)

        def tell(message: object) -> None:
            if self.loses(message):
                raise _LostError
            hear("node", pickle.loads(pickle.dumps(message)))

        for unit in units:
            while True:
                try:
                    with pickle.loads(pickle.dumps(work)).begun(tell) as train:
                        self.units.append(pickle.loads(pickle.dumps(unit)))
                        outcome = train(self.units[-1])
                    break
                except _LostError:
                    continue
            yield Ended(unit, outcome, "node")


class _LostError(BaseException):
    pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Inside:
    engine = Inside()
    monkeypatch.setattr(module, "engine_of", lambda options: contextlib.nullcontext(engine))
    return engine


RUNS = {f"seed={seed}": experiment_of("objective=ce", f"seed={seed}", "student.epochs=3") for seed in range(2)}
OPTIONS: dict[str, Any] = {"command": "dhkd sweep …", "data": DataOptions(), "track": ["none"], "cpu": True}


def swept(out: Path, runs: Any = RUNS, cache: str | None = None, **options: Any) -> Swept:
    return sweep_on(EngineOptions("ray"), runs, cache, out, **OPTIONS, **options)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("here")
    sweep(RUNS, None, out, **OPTIONS)
    return out


def weights_in(out: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_bytes())["sha256"] for path in out.glob(f"*/{RESULT}")}


def names_in(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("apart", [False, True])
def test_the_same_files_as_here(
    apart: bool, engine: Inside, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    if apart:
        monkeypatch.setenv(VARIABLE, str(scratch))
    out = tmp_path / "out"
    assert swept(out).finished == list(RUNS)
    assert (names_in(out), weights_in(out)) == (names_in(here), weights_in(here))
    assert not names_in(scratch)
    assert [unit.names for unit in engine.units] == [("seed=0",), ("seed=1",)]
    assert engine.needs == [Needs(cpus=1.0, gpus=0.0)]


def test_a_lost_run_goes_on_from_its_checkpoint(
    engine: Inside, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that sees no folder of the command is lost before its second checkpoint comes home."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "scratch"))
    checkpoints: list[object] = []

    def loses(message: object) -> bool:
        if isinstance(message, Put) and message.file == CHECKPOINT:
            checkpoints.append(message)
            return len(checkpoints) == 2
        return False

    engine.loses = loses
    out = tmp_path / "out"
    assert swept(out).finished == list(RUNS)
    assert weights_in(out) == weights_in(here)
    first, second = [unit.files["seed=0"].keys() for unit in engine.units if unit.names == ("seed=0",)]
    assert CHECKPOINT not in first
    assert CHECKPOINT in second
    assert len(checkpoints) == 7  # three of each run, and the lost one again


def test_finished_runs_are_not_touched_and_failures_are_kept_apart(engine: Inside, tmp_path: Path) -> None:
    runs = {**RUNS, "lr=1e30": experiment_of("objective=ce", "student.lr=1e30", "student.epochs=3")}
    first = swept(tmp_path, {"seed=0": RUNS["seed=0"]})
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed=0/*")}
    result = swept(tmp_path, runs)
    assert (first.finished, result.finished) == (["seed=0"], list(RUNS))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert list(result.failed) == ["lr=1e30"]
    assert (tmp_path / "lr=1e30" / FAILED).read_text().startswith("loss term")
    number = len(engine.units)
    assert list(swept(tmp_path, runs).failed) == ["lr=1e30"]
    assert len(engine.units) == number, "nobody asked to try it again"
    swept(tmp_path, runs, again=True)
    assert len(engine.units) == number + 1


def test_a_run_that_loses_its_workers_is_kept_apart_once_it_has_begun(
    engine: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "seed=0"
    begun.mkdir()
    sweep({"seed=0": RUNS["seed=0"]}, None, tmp_path, **OPTIONS)
    (begun / RESULT).unlink()
    error = ProcessError("expected a worker to end it, got 3 lost workers, the last one on node: gone")

    def run(work: Any, units: Sequence[Any], needs: Needs, hear: Hear) -> Iterator[Ended[Any, Any]]:
        yield from (Ended(unit, error, "node") for unit in units)

    monkeypatch.setattr(engine, "run", run)
    result = swept(tmp_path)
    assert result.failed == {"seed=0": str(error), "seed=1": str(error)}
    assert (begun / FAILED).read_text().splitlines()[0] == str(error)
    assert not (tmp_path / "seed=1").exists()


def test_runs_side_by_side(engine: Inside, here: Path, tmp_path: Path) -> None:
    assert swept(tmp_path, together=2).finished == list(RUNS)
    assert [unit.names for unit in engine.units] == [("seed=0", "seed=1")]
    assert weights_in(tmp_path) == weights_in(here)


def test_files_of_a_run_that_another_command_trains_are_not_taken(
    engine: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "scratch"))
    out = tmp_path / "out"
    with held(out / "seed=0"):
        assert swept(out).finished == ["seed=1"]
        assert {path.name for path in (out / "seed=0").iterdir()} == {"lock.1"}


def test_a_node_with_another_cache_or_without_it_is_refused(
    engine: Inside, reader: LogitReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"seed=0": experiment_of("objective=kd")}
    original = module._data_of

    def other(*arguments: Any) -> Any:
        data = original(*arguments)
        return type(data)(data.first, data.cache, data.options, "f" * 64, data.identity)

    monkeypatch.setattr(module, "_data_of", other)
    with pytest.raises(CacheMismatch, match="expected that of the command, ffffffffffff, got"):
        swept(tmp_path, runs, str(reader.location))

    def absent(*arguments: Any) -> Any:
        data = original(*arguments)
        return type(data)(data.first, f"{data.cache}-absent", data.options, data.digest, data.identity)

    monkeypatch.setattr(module, "_data_of", absent)
    with pytest.raises(DhkdError, match=r"c\.zarr-absent: "):
        swept(tmp_path, runs, str(reader.location))
