"""A sweep's decisions: which runs are open, who trains them, what becomes of failures."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError, DhkdError, NonFiniteLoss, RunMismatch, TrackerError
from dhkd.data.runs.folder import CONFIG, RESULT
from dhkd.data.runs.read import FAILED
from dhkd.pipeline.claims import settings_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.results import TrainedRun
from dhkd.pipeline.sweep import (
    SWEEP,
    Train,
    is_open,
    require_different,
    require_same,
    sweep,
    train_or_record,
)
from dhkd.pipeline.training import Outcomes

from tests.pipeline.conftest import experiment_of
from tests.pipeline.test_results import STUDENT


@pytest.mark.parametrize(
    ("files", "opened", "again"),
    [
        ([], True, True),
        ([CONFIG], True, True),
        ([CONFIG, RESULT], False, False),
        ([CONFIG, FAILED], False, True),
        ([CONFIG, FAILED, RESULT], False, False),
    ],
)
def test_a_folders_files_say_whether_its_run_is_open(
    files: list[str], opened: bool, again: bool, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert (is_open(tmp_path, False), is_open(tmp_path, True)) == (opened, again)


def begun(run: Path) -> Path:
    """A run's folder as training leaves it when it began."""
    run.mkdir(parents=True, exist_ok=True)
    (run / CONFIG).touch()
    return run


def ended(outcomes: Mapping[str, TrainedRun | DhkdError]) -> Train:
    """Training that begins every run and ends each as `outcomes` says, by the names of folders."""

    def train(group: Mapping[Path, Experiment]) -> Outcomes:
        return {begun(run): outcomes[run.name] for run in group}

    return train


def raised(error: Exception, *, begins: bool) -> Train:
    """Training that ends with an error, before or after it begins the runs."""

    def train(group: Mapping[Path, Experiment]) -> Outcomes:
        for run in group if begins else ():
            begun(run)
        raise error

    return train


GROUP = {"a": experiment_of(), "b": experiment_of("seed=1")}


def in_folder(out: Path) -> dict[Path, Experiment]:
    return {out / name: experiment for name, experiment in GROUP.items()}


def test_a_runs_failure_is_kept_in_its_folder(tmp_path: Path) -> None:
    train = ended({"a": STUDENT, "b": NonFiniteLoss("loss term kd is nan")})
    assert train_or_record(in_folder(tmp_path), train) == {}
    assert not (tmp_path / "a" / FAILED).exists()
    line, empty, traceback = (tmp_path / "b" / FAILED).read_text().split("\n", 2)
    assert (line, empty) == ("loss term kd is nan", "")
    assert "NonFiniteLoss: loss term kd is nan" in traceback


def test_an_error_of_the_program_is_a_failure_of_each(tmp_path: Path) -> None:
    assert train_or_record(in_folder(tmp_path), raised(KeyError("x"), begins=True)) == {}
    for name in GROUP:
        assert (tmp_path / name / FAILED).read_text().startswith("KeyError: 'x'\n\nTraceback")


def test_runs_that_could_not_begin_leave_no_failure_behind(tmp_path: Path) -> None:
    refused = train_or_record(in_folder(tmp_path), raised(ConfigError("no such network"), begins=False))
    assert refused == {"a": "no such network", "b": "no such network"}
    assert not list(tmp_path.rglob(FAILED))


def test_a_tracker_that_refuses_says_nothing_about_the_run(tmp_path: Path) -> None:
    refused = train_or_record(in_folder(tmp_path), raised(TrackerError("offline"), begins=True))
    assert refused == {"a": "offline", "b": "offline"}
    assert not list(tmp_path.rglob(FAILED))


def test_what_students_can_not_do_together_each_does_alone(tmp_path: Path) -> None:
    sizes = []

    def train(group: Mapping[Path, Experiment]) -> Outcomes:
        sizes.append(len(group))
        if len(group) > 1:
            raise ConfigError("several students together: expected one teacher")
        return ended({"a": STUDENT, "b": NonFiniteLoss("nan")})(group)

    assert train_or_record(in_folder(tmp_path), train) == {}
    assert sizes == [2, 1, 1]
    assert [path.parent.name for path in tmp_path.rglob(FAILED)] == ["b"]


def test_no_runs_are_not_trained(tmp_path: Path) -> None:
    assert train_or_record({}, raised(AssertionError("it was called"), begins=False)) == {}


def test_two_names_for_the_same_settings_are_refused() -> None:
    require_different({"a": experiment_of("student.lr=0.1"), "b": experiment_of("student.lr=0.2")})
    with pytest.raises(ConfigError, match="--grid: expected different runs, a and c have the same settings"):
        require_different({"a": experiment_of(), "b": experiment_of("seed=1"), "c": experiment_of()})


def configured(run: Path, experiment: Experiment, cache: str | None) -> Path:
    """A folder that holds a run of the experiment."""
    config = {"run": {"command": "train-student", "cache": cache}, "experiment": settings_of(experiment)}
    begun(run).joinpath(CONFIG).write_text(yaml.safe_dump(config))
    return run


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    experiment = experiment_of()
    require_same(tmp_path / "none", experiment, "d" * 64)
    run = configured(tmp_path / "run", experiment, "d" * 64)
    require_same(run, experiment, "d" * 64)
    with pytest.raises(RunMismatch, match=r"cache expected dddddddddddd, got None; give its own settings or"):
        require_same(run, experiment, None)
    says = r"seed expected 0, got 1; cache expected dddddddddddd, got eeeeeeeeeeee; give its own settings or choose"
    with pytest.raises(RunMismatch, match=says):
        require_same(run, experiment_of("seed=1"), "e" * 64)


def test_prose_and_smoke_settings_are_no_settings_of_a_run() -> None:
    assert settings_of(experiment_of()).keys().isdisjoint({"smoke", "record"})


def swept(out: Path, names: Mapping[str, str], command: str, part: tuple[int, int] = (0, 1)) -> list[str]:
    """Sweep cross-entropy over settings by name; the names of all runs that are finished."""
    experiments = {name: experiment_of("objective=ce", setting) for name, setting in names.items()}
    result = sweep(experiments, None, out, command=command, data=DataOptions(), part=part, track=["none"], cpu=True)
    assert (result.failed, result.runs, result.table) == ({}, len(names), str(out / "results.csv"))
    return result.finished


def test_parts_and_a_second_command(tmp_path: Path) -> None:
    """Each run once, and the report knows all of them."""
    seeds = {f"seed={seed}": f"seed={seed}" for seed in range(2)}
    assert swept(tmp_path, seeds, "first", part=(1, 2)) == ["seed=1"]
    assert swept(tmp_path, seeds, "first") == list(seeds)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(RESULT)}
    assert swept(tmp_path, {"seed=0": "seed=0", "seed=7": "seed=7"}, "second") == [*seeds, "seed=7"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    remembered = json.loads((tmp_path / SWEEP).read_bytes())
    assert remembered == {"commands": ["first", "second"], "runs": [*seeds, "seed=7"]}
