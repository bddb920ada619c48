"""Settings that regularize a training: refused in one line where they can't act, and resumed to the bit."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from dhkd.data.errors import ConfigError, DhkdError, RunExists, RunMismatch
from dhkd.data.own_code import offer
from dhkd.pipeline.build.data import images_of
from dhkd.pipeline.build.networks import file_of_average
from dhkd.pipeline.build.regularizing import require_network, require_regularizing
from dhkd.pipeline.build.training import objective_of, setting_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.evaluation import evaluate_network
from dhkd.pipeline.export import export
from dhkd.pipeline.results import TrainedRun
from dhkd.pipeline.sweep import sweep
from dhkd.pipeline.training import train_student, train_teacher
from torch import nn

from tests.pipeline.conftest import experiment_of
from tests.runs import read_metrics

CE = ("objective=ce", "data.limit=60", "student.batch_size=20")
DROPPING = ("student=timm:resnet10t", "student.drop_path=0.2", "student.dropout=0.1")


def required(*overrides: str) -> None:
    experiment = experiment_of(*overrides)
    objective = objective_of(experiment)
    require_regularizing(experiment, experiment.student, objective)
    images = images_of(experiment, "train", DataOptions())
    require_network(
        experiment.student, "student", setting_of(experiment, experiment.student, images, objective).student
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("student.early_stopping=3", "data.val_fraction=0.2"),
        ("student.label_smoothing=0.1", "objective=kd + 0.5 * rkd"),
        ("student.label_smoothing=0.1", "objective=label-smoothing", "objectives.label-smoothing.smoothing=0"),
        (*DROPPING,),
        ("student=torchvision:mobilenet_v2", "student.dropout=0"),
        ("student.checkpointing=true",),
        ("student.checkpointing=true", "student=timm:resnet10t", "objective=simkd", "student.drop_path=0.1"),
    ],
)
def test_what_fits(overrides: tuple[str, ...]) -> None:
    if any("timm:" in override for override in overrides):
        pytest.importorskip("timm", reason="needs timm")
    required(*overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("student.early_stopping=3",),
            "student.early_stopping: expected data.val_fraction beside it, since the test split must not decide when"
            " training ends, got none; hold out a part",
        ),
        (
            ("student.label_smoothing=0.1", "objective=label-smoothing + rkd"),
            "student.label_smoothing: expected none beside the objective label-smoothing, which smooths by its own",
        ),
        (
            ("student.label_smoothing=0.1", "objective=mse", "objectives.mse.ce_weight=0"),
            "student.label_smoothing: expected an objective with a cross-entropy, got 'mse', in which none has",
        ),
        (
            ("student.label_smoothing=0.1", "objective=dkd", "objectives.dkd.ce_weight=0"),
            "student.label_smoothing: expected an objective with a cross-entropy, got 'dkd'",
        ),
        (
            ("student.dropout=0.1",),
            "student.dropout: expected a network that takes it, got resnet8 (network resnet8: unknown option 'dropout'",
        ),
        (
            ("student=torchvision:resnet18", "student.drop_path=0.1"),
            "student.drop_path: expected a network that takes it, got torchvision:resnet18 (",
        ),
        (
            ("student=timm:vgg11", "student.drop_path=0.1"),
            "student.drop_path: expected a network that takes it, got timm:vgg11 (",
        ),
        (
            ("student=timm:resnet10t", "student.options={drop_rate: 0.2}", "student.dropout=0.1"),
            "dropout: expected it once, got options.drop_rate as well; leave one of them out",
        ),
        (
            ("student=torchvision:resnet18", "student.checkpointing=true"),
            "checkpointing: expected a network that can compute its activations again",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        required(*overrides)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def renumbered(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """A network whose parameters have other names with dropout than without."""
    layers = [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(3 * 64, num_classes)]
    return nn.Sequential(*layers)


def deaf(num_classes: int, **options: float) -> nn.Module:
    """A network that takes any option and does nothing with it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, num_classes))


def dropping(num_classes: int, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(3 * 64, num_classes))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dropping", None),
        ("renumbered", "student.dropout: expected that mine:renumbered has the same parameters with it as without"),
        ("deaf", "student.dropout: expected a network that it changes, got mine:deaf, which draws no random numbers"),
    ],
)
def test_networks_of_a_users_own(name: str, says: str | None, no_own_code: Path) -> None:
    for function in (dropping, renumbered, deaf):
        offer(f"mine:{function.__name__}", function)
    overrides = (f"student=mine:{name}", "student.dropout=0.1", "objective=ce")
    if says is None:
        required(*overrides)
        return
    with pytest.raises(ConfigError) as error:
        required(*overrides)
    assert str(error.value).startswith(says)


