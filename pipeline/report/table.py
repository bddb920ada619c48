"""results.csv, which has a line for each run: the settings in which runs differ, the run's state and its result."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dhkd.data.disk.csv_table import write_csv
from dhkd.data.runs.names import (
    BEGUN_KEY,
    CACHE_KEY,
    CODE_KEY,
    COMMAND_KEY,
    LIVE_KEY,
    SEED_KEY,
    STUDENT_KEY,
    STUDENT_WEIGHTS_KEY,
    TEACHER_KEY,
)
from dhkd.data.runs.read import Run
from dhkd.data.runs.result import FIGURES, FIGURES_OF_AVERAGE

TABLE = "results.csv"

# Short names for settings for which the last part of the key is not clear enough.
SHORT = {STUDENT_KEY: "student", TEACHER_KEY: "teacher"}

# Settings that may differ between comparable runs: descriptions, and settings that follow from other settings.
NO_AXES = ("experiment.description", "experiment.student.views", COMMAND_KEY, LIVE_KEY, SEED_KEY)
LIVE_SIGNALS = f"{LIVE_KEY}."  # the objective decides which signals (teacher outputs) a live teacher computes


def axes_of(runs: Sequence[Run]) -> dict[str, str]:
    """Map short names to the dotted keys of the settings in which the runs differ, apart from the seed.

    A short name is the last part of the key, or the whole key where the last part would be ambiguous.
    """
    runs = [run for run in runs if SEED_KEY in run.settings]  # the settings of other runs could not be read
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = [
        key for key in keys if key not in NO_AXES and not key.startswith(LIVE_SIGNALS) and _differ(_values(key, runs))
    ]
    if STUDENT_WEIGHTS_KEY in differing and BEGUN_KEY in differing:
        differing.remove(BEGUN_KEY)  # the paths already distinguish these runs
    short = {key: SHORT.get(key, key.rpartition(".")[2]) for key in differing}
    taken = [*short.values(), *("run", "seed", "state", *FIGURES, *FIGURES_OF_AVERAGE, "cache", "sha256")]
    return {name if taken.count(name) == 1 else key: key for key, name in short.items()}


def _values(key: str, runs: Sequence[Run]) -> list[Any]:
    """Return the runs' values of a setting; a hash of user code counts only for runs that use the code."""
    values = [run.settings.get(key) for run in runs]
    return [value for value in values if value is not None] if key.startswith(f"{CODE_KEY}.") else values


def write_table(runs: Sequence[Run], folder: Path) -> Path:
    """Write results.csv into `folder` and return its path."""
    axes = axes_of(runs)
    names = [*FIGURES, *(FIGURES_OF_AVERAGE if keeps_average(runs) else ())]
    header = ["run", *axes, "seed", "state", *names, "cache", "sha256"]
    path = folder / TABLE
    write_csv(path, header, [_line(run, list(axes.values()), names) for run in runs])
    return path


def keeps_average(runs: Sequence[Run]) -> bool:
    """Return whether a finished run kept an average (EMA) of its weights, which tables then show."""
    return any(run.result is not None and run.result.figures_of_average for run in runs)


def _line(run: Run, keys: Sequence[str], names: Sequence[str]) -> list[Any]:
    settings = [_plain(run.settings.get(key)) for key in keys]
    values = {} if run.result is None else run.result.figures | run.result.figures_of_average
    figures = [values.get(name, "") for name in names]
    sha256 = "" if run.result is None else run.result.sha256
    cache = run.settings.get(CACHE_KEY) or ""
    return [run.name, *settings, run.settings.get(SEED_KEY, ""), run.state, *figures, cache, sha256]


def _differ(values: Sequence[Any]) -> bool:
    # Equal settings are often one object, and comparing identity first is a hundred times as fast.
    return any(value is not values[0] for value in values) and len({_comparable(value) for value in values}) > 1


def _comparable(value: Any) -> object:
    """Return what is equal for equal settings only: 1, 1.0 and true are three."""
    return (type(value), value) if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
