"""The rates of each schedule, as tables."""

import math
from typing import Any

import pytest
from dhkd.data.errors import ConfigError
from dhkd.stages.train.learning_rate import LearningRate


def rates(schedule: LearningRate, steps_per_epoch: int) -> list[float]:
    return [
        schedule.at(epoch, step, steps_per_epoch) for epoch in range(schedule.epochs) for step in range(steps_per_epoch)
    ]


def test_constant() -> None:
    assert rates(LearningRate(0.05, "constant", epochs=3), 2) == [0.05] * 6


@pytest.mark.parametrize("step", [0, 390, 780])
@pytest.mark.parametrize(
    ("epoch_from_1", "rate"),
    [(1, 5e-2), (150, 5e-2), (151, 5e-3), (180, 5e-3), (181, 5e-4), (210, 5e-4), (211, 5e-5), (240, 5e-5)],
)
def test_multistep_of_the_cifar_runs(epoch_from_1: int, rate: float, step: int) -> None:
    schedule = LearningRate(0.05, "multistep", epochs=240, milestones=(150, 180, 210), gamma=0.1)
    assert schedule.at(epoch_from_1 - 1, step, 781) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 1e-3), (90, 1e-4)])
def test_multistep_of_the_imagenet_run(epoch: int, rate: float) -> None:
    schedule = LearningRate(0.1, "multistep", epochs=100, milestones=(30, 60, 90))
    assert schedule.at(epoch, 0, 5004) == schedule.at(epoch, 5003, 5004) == pytest.approx(rate, rel=1e-12)


def test_multistep_with_another_gamma_and_a_milestone_after_the_end() -> None:
    schedule = LearningRate(1.0, "multistep", epochs=3, milestones=(1, 150), gamma=0.5)
    assert rates(schedule, 2) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]


def test_cosine() -> None:
    expected = [0.2, 0.2 * (2 + math.sqrt(2)) / 4, 0.1, 0.2 * (2 - math.sqrt(2)) / 4]
    assert rates(LearningRate(0.2, "cosine", epochs=2), 2) == pytest.approx(expected, rel=1e-12)
    assert rates(LearningRate(0.2, "cosine", epochs=4), 1) == pytest.approx(expected, rel=1e-12)
    assert LearningRate(0.2, "cosine", epochs=100).at(99, 499, 500) < 1e-9


def test_one_cycle() -> None:
    expected = [0.04, 0.36, 0.68, 1.0]  # from 1/25 in steps of (1 − 1/25)/3 to the peak after 30 % of the steps
    expected += [(1 + math.cos(math.pi * done / 7)) / 2 for done in range(1, 7)]
    assert rates(LearningRate(2.0, "one-cycle", epochs=5), 2) == pytest.approx(
        [2 * rate for rate in expected], rel=1e-12
    )
    long = rates(LearningRate(2.0, "one-cycle", epochs=20), 50)
    assert max(long) == long[300] == pytest.approx(2.0, rel=1e-12)
    assert long[:301] == sorted(long[:301])
    assert long[300:] == sorted(long[300:], reverse=True)
    assert 0 < long[-1] < 2e-5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LearningRate(1.0, "constant", epochs=4, warmup_epochs=2), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (LearningRate(1.0, "constant", epochs=2, warmup_epochs=0.5), [1.0, 1.0, 1.0, 1.0]),
        (LearningRate(1.0, "constant", epochs=2, warmup_epochs=0.75), [2 / 3, 1.0, 1.0, 1.0]),
        (
            LearningRate(1.0, "multistep", epochs=4, milestones=(1, 3), warmup_epochs=2),
            [0.25, 0.5, 0.075, 0.1, 0.1, 0.1, 0.01, 0.01],
        ),
        (
            LearningRate(1.0, "cosine", epochs=3, warmup_epochs=1),
            [0.5, 1.0, 1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4],
        ),
        (LearningRate(1.0, "cosine", epochs=1, warmup_epochs=5), [0.1, 0.2]),
    ],
)
def test_warmup_rises_step_by_step(schedule: LearningRate, expected: list[float]) -> None:
    assert rates(schedule, 2) == pytest.approx(expected, rel=1e-12)


