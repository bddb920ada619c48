"""Rates: what two numbers say about the third, and what the stopwatch counts."""

import logging

import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.data.errors import ConfigError
from dhkd.pipeline import measure
from dhkd.pipeline.measure import Rates, measure_rates, rows_per_second


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Rates(), Rates()),
        (Rates(teacher=10.0), Rates(teacher=10.0)),
        (Rates(ratio=0.5), Rates(ratio=0.5)),
        (Rates(teacher=10.0, student=5.0), Rates(10.0, 5.0, 0.5)),
        (Rates(teacher=10.0, ratio=0.5), Rates(10.0, 5.0, 0.5)),
        (Rates(student=5.0, ratio=0.5), Rates(10.0, 5.0, 0.5)),
    ],
    ids=str,
)
def test_two_rates_give_the_third(given: Rates, expected: Rates) -> None:
    assert given.completed() == expected


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (Rates(teacher=0.0), "--teacher-rate: expected a finite number above 0, got 0"),
        (Rates(student=float("inf")), "--student-rate: expected a finite number above 0, got inf"),
        (Rates(ratio=float("nan")), "--ratio: expected a finite number above 0, got nan"),
        (Rates(teacher=1.0, ratio=-1.0), "--ratio: expected a finite number above 0, got -1"),
        (Rates(1.0, 2.0, 2.0), "--ratio: it follows from --teacher-rate and --student-rate"),
    ],
    ids=str,
)
def test_impossible_rates_are_refused(rates: Rates, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rates.completed()


def test_the_rate_is_that_of_the_median_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run, which sets things up, doesn't count, unless it takes all the time by itself."""
    clock = [0.0]

    def rate_of_runs(*seconds: float) -> float:
        durations = iter(seconds)

        def run() -> None:
            clock[0] += next(durations)

        return rows_per_second(run, 60, torch.device("cpu"))

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure, "MEASURED_SECONDS", 10.0)
    assert rate_of_runs(5.0, 1.0, 2.0, 3.0) == pytest.approx(60 / 2.0)
    assert rate_of_runs(30.0) == pytest.approx(60 / 30.0)


def test_both_networks_of_the_preset_are_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measure, "MEASURED_SECONDS", 0.1)
    experiment = load_experiment(
        "digits", ["cache.precision=float32", "student.precision=bf16", "student.batch_size=32"]
    )
    with caplog.at_level(logging.INFO, logger="dhkd"):
        rates = measure_rates(experiment, 10, cpu=True)
    assert rates.teacher is not None
    assert rates.student is not None
    assert rates.teacher > 0
    assert rates.student > 0
    assert rates.ratio == rates.student / rates.teacher
    assert rates.measured is not None
    teacher, student = rates.measured.teacher, rates.measured.student
    assert (teacher.batch_size, teacher.precision) == (256, "float32")
    assert (student.batch_size, student.precision) == (32, "bf16")
    assert teacher.hardware == student.hardware
    assert "threads" in teacher.hardware
    assert caplog.messages == [
        "measuring resnet14, 256 images of 8×8 at a time",
        "measuring resnet8, a training step of 32 images",
    ]


def test_measuring_needs_the_size_of_images() -> None:
    folder = load_experiment("digits", ["data={source: image-folder, num_classes: 5, limit: 10}"])
    with pytest.raises(ConfigError, match="--measure: image-folder doesn't tell how large its images are"):
        measure_rates(folder, 5, cpu=True)
