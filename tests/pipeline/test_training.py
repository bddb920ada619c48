"""Training as a function: results, their files, and runs that are finished already."""

import json
from pathlib import Path

import pytest
from dhkd.configs.schema import Experiment
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import ConfigError, NonFiniteLoss, RunExists, RunMismatch
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.results import TrainedRun, plain
from dhkd.pipeline.training import Outcomes, train_grid, train_student, train_students, train_teacher

from tests.pipeline.conftest import experiment_of

DATA = DataOptions()


def trained(reader: LogitReader | None, out: Path, experiment: Experiment, *, resume: bool = False) -> TrainedRun:
    cache = reader.location if reader else None
    return train_student(experiment, cache, out, data=DATA, track=["none"], cpu=True, resume=resume)


def trained_together(reader: LogitReader, experiments: dict[Path, Experiment], *, resume: bool = False) -> Outcomes:
    return train_students(experiments, reader.location, data=DATA, track=["none"], cpu=True, resume=resume)


def test_result_json_is_the_result(reader: LogitReader, tmp_path: Path) -> None:
    result = trained(reader, tmp_path, experiment_of("objective=kd"))
    assert (tmp_path / "result.json").read_text() == json.dumps(plain(result), indent=2) + "\n"
    assert result.distillation is not None
    assert (result.role, result.epochs, result.distillation.together) == ("student", 1, 1)
    assert trained(reader, tmp_path, experiment_of("objective=kd"), resume=True) == result
    with pytest.raises(RunExists, match="continue it with --resume"):
        trained(reader, tmp_path, experiment_of("objective=kd"))


def test_a_summary_of_the_cache_has_the_digest_of_what_was_learned_from(reader: LogitReader, tmp_path: Path) -> None:
    one, other = (
        trained(reader, tmp_path / teacher, experiment_of("objective=kd", f"student.teacher={teacher}")).distillation
        for teacher in ("null", "b")
    )
    assert one is not None
    assert other is not None
    assert one.cache is not None
    assert other.cache is not None
    assert len({one.cache.digest, other.cache.digest, reader.manifest.digest}) == 3
    assert one.cache.signals == other.cache.signals


def test_a_result_that_was_edited_is_not_taken_for_one(tmp_path: Path) -> None:
    experiment = experiment_of("objective=ce")
    trained(None, tmp_path, experiment)
    file = tmp_path / "result.json"
    tree = json.loads(file.read_text())
    del tree["sha256"]
    file.write_text(json.dumps(tree))
    with pytest.raises(RunMismatch, match=r"result.json: expected the result of a finished run \(missing: sha256\)"):
        trained(None, tmp_path, experiment, resume=True)


def test_a_teachers_run(tmp_path: Path) -> None:
    experiment = experiment_of("teacher.batch_size=10")
    result = train_teacher(experiment, tmp_path, data=DATA, track=["none"], cpu=True)
    assert (result.role, result.architecture, result.distillation) == ("teacher", "resnet8", None)
    assert (tmp_path / "result.json").read_text() == json.dumps(plain(result), indent=2) + "\n"
    assert train_teacher(experiment, tmp_path, data=DATA, track=["none"], cpu=True, resume=True) == result


def test_what_ends_one_student_leaves_the_others(reader: LogitReader, tmp_path: Path) -> None:
    """Results stand in the order of the experiments, those of runs that were finished before among them."""
    experiments = {
        tmp_path / "wild": experiment_of("objective=kd", "student.lr=1e30", "student.epochs=2"),
        tmp_path / "calm": experiment_of("objective=kd"),
    }
    outcomes = trained_together(reader, experiments)
    assert list(outcomes) == list(experiments)
    wild, calm = outcomes.values()
    assert isinstance(wild, NonFiniteLoss)
    assert isinstance(calm, TrainedRun)
    assert not (tmp_path / "wild" / "result.json").exists()
    again = trained_together(reader, {**experiments, tmp_path / "new": experiment_of("objective=ce")}, resume=True)
    assert [out.name for out in again] == ["wild", "calm", "new"]
    assert again[tmp_path / "calm"] == calm
    new = again[tmp_path / "new"]
    assert isinstance(new, TrainedRun)
    assert new.distillation is not None
    assert new.distillation.together == 2, "the finished one takes no part"


def test_nothing_is_claimed_before_everything_fits(reader: LogitReader, tmp_path: Path) -> None:
    experiments = {tmp_path / "good": experiment_of("objective=kd"), tmp_path / "bad": experiment_of("objective=dhdk")}
    with pytest.raises(ConfigError, match="unknown objective 'dhdk'"):
        trained_together(reader, experiments)
    assert not list(tmp_path.iterdir())


def test_a_grid_is_trained_in_groups(reader: LogitReader, tmp_path: Path) -> None:
    experiments = {tmp_path / str(seed): experiment_of("objective=ce", f"seed={seed}") for seed in range(3)}
    outcomes = train_grid(experiments, reader.location, together=2, data=DATA, track=["none"], cpu=True)
    assert list(outcomes) == list(experiments)
    sizes = [run.distillation and run.distillation.together for run in outcomes.values() if isinstance(run, TrainedRun)]
    assert sizes == [2, 2, 1]