def test_one_cycle_refuses_a_warmup() -> None:
    with pytest.raises(ConfigError, match="one-cycle") as raised:
        LearningRate(1.0, "one-cycle", epochs=3, warmup_epochs=1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (3, 0), (0, -1), (0, 2)])
def test_only_steps_of_the_run_have_a_rate(epoch: int, step: int) -> None:
    with pytest.raises(AssertionError):
        LearningRate(1.0, "cosine", epochs=3).at(epoch, step, 2)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LearningRate(1.0, "linear", epochs=2), [1.0, 0.75, 0.5, 0.25]),
        (LearningRate(1.0, "linear", epochs=2, min_rate=0.2), [1.0, 0.8, 0.6, 0.4]),
        (LearningRate(1.0, "polynomial", epochs=2, power=2.0), [1.0, 0.5625, 0.25, 0.0625]),
        (LearningRate(1.0, "polynomial", epochs=2), [1.0, 0.75, 0.5, 0.25]),
        (
            LearningRate(1.0, "polynomial", epochs=2, power=0.5, min_rate=0.5),
            [0.5 + (1 - i / 4) ** 0.5 / 2 for i in range(4)],
        ),
        (
            LearningRate(0.2, "cosine", epochs=2, min_rate=0.1),
            [0.2, 0.1 + 0.1 * (2 + math.sqrt(2)) / 4, 0.15, 0.1 + 0.1 * (2 - math.sqrt(2)) / 4],
        ),
        (LearningRate(1.0, "linear", epochs=3, min_rate=0.1, cooldown_epochs=1), [1.0, 0.775, 0.55, 0.325, 0.1, 0.1]),
        (
            LearningRate(1.0, "linear", epochs=4, min_rate=0.2, cooldown_epochs=1, warmup_epochs=1, warmup_start=0.1),
            [0.1, 0.55, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2],
        ),
        (LearningRate(1.0, "linear", epochs=2, min_rate=0.1, cooldown_epochs=1, warmup_epochs=1), [0.5, 1.0, 0.1, 0.1]),
        (LearningRate(1.0, "constant", epochs=2, warmup_epochs=1, warmup_start=0.0), [0.0, 0.5, 1.0, 1.0]),
        (
            LearningRate(1.0, "multistep", epochs=3, milestones=(1,), warmup_epochs=2, warmup_start=0.05),
            [0.05, 0.2875, 0.075, 0.0875, 0.1, 0.1],
        ),
    ],
)
def test_where_schedules_begin_and_end(schedule: LearningRate, expected: list[float]) -> None:
    assert rates(schedule, 2) == pytest.approx(expected, rel=1e-12)


def test_one_cycle_ends_at_the_lowest_rate_and_stays_there() -> None:
    schedule = LearningRate(1.0, "one-cycle", epochs=12, min_rate=0.01, cooldown_epochs=2)
    both = rates(schedule, 10), rates(LearningRate(1.0, "one-cycle", epochs=10), 10)
    assert both[0][:30] == both[1][:30]
    assert both[0][30:100] == pytest.approx([0.01 + 0.99 * rate for rate in both[1][30:]], rel=1e-12)
    assert both[0][100:] == [0.01] * 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "constant", "min_rate": 0.1}, "constant has no lowest rate"),
        ({"kind": "multistep", "cooldown_epochs": 1}, "multistep has no lowest rate"),
        ({"kind": "cosine", "cooldown_epochs": 2, "warmup_epochs": 2}, "expected at most 3 epochs together, got 4"),
        ({"kind": "linear", "min_rate": 2.0}, "min_lr: expected at most lr"),
    ],
)
def test_schedules_that_do_not_fit_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        LearningRate(base=1.0, epochs=3, **settings)
    assert "\n" not in str(error.value)
