"""Optimizers, groups, parts of a batch and schedules as settings: recorded if set, resumed, and refused in one line."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import ConfigError, OwnCodeError, RunMismatch
from dhkd.data.own_code import imported
from dhkd.pipeline.build.training import learning_rate_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.measure import measure_rates
from dhkd.pipeline.results import TrainedRun
from dhkd.pipeline.training import train_student, train_teacher

from tests.pipeline.conftest import experiment_of

needs_timm = pytest.mark.skipif("not __import__('importlib').util.find_spec('timm')", reason="timm is not installed")

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
NEW = ("optimizer", "no_decay", "layer_decay", "accumulate", "warmup_lr", "min_lr", "cooldown_epochs", "lr_power")
ALL = (
    *("epochs=2", "batch_size=10"),
    *("optimizer={name: adamw, betas: [0.9, 0.95]}", "nesterov=null", "lr=0.001", "no_decay=norms-and-biases"),
    *("layer_decay=0.75", "accumulate=2", "lr_schedule=polynomial", "lr_power=2", "warmup_epochs=0.5"),
    *("warmup_lr=1e-6", "min_lr=1e-5", "cooldown_epochs=1"),
)


def with_settings(section: str, *settings: str) -> Experiment:
    return experiment_of(*(f"{section}.{setting}" for setting in settings))


def teacher(experiment: Experiment, out: Path, *, resume: bool = False) -> TrainedRun:
    return train_teacher(experiment, out, data=DataOptions(), track=["none"], cpu=True, resume=resume)


def student(experiment: Experiment, reader: LogitReader | None, out: Path, *, resume: bool = False) -> TrainedRun:
    cache = reader.location if reader else None
    return train_student(experiment, cache, out, data=DataOptions(), track=["none"], cpu=True, resume=resume)


def recorded(out: Path, section: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((out / "config.yaml").read_text())["experiment"][section]
    return settings


def test_settings_that_are_not_set_are_not_recorded() -> None:
    for section in ("teacher", "student"):
        settings = load_experiment("digits").model_dump(mode="json")[section]
        assert not settings.keys() & set(NEW)
        assert settings["momentum"] == 0.9


def test_a_teacher_and_a_student_take_all_settings(reader: LogitReader, tmp_path: Path) -> None:
    """The options of another optimizer than SGD's are not recorded; the record gives the same experiment again."""
    settings = [f"{section}.{setting}" for section in ("teacher", "student") for setting in ALL]
    both = experiment_of(*settings, "objective=kd")
    results = teacher(both, tmp_path / "teacher"), student(both, reader, tmp_path / "student")
    for section, result in zip(("teacher", "student"), results, strict=True):
        record = recorded(tmp_path / section, section)
        assert record["optimizer"] == {"name": "adamw", "betas": [0.9, 0.95]}
        assert not record.keys() & {"momentum", "nesterov"}
        assert set(NEW) <= record.keys()
        assert result.epochs == 2
        again = load_experiment(str(tmp_path / section))
        assert (again.teacher, again.student) == (both.teacher, both.student)
    assert student(both, reader, tmp_path / "student", resume=True) == results[1]
    rates = learning_rate_of(both.student)
    assert rates.at(0, 0, 2) == 1e-6
    assert [rates.at(1, step, 2) for step in (0, 1)] == [1e-5, 1e-5]


REFUSED = [
    ("optimizer=adamm", "unknown optimizer 'adamm'"),
    ("optimizer={name: adamw, betas: [2, 0.9]}", "optimizer adamw: it can't be built: ValueError"),
    ("optimizer={name: adamw, lr: 0.1}", "optimizer adamw: lr: expected another option"),
    ("optimizer={name: sgd, momentum: 0.5}", "optimizer sgd: momentum: it is a setting of its own"),
    ("optimizer=rprop", "optimizer rprop has no weight decay: weight_decay: expected 0"),
    ("optimizer=mine.py:Mine", "optimizer mine.py:Mine names code in mine.py"),
]