def trained(out: Path, *overrides: str, resume: bool = False) -> TrainedRun:
    experiment = experiment_of(*CE, *overrides)
    return train_student(experiment, None, out, data=DataOptions(), track=["none"], cpu=True, resume=resume)


def test_smoothing_is_that_of_the_objective_label_smoothing(tmp_path: Path) -> None:
    by_setting = trained(tmp_path / "setting", "student.label_smoothing=0.1")
    by_objective = trained(tmp_path / "objective", "objective=label-smoothing")
    assert by_setting.sha256 == by_objective.sha256
    assert by_setting.sha256 != trained(tmp_path / "plain").sha256


def test_a_teacher_takes_them_as_well(tmp_path: Path) -> None:
    settings = ("teacher.label_smoothing=0.1", "teacher.ema=0.5", "teacher.checkpointing=true", "data.val_fraction=0.2")
    hashes = set()
    for name, more in (("a", ()), ("b", settings), ("c", (*settings, "teacher.early_stopping=1", "teacher.epochs=9"))):
        experiment = experiment_of("data.limit=100", "teacher.batch_size=20", *more)
        result = train_teacher(experiment, tmp_path / name, data=DataOptions(), track=["none"], cpu=True)
        hashes.add(result.sha256)
        assert (result.ema_sha256 is None) is (name == "a")
    assert len(hashes) == 3
    assert result.planned_epochs == 9
    assert result.epochs == len(read_metrics(tmp_path / "c")) < 9
    assert "of 9 (stopped early) epochs" in str(result)


@pytest.mark.slow
def test_dropout_checkpointing_and_average_resume_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="needs timm")
    settings = (*DROPPING, "student.epochs=4", "student.ema={decay: 0.9, warmup: true, every: 2}")
    whole = trained(tmp_path / "whole", *settings)
    assert trained(tmp_path / "checkpointed", *settings, "student.checkpointing=true").sha256 == whole.sha256
    assert trained(tmp_path / "dry", *settings[:1], *settings[3:]).sha256 != whole.sha256
    # A run that is killed after its second epoch, with whatever state its generators have.
    from dhkd.data.runs.folder import RunFolder

    save = RunFolder.save_checkpoint

    def killed(run: RunFolder, state: Mapping[str, object]) -> None:
        save(run, state)
        if len(read_metrics(run.path)) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", *settings)
    monkeypatch.undo()
    torch.manual_seed(9)
    resumed = trained(tmp_path / "cut", *settings, resume=True)
    assert (resumed.sha256, resumed.ema_sha256) == (whole.sha256, whole.ema_sha256)


def test_a_stopped_run_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--resume` does nothing more, a sweep counts it, and more epochs are other settings."""
    settings = ("data.val_fraction=0.2", "student.early_stopping={patience: 1, min_delta: 50}", "student.epochs=8")
    first = trained(tmp_path / "sweep" / "a", *settings)
    assert (first.epochs, first.planned_epochs, first.measured) == (2, 8, "val accuracy")
    assert trained(tmp_path / "sweep" / "a", *settings, resume=True) == first
    with pytest.raises(RunMismatch, match=r"experiment\.student\.epochs expected 8, got 9"):
        trained(tmp_path / "sweep" / "a", *settings, "student.epochs=9", resume=True)
    with pytest.raises(RunExists, match="already holds a run"):
        trained(tmp_path / "sweep" / "a", *settings)
    experiments = {"a": experiment_of(*CE, *settings), "b": experiment_of(*CE, *settings, "seed=1")}
    swept = sweep(
        experiments, None, tmp_path / "sweep", command="", data=DataOptions(), together=2, track=["none"], cpu=True
    )
    assert swept.finished == ["a", "b"]
    assert not swept.failed
    assert [len(read_metrics(tmp_path / "sweep" / name)) for name in "ab"] == [2, 2]


def test_the_average_is_evaluated_and_exported(tmp_path: Path) -> None:
    result = trained(tmp_path / "run", "student.ema=0.5", "student.epochs=2")
    file = file_of_average(tmp_path / "run")
    evaluated = evaluate_network(experiment_of(*CE), file, "student", data=DataOptions(), cpu=True)
    assert (evaluated.top1, evaluated.sha256) == (result.last_ema_top1, result.ema_sha256)
    assert result.ema_sha256 != result.sha256
    exported = export(tmp_path / "run", tmp_path / "ema.safetensors", ema=True)
    assert exported.sha256 == result.ema_sha256
    assert export(tmp_path / "run", tmp_path / "weights.safetensors").sha256 == result.sha256


def test_a_run_without_an_average_has_none_to_export(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    with pytest.raises(DhkdError, match="expected an average of the weights beside them, found none"):
        export(tmp_path / "run", tmp_path / "ema.safetensors", ema=True)
    with pytest.raises(DhkdError, match=r"--ema .*expected a run's folder, got a file"):
        file_of_average(tmp_path / "run" / "student.safetensors")
