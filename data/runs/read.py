"""The runs of a folder, read from their own files: what each was, where it stands, what came out.

A folder of runs which were trained one by one is as good as a sweep's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dhkd.data.errors import RunMismatch
from dhkd.data.runs.flat import flat
from dhkd.data.runs.folder import CONFIG, METRICS, RESULT, read_config

FAILED = "failed.txt"  # one line, then the traceback


State = Literal["finished", "unfinished", "failed", "damaged"]


FIGURES = ("last_top1", "best_top1", "last_top5", "best_top5", "epochs", "seconds", "samples_per_second", "parameters")


@dataclass(frozen=True)
class Run:
    """A run's folder as read: `settings` by dotted key, `metrics` a line for each finished epoch.

    `result` is there of a finished run, `failure` (a line) of one that failed, `damage` of one whose files can't be
    what training wrote.
    """

    name: str
    path: Path
    settings: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    result: Mapping[str, Any] | None = None
    failure: str | None = None
    damage: str | None = None

    @property
    def state(self) -> State:
        """In one word."""
        if self.damage is not None:
            return "damaged"
        return "finished" if self.result is not None else "failed" if self.failure is not None else "unfinished"

    @property
    def seed(self) -> int:
        """What the run drew from."""
        return int(self.settings["experiment.seed"])


def read_runs(folder: Path) -> list[Run]:
    """Every run of a student in `folder` or in folders of it, by name. Raises `RunMismatch` where `folder` is none."""
    if not folder.is_dir():
        raise RunMismatch(f"{folder}: expected a folder of runs, found {'a file' if folder.exists() else 'nothing'}")
    runs = []
    for config in sorted(folder.rglob(CONFIG), key=lambda config: naturally(str(config))):
        name = str(config.parent.relative_to(folder))
        run = _read(config.parent, folder.name if name == "." else name)
        if run.settings.get("run.command", "train-student") == "train-student":
            runs.append(run)
    return runs


def require_runs(folder: Path) -> list[Run]:
    """As `read_runs`, but at least one that is finished."""
    runs = read_runs(folder)
    if not any(run.state == "finished" for run in runs):
        found = f"{len(runs)} that are not" if runs else "none"
        raise RunMismatch(f"{folder}: expected finished runs of train-student or sweep, found {found}")
    return runs


def _read(path: Path, name: str) -> Run:
    settings: dict[str, Any] = {}
    metrics: list[dict[str, float]] = []
    failed = path / FAILED
    failure = failed.read_text().partition("\n")[0] if failed.exists() else None
    try:
        settings = flat(read_config(path) or {})
        if type(settings.get("experiment.seed")) is not int:
            raise RunMismatch(f"{path / CONFIG}: expected a run's configuration, found none with a seed")
        metrics = _metrics(path)
        result = _result(path, metrics)
    except RunMismatch as error:
        return Run(name, path, settings, metrics, failure=failure, damage=str(error))
    return Run(name, path, settings, metrics, result, failure)


def _metrics(path: Path) -> list[dict[str, float]]:
    """The lines; a last one that was cut off by a kill is left out, as it is when the run is resumed."""
    try:
        lines = (path / METRICS).read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
            found[-1]["top1"], [value + 0.0 for value in found[-1].values()]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) - 1:
                return found[:number]
            raise RunMismatch(f"{path / METRICS}, line {number + 1}: expected an epoch's metrics in JSON") from error
    return found


def _result(path: Path, metrics: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """What came out, if it is what the epochs' metrics say."""
    file = path / RESULT
    if not file.exists():
        return None
    try:
        result = json.loads(file.read_bytes())
        figures = {name: float(result[name]) for name in FIGURES}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else "something else"
        raise RunMismatch(f"{file}: expected a finished run's figures in JSON, found {what}") from error
    if metrics:
        said = {
            "epochs": len(metrics),
            "last_top1": metrics[-1]["top1"],
            "best_top1": max(line["top1"] for line in metrics),
        }
        for name, value in said.items():
            if abs(figures[name] - value) > 1e-6:
                raise RunMismatch(
                    f"{file}: {name} is {figures[name]:g}, but by {METRICS} it is {value:g}; one of them was edited"
                )
    assert isinstance(result, dict)
    return result


def naturally(text: str) -> list[tuple[float, str]]:
    """As people sort: 4 before 16, and 0.05 before 0.1."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)  # text and numbers in turn
    return [(float(part), "") if position % 2 else (0.0, part) for position, part in enumerate(parts)]
