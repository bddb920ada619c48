"""Early stopping: its rule, and runs that it ends, alone, side by side and after an interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dhkd.data.runs.read import kept_weights
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.processes import Processes
from dhkd.stages.train.early_stopping import EarlyStopping
from dhkd.stages.train.ema import Ema
from dhkd.stages.train.loop import Figures, Task, train, train_together
from torch import nn

from tests.runs import read_metrics
from tests.stages.train.worlds import World, task_of

RISING_THEN_FLAT = [10.0, 20.0, 30.0, 30.0, 29.0, 30.0, 31.0, 31.0]


@pytest.mark.parametrize(
    ("rule", "values", "ends"),
    [
        (EarlyStopping(3), RISING_THEN_FLAT, 6),
        (EarlyStopping(4), RISING_THEN_FLAT, None),
        (EarlyStopping(1), [5.0, 5.0], 2),
        (EarlyStopping(1), [5.0, 6.0, 5.9], 3),
        (EarlyStopping(2, min_delta=1.0), [10.0, 11.0, 11.0], 3),  # 1 is not more than 1
        (EarlyStopping(2, min_delta=1.0), [10.0, 10.6, 11.2, 11.8, 12.4], None),  # the best is 10, then 11.2, …
        (EarlyStopping(2, min_delta=0.5), [0.0, 0.0, 0.0], 3),
    ],
)
def test_the_rule(rule: EarlyStopping, values: list[float], ends: int | None) -> None:
    stopped = [epoch for epoch in range(len(values) + 1) if rule.stops(values[:epoch])]
    assert (stopped[0] if stopped else None) == ends


def giving(values: list[float]) -> Callable[[nn.Module], Accuracy]:
    """An evaluation that gives these values in turn."""
    left = iter(values)
    return lambda network: Accuracy(next(left), 100.0)


def task(world: World, out: Path, values: list[float], patience: int = 3, epochs: int = 8, **options: Any) -> Task:
    rule = EarlyStopping(patience)
    return task_of(
        world,
        out,
        objective="kd",
        epochs=epochs,
        schedule_epochs=8,
        evaluate=giving(values),
        early_stopping=rule,
        **options,
    )


def test_a_run_ends_early_and_is_finished(
    processes: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dhkd")
    world = World(tmp_path, processes)
    ended = task(world, tmp_path / "run", RISING_THEN_FLAT)
    figures = train(ended, processes)
    assert (figures.epochs, figures.planned_epochs, figures.best_top1, figures.last_top1) == (6, 8, 30.0, 30.0)
    assert len(read_metrics(tmp_path / "run")) == 6
    assert "run: stopped early after epoch 6 of 8, because top1 has had no gain since epoch 3 (30.00 %)" in caplog.text
    # What a killed process would do next: no epoch is left, the figures and the weights are the same.
    again = task(world, tmp_path / "run", [])
    resumed = train(again, processes)
    assert resumed == figures
    assert weights_sha256(again.student) == weights_sha256(ended.student)


def test_the_decision_is_resumed(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    whole = task(world, tmp_path / "whole", RISING_THEN_FLAT)
    train(whole, processes)
    for start, stop in ((0, 2), (2, 5), (5, 8)):
        cut = task(world, tmp_path / "cut", RISING_THEN_FLAT[start:], epochs=stop)
        figures = train(cut, processes)
        assert figures.planned_epochs == (8 if stop == 8 else None), "an end at the last epoch is none before it"
    assert figures.epochs == 6
    assert weights_sha256(cut.student) == weights_sha256(whole.student)


def test_each_of_several_students_stops_on_its_own(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    stream = world.stream()
    tasks = [
        task(world, tmp_path / "early", [50.0, 40.0, 30.0], patience=1, epochs=4, stream=stream),
        task(world, tmp_path / "late", [1.0, 2.0, 3.0, 4.0], patience=1, epochs=4, stream=stream),
    ]
    outcomes = train_together(tasks, processes)
    assert [o.epochs for o in outcomes if isinstance(o, Figures)] == [2, 4]
    assert [o.planned_epochs for o in outcomes if isinstance(o, Figures)] == [4, None]
    alone = task(world, tmp_path / "alone", [50.0, 40.0, 30.0], patience=1, epochs=4)
    train(alone, processes)
    assert weights_sha256(alone.student) == weights_sha256(tasks[0].student)


def test_the_average_may_decide_and_the_last_weights_are_kept(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    values = [1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 4.0]  # of weights and average in turn
    rule = EarlyStopping(1, monitor="ema_top1")
    ended = task_of(
        world,
        tmp_path / "run",
        epochs=5,
        schedule_epochs=5,
        evaluate=giving(values),
        early_stopping=rule,
        ema=Ema(0.5),
        keep_every=5,
    )
    assert train(ended, processes).epochs == 2
    assert list(kept_weights(tmp_path / "run")) == [0, 2]
