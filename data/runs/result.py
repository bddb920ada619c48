"""Reading result.json: what a finished run reached, from which cache it was trained, and what it ran on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dhkd.data.errors import RunMismatch
from dhkd.data.runs.metrics import EpochMetrics
from dhkd.data.runs.names import CONFIG, METRICS, RESULT

# The numbers that every result holds, in the order of a table's columns; all are fields of `RunResult`.
FIGURES = ("last_top1", "best_top1", "last_top5", "best_top5", "epochs", "seconds", "samples_per_second", "parameters")
# The same of the average (EMA) of the weights, which few runs keep.
FIGURES_OF_AVERAGE = ("last_ema_top1", "best_ema_top1", "last_ema_top5", "best_ema_top5")


@dataclass(frozen=True)
class RunCache:
    """The cache that a run was trained from.

    `row_bytes` is the size in bytes of one sample's signals (teacher outputs such as logits), or 0 if the size was not
    recorded.
    """

    digest: str
    views: int
    samples: int
    teacher: str | None = None
    teacher_sha256: str | None = None
    row_bytes: int = 0

    @property
    def forwards(self) -> int:
        """How many images the teacher classified to fill the cache."""
        return self.views * self.samples


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run. Accuracies are in percent.

    `live` names the signals that a teacher computed in every training step. If the run was stopped early,
    `planned_epochs` is how many epochs it might have had. Fields with a default are not in every file: runs without a
    cache, without an average of weights and of older versions lack some of them.
    """

    last_top1: float
    best_top1: float
    last_top5: float
    best_top5: float
    epochs: int
    seconds: float
    samples_per_second: float
    parameters: int
    last_ema_top1: float | None = None
    best_ema_top1: float | None = None
    last_ema_top5: float | None = None
    best_ema_top5: float | None = None
    planned_epochs: int | None = None
    architecture: str | None = None
    cache: RunCache | None = None
    live: Sequence[str] = ()
    sha256: str | None = None
    settings_sha256: str | None = None
    hardware: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """The numbers of `FIGURES`, by name."""
        return {name: getattr(self, name) for name in FIGURES}

    @property
    def figures_of_average(self) -> dict[str, float]:
        """The numbers of `FIGURES_OF_AVERAGE`, by name; empty if the run kept no average of its weights."""
        values = {name: getattr(self, name) for name in FIGURES_OF_AVERAGE}
        return {name: value for name, value in values.items() if value is not None}


def read_result(path: Path, epochs: Sequence[EpochMetrics], settings_sha256: str | None = None) -> RunResult | None:
    """Read the result of the run at `path`; return None while the run has no result.

    Raises `RunMismatch` if the file is damaged, if it contradicts `epochs`, the run's metrics, or if it was reached
    with other settings than those of the hash `settings_sha256`. If `epochs` is empty, the metrics are not compared; if
    one of the two hashes is None, the settings are not.
    """
    file = path / RESULT
    if not file.exists():
        return None
    try:
        result = _result(json.loads(file.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else "something else"
        raise RunMismatch(f"{file}: expected a finished run's figures in JSON, found {what}") from error
    if epochs:
        _require_agreement(result, epochs, file)
    if None not in (settings_sha256, result.settings_sha256) and settings_sha256 != result.settings_sha256:
        raise RunMismatch(
            f"{file}: expected the result of the settings in {CONFIG} beside it, got that of others; one of them was"
            f" edited"
        )
    return result


def _result(plain: Mapping[str, Any]) -> RunResult:
    """Build a result from JSON, whose values may be of any type."""
    cache = plain.get("cache")
    return RunResult(
        last_top1=float(plain["last_top1"]),
        best_top1=float(plain["best_top1"]),
        last_top5=float(plain["last_top5"]),
        best_top5=float(plain["best_top5"]),
        epochs=int(plain["epochs"]),
        seconds=float(plain["seconds"]),
        samples_per_second=float(plain["samples_per_second"]),
        parameters=int(plain["parameters"]),
        **{name: float(plain[name]) for name in FIGURES_OF_AVERAGE if plain.get(name) is not None},
        planned_epochs=None if plain.get("planned_epochs") is None else int(plain["planned_epochs"]),
        architecture=plain.get("architecture"),
        cache=_cache(cache) if cache else None,
        live=tuple(plain.get("live") or ()),
        sha256=plain.get("sha256"),
        settings_sha256=plain.get("settings_sha256"),
        hardware=plain.get("hardware"),
        versions=plain.get("versions") or {},
    )


def _cache(plain: Mapping[str, Any]) -> RunCache:
    return RunCache(
        digest=plain["digest"],
        views=int(plain["views"]),
        samples=int(plain["samples"]),
        teacher=plain.get("teacher"),
        teacher_sha256=plain.get("teacher_sha256"),
        row_bytes=int(plain.get("row_bytes") or 0),
    )


def _require_agreement(result: RunResult, epochs: Sequence[EpochMetrics], file: Path) -> None:
    by_metrics = {
        "epochs": len(epochs),
        "last_top1": epochs[-1].top1,
        "best_top1": max(epoch.top1 for epoch in epochs),
    }
    if all("top5" in epoch.values for epoch in epochs):  # older runs lack it
        by_metrics["last_top5"] = epochs[-1].values["top5"]
        by_metrics["best_top5"] = max(epoch.values["top5"] for epoch in epochs)
    figures = result.figures | result.figures_of_average
    for name in ("ema_top1", "ema_top5"):
        if f"last_{name}" in figures and all(name in epoch.values for epoch in epochs):
            by_metrics[f"last_{name}"] = epochs[-1].values[name]
            by_metrics[f"best_{name}"] = max(epoch.values[name] for epoch in epochs)
    for name, value in by_metrics.items():
        if abs(figures[name] - value) > 1e-6:
            raise RunMismatch(
                f"{file}: {name} is {figures[name]:g}, but by {METRICS} it is {value:g}; one of them was edited"
            )
