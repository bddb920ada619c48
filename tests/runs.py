"""Runs for tests of reports, built without training, and a reader of metrics that shares no code with the program."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dhkd.data.runs.metrics import EpochMetrics
from dhkd.data.runs.read import Run
from dhkd.data.runs.result import RunResult


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def result_of(top1: float, **values: Any) -> RunResult:
    """Build a result whose last and best accuracy is `top1`, in percent, after one epoch of one second."""
    figures = {"last_top1": top1, "best_top1": top1, "last_top5": 90.0, "best_top5": 90.0, "epochs": 1, "seconds": 1.0}
    return RunResult(**{**figures, "samples_per_second": 100.0, "parameters": 1000, **values})


def epochs_of(*lines: dict[str, float]) -> list[EpochMetrics]:
    """Build the metrics of one epoch from each line."""
    return [EpochMetrics(line["top1"], line) for line in lines]


def run_of(
    seed: int,
    top1: float | None = None,
    *,
    name: str | None = None,
    metrics: Sequence[EpochMetrics] = (),
    result: RunResult | None = None,
    run: dict[str, Any] | None = None,
    failure: str | None = None,
    damage: str | None = None,
    **settings: Any,
) -> Run:
    """Build a run of the paper's first pair of networks; it is unfinished unless `top1` or `result` is given.

    `run` has the settings under `run.`; `settings` has those of the experiment, with __ for the dots of a key.
    """
    experiment = {
        "data.source": "cifar100",
        "teacher.architecture": "resnet56",
        "student.architecture": "resnet20",
        "objective": "kd",
        "seed": seed,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    flat = {f"run.{key}": value for key, value in (run or {}).items()}
    flat |= {f"experiment.{key}": value for key, value in experiment.items()}
    if result is None and top1 is not None:
        result = result_of(top1)
    return Run(name or f"{settings}, seed={seed}", Path(), flat, metrics, result, failure, damage)
