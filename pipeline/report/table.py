"""The table of runs: the settings in which they differ, where each stands, what came out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dhkd.data.disk.csv_table import write_csv
from dhkd.data.runs.read import FIGURES, Run

TABLE = "results.csv"


# What a short name may stand for, where that is all that differs.
SHORT = {"experiment.student.architecture": "student", "experiment.teacher.architecture": "teacher"}


# Settings that differ without making runs differ: prose, and what another one says too.
NO_SETTINGS = ("experiment.description", "experiment.student.views", "run.command", "run.live")


LIVE = "run.live."  # what the teacher said in every step follows from the objective


ACCURACIES = FIGURES[:4]


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


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