@pytest.mark.parametrize(("setting", "message"), REFUSED)
def test_a_wrong_optimizer_is_refused_before_anything_is_written(
    setting: str, message: str, reader: LogitReader, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        teacher(with_settings("teacher", "nesterov=null", setting), tmp_path / "run")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        student(with_settings("student", "nesterov=null", setting), reader, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer=adamw"], "student.nesterov: expected none with optimizer adamw"),
        (["optimizer=adamw", "nesterov=null", "momentum=0.9"], "student.momentum: expected none with optimizer adamw"),
        (["optimizer={betas: [0, 0]}"], "student.optimizer.name: field required"),
        (["optimizer=3"], "student.optimizer: "),
        (["optimizer={name: adamw, eps: .nan}", "nesterov=null"], "expected finite numbers"),
        (["no_decay=biases"], "student.no_decay: input should be 'norms-and-biases'"),
        (["layer_decay=0"], "student.layer_decay: "),
        (["layer_decay=1.1"], "student.layer_decay: "),
        (["accumulate=0"], "student.accumulate: "),
        (["accumulate=6"], "student.accumulate: expected at most 5"),
        (["lr_schedule=exponential"], "student.lr_schedule: "),
        (["min_lr=0.01", "lr_schedule=multistep"], "student.min_lr: expected none with lr_schedule multistep"),
        (
            ["cooldown_epochs=1", "lr_schedule=constant"],
            "student.cooldown_epochs: expected none with lr_schedule const",
        ),
        (["min_lr=0.2"], "student.min_lr: expected at most lr (0.1)"),
        (["cooldown_epochs=0.5"], "student.cooldown_epochs: expected min_lr above 0"),
        (["cooldown_epochs=1.5", "min_lr=0.01"], "student.cooldown_epochs: expected at most the 1"),
        (["lr_power=2"], "student.lr_power: expected none with lr_schedule one-cycle"),
        (["warmup_lr=0.01"], "student.warmup_lr: expected warmup_epochs above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        with_settings("student", *settings)
    assert "\n" not in str(error.value)
    assert "value error" not in str(error.value).lower()


def test_null_takes_sgds_options_out_of_a_preset() -> None:
    settings = with_settings("student", "optimizer=adamw", "nesterov=null", "momentum=null").student
    assert settings.optimizer is not None
    assert settings.optimizer.name == "adamw"
    plain = with_settings("student", "nesterov=null").student
    assert (plain.momentum, plain.nesterov) == (0.9, False)


@pytest.mark.parametrize("objective", ["rkd", "crd", "dist"])
def test_parts_are_refused_for_objectives_that_compare_rows(
    objective: str, reader: LogitReader, tmp_path: Path
) -> None:
    experiment = experiment_of(f"objective={objective}", "student.accumulate=2")
    with pytest.raises(ConfigError, match=r"^accumulate 2: the objective \(.*\) compares the rows"):
        student(experiment, reader, tmp_path / "run")
    assert not (tmp_path / "run").exists()


MINE = """
import torch

class Mine(torch.optim.SGD):
    def __init__(self, params, lr, weight_decay=0.0, momentum: float = 0.5):
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum)


class Broken(Mine):
    def step(self, closure=None):
        raise ValueError("the third law")
"""


def test_own_code_is_recorded_and_compared(no_own_code: Path, reader: LogitReader) -> None:
    Path("mine.py").write_text(MINE)
    imported(["mine.py"])
    settings = ("nesterov=null", "optimizer={name: mine.py:Mine, momentum: 0.7}", "epochs=1")
    student(with_settings("student", *settings), reader, Path("run"))
    facts = yaml.safe_load(Path("run/config.yaml").read_text())["run"]
    assert list(facts["code"]) == ["mine.py:Mine"]
    teacher(with_settings("teacher", *settings, "batch_size=10"), Path("teacher"))
    assert "mine.py:Mine" in Path("teacher/config.yaml").read_text()
    with pytest.raises(OwnCodeError, match=r"optimizer mine.py:Broken: its step: ValueError: the third law"):
        student(with_settings("student", "nesterov=null", "optimizer=mine.py:Broken"), reader, Path("broken"))


def test_changed_code_of_an_optimizer_is_noticed(
    no_own_code: Path, reader: LogitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dhkd.data import own_code

    Path("mine.py").write_text(MINE)
    imported(["mine.py"])
    experiment = with_settings("student", "nesterov=null", "optimizer=mine.py:Mine")
    student(experiment, reader, Path("run"))
    Path("mine.py").write_text(MINE.replace("0.5", "0.6"))
    monkeypatch.setattr(own_code, "_known", own_code._Known())
    monkeypatch.delenv(own_code.VARIABLE)
    imported(["mine.py"])
    with pytest.raises(RunMismatch, match=r"mine\.py"):
        student(experiment, reader, Path("run"), resume=True)


def test_what_is_measured_is_a_part_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhkd.pipeline.measure.MEASURED_SECONDS", 0.01)
    settings = ("nesterov=null", "optimizer=adamw", "accumulate=5", "layer_decay=0.5")
    rates = measure_rates(with_settings("student", *settings), 10, cpu=True)
    assert rates.measured is not None
    assert rates.measured.student.batch_size == 2
