"""Trackers that runs are shown in: a run there for each run here, the same values, and no run lost to a tracker."""

import json
import shutil
import signal
import struct
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command_line import SMALL, dhkd, done, spawn
from tests.moments import at_the_moment

# Tests import them: importing MLflow takes seconds, also where other tests are collected.
if missing := [name for name in ("mlflow", "wandb") if find_spec(name) is None]:
    pytest.skip(f"needs {' and '.join(missing)}", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run, whose tables take seconds to make."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def elsewhere(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No service, no account, and nothing left in the folder of the tests."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    shutil.copy(empty, tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def epochs_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def mlflow_runs() -> dict[str, Any]:
    import mlflow

    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    found = {run.info.run_name: run for run in runs}
    assert len(found) == len(runs), "a run was begun twice"
    return found


def mlflow_history(run: Any, name: str) -> list[tuple[int, float]]:
    import mlflow

    return [(each.step, each.value) for each in mlflow.MlflowClient().get_metric_history(run.info.run_id, name)]


def records(run: Path) -> Iterator[Any]:
    """What W&B would send, read from its own file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as wandb_internal

    (file,) = (run / "tracking" / "wandb").glob("offline-run-*/*.wandb")
    content, position, joined = file.read_bytes(), 7, b""
    while position < len(content):
        if 32768 - position % 32768 < 7:  # too little of a block is left for another header
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        joined += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal.Record()
            record.ParseFromString(joined)
            joined = b""
            yield record


def wandb_history(run: Path) -> list[dict[str, Any]]:
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records(run)
        if record.WhichOneof("record_type") == "history"
    ]


def test_side_by_side_each_is_a_run_of_its_own(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    words = ["train-student", "digits", *SMALL, "--cache", cache, "--out", out, "--grid", "objective=ce,kd"]
    result = done(
        *words, "--track", "wandb", "--track", "mlflow", "--json"
    ).result  # nothing else is on standard output
    assert len(result["runs"]) == 2
    runs = mlflow_runs()
    assert set(runs) == {"both/objective=ce", "both/objective=kd"}
    for objective in ("ce", "kd"):
        folder, run = out / f"objective={objective}", runs[f"both/objective={objective}"]
        epochs = epochs_of(folder)
        assert len(epochs) == 2
        assert run.info.status == "FINISHED"
        assert run.data.params["experiment.objective"] == objective
        assert "mlflow.parentRunId" not in run.data.tags
        shown = wandb_history(folder)
        for name in ("loss", "top1", "train_top1"):
            assert mlflow_history(run, name) == [(line["epoch"], line[name]) for line in epochs]
            assert [line[name] for line in shown] == [line[name] for line in epochs]
        assert [line["_step"] for line in shown] == [1, 2]
        about = next(record.run for record in records(folder) if record.WhichOneof("record_type") == "run")
        config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in about.config.update}
        assert (about.project, about.display_name) == ("dhkd", f"both/objective={objective}")
        assert config["experiment.objective"] == objective
        assert not list(folder.rglob("events.out.tfevents*")), "TensorBoard was not asked for"


@pytest.mark.soak
def test_a_killed_run_is_gone_on_with_as_the_same(cache: Path, tmp_path: Path) -> None:
    words = [word if word != "student.epochs=2" else "student.epochs=12" for word in SMALL]
    words = ["train-student", "digits", *words, "--cache", cache, "--out", tmp_path / "run", "--track", "mlflow"]
    process = spawn(*words)
    while not list(tmp_path.rglob("state.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "result.json").exists(), "it was killed too late"
    (name,) = mlflow_runs()
    assert mlflow_runs()[name].info.status == "RUNNING"
    done(*words, "--resume")
    run = mlflow_runs()[name]
    assert run.info.status == "FINISHED"
    assert {step for step, _ in mlflow_history(run, "loss")} == set(range(1, 13))


def test_a_tracker_that_says_no_takes_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    words = ["digits", *SMALL, "--cache", cache, "--out", tmp_path / "out", "--track", "mlflow"]
    outcome = dhkd("train-student", *words)
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert "--track mlflow: expected a run to begin there, got: " in line
    assert "nonsense" in line
    assert "MLFLOW_TRACKING_URI=sqlite:///mlflow.db needs no server" in line
    assert not (tmp_path / "out" / "config.yaml").exists()

    assert dhkd("sweep", *words, "--seeds", 1).code == 1
    assert not list(tmp_path.rglob("failed.txt")), "a run was blamed for it"
    done("sweep", *words[:-2], "--seeds", 1, "--track", "none")
    assert not list(tmp_path.rglob("tracking"))
    (tmp_path / "out" / "seed=0" / "result.json").unlink()
    assert dhkd("sweep", *words, "--seeds", 1).code == 1
    assert not list(tmp_path.rglob("failed.txt")), "a run that was begun was blamed for it"


def test_a_tracker_that_breaks_is_left_behind(cache: Path, tmp_path: Path) -> None:
    run, epochs = tmp_path / "run", 5
    words = [word if word != "student.epochs=2" else f"student.epochs={epochs}" for word in SMALL]
    at_breaking = []

    def two_epochs_are_done() -> bool:
        return (run / "metrics.jsonl").exists() and len(epochs_of(run)) >= 2

    def break_it() -> None:
        (tmp_path / "mlflow.db").unlink()
        (tmp_path / "mlflow.db").mkdir()
        at_breaking.append(len(epochs_of(run)))

    with at_the_moment(two_epochs_are_done, break_it):
        outcome = done("train-student", "digits", *words, "--cache", cache, "--out", run, "--track", "mlflow")
    assert at_breaking[0] < epochs, "it broke too late"
    assert outcome.err.count("the run goes on without it") == 1, outcome.err
    assert len(epochs_of(run)) == epochs


def test_a_run_that_fails_is_told_as_failed(cache: Path, tmp_path: Path) -> None:
    words = ["digits", *SMALL, "--cache", cache, "--out", tmp_path / "run", "--set", "student.lr=1e30"]
    outcome = dhkd("train-student", *words, "--track", "mlflow")
    assert "is not finite" in outcome.err
    (run,) = mlflow_runs().values()
    assert run.info.status == "FAILED"


def test_one_that_is_not_installed_is_told_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as Python has it of a module that can't be imported
    outcome = dhkd("train-teacher", "digits", *SMALL, "--out", tmp_path / "run", "--track", "wandb")
    assert (outcome.code, (tmp_path / "run").exists()) == (2, False)
    assert "error: --track wandb: expected wandb to be installed, found none; pip install 'dhkd[wandb]'" in outcome.err
    assert dhkd("train-teacher", "digits", "--out", tmp_path / "run", "--track", "paper").code == 2
