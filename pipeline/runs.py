"""The runs of a folder, read from their own files: what each was, where it stands, what came out; and their table.

Whatever is said of runs (tables, statistics, pictures, the page) is said of these, so that a folder of runs which were
trained one by one is as good as a sweep's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dhkd.data.errors import RunMismatch
from dhkd.data.files import write_csv
from dhkd.data.flat import flat
from dhkd.stages.train.run_folder import CONFIG, METRICS, RESULT, read_config

FAILED = "failed.txt"  # one line, then the traceback
TABLE = "results.csv"

State = Literal["finished", "unfinished", "failed", "damaged"]
# What a short name may stand for, where that is all that differs.
SHORT = {"experiment.student.architecture": "student", "experiment.teacher.architecture": "teacher"}
# Settings that differ without making runs differ: prose, and what another one says too.
NO_SETTINGS = ("experiment.description", "experiment.student.views", "run.command", "run.live")
LIVE = "run.live."  # what the teacher said in every step follows from the objective
FIGURES = ("last_top1", "best_top1", "last_top5", "best_top5", "epochs", "seconds", "samples_per_second", "parameters")
ACCURACIES = FIGURES[:4]


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


def axes_of(runs: Sequence[Run]) -> dict[str, str]:
    """What differs among the runs' settings: short name to dotted key; the seed isn't among it."""
    runs = [run for run in runs if "experiment.seed" in run.settings]  # of the others the settings are not known
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = [
        key
        for key in keys
        if key not in (*NO_SETTINGS, "experiment.seed")
        and not key.startswith(LIVE)
        and len({json.dumps(run.settings.get(key), sort_keys=True) for run in runs}) > 1
    ]
    short = {key: SHORT.get(key, key.rpartition(".")[2]) for key in differing}
    taken = [*short.values(), *("run", "seed", "state", *FIGURES, "cache", "sha256")]
    return {name if taken.count(name) == 1 else key: key for key, name in short.items()}


def write_table(runs: Sequence[Run], folder: Path) -> Path:
    """Write results.csv: a line for each run, with what differs, its state and what came out; where it is."""
    axes = axes_of(runs)
    rows = []
    for run in runs:
        result = run.result if run.state == "finished" and run.result is not None else {}
        settings = [_plain(run.settings.get(key)) for key in axes.values()]
        figures = [result.get(name, "") for name in FIGURES]
        facts = [run.settings.get("run.cache") or "", result.get("sha256", "")]
        seed = run.settings.get("experiment.seed", "")
        rows.append([run.name, *settings, seed, run.state, *figures, *facts])
    path = folder / TABLE
    write_csv(path, ["run", *axes, "seed", "state", *FIGURES, "cache", "sha256"], rows)
    return path


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


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
