"""Reading a folder of runs: what each run was, how far it got, and its result.

It makes no difference whether a sweep trained the runs or somebody trained them one by one.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dhkd.data.errors import RunMismatch
from dhkd.data.runs.config import read_config, require_no_remains, settings_sha256
from dhkd.data.runs.flat import flat
from dhkd.data.runs.metrics import EpochMetrics, read_metrics
from dhkd.data.runs.names import COMMAND_KEY, CONFIG, FAILED, METRICS, RESULT, SEED_KEY, SWEEP, WEIGHTS
from dhkd.data.runs.result import RunResult, read_result
from dhkd.data.shown import printable_line

REASONS = 3  # how many runs a message names

Stamp = tuple[tuple[int, int, int] | None, ...]
State = Literal["finished", "unfinished", "failed", "damaged"]


@dataclass(frozen=True)
class Run:
    """A run as read from its folder. `settings` has dotted keys; `metrics` has one entry for each finished epoch.

    `result` is None until the run is finished. `failure` is the one-line error that ended the run early, or None if no
    error did. `damage` says which file is damaged, or is None if every file could be read; a damaged run has no result.
    """

    name: str
    path: Path
    # Any: every version, recipe and objective has other settings, and reports compare them without knowing their
    # meaning.
    settings: Mapping[str, Any]
    metrics: Sequence[EpochMetrics]
    result: RunResult | None = None
    failure: str | None = None
    damage: str | None = None

    @property
    def state(self) -> State:
        """How far the run got."""
        if self.damage is not None:
            return "damaged"
        if self.result is not None:
            return "finished"
        return "failed" if self.failure is not None else "unfinished"

    @property
    def seed(self) -> int:
        """The seed of the run's random draws."""
        return int(self.settings[SEED_KEY])

    @property
    def finished_result(self) -> RunResult:
        """The result of a run that is known to be finished."""
        assert self.result is not None, f"{self.name} is {self.state}"
        return self.result


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep was asked to run: the commands, and the names of all runs, including runs that have not begun."""

    commands: Sequence[str] = ()
    runs: Sequence[str] = ()


class RunReader:
    """Reads a folder of runs again and again, and of these only the runs whose files have changed."""

    def __init__(self, folder: Path, shown: Callable[[str], str] = str) -> None:
        """`shown` puts the place that users know into a message that names `folder`."""
        self._folder, self._shown = folder, shown
        self._known: dict[Path, tuple[Stamp, Run]] = {}

    def read(self) -> list[Run]:
        """Return the runs as `read_runs` does; a run that has not changed is the same object as before."""
        folder = self._folder
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise RunMismatch(f"{folder}: expected a folder of runs, found {found}")
        runs = {}
        # A folder that lost its settings still holds a run, which is damaged.
        paths = {file.parent for name in (CONFIG, RESULT, METRICS) for file in folder.rglob(name)}
        for path in sorted(paths, key=lambda path: naturally(str(path))):
            name = str(path.relative_to(folder))
            stamp = _stamp(path)
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                known = stamp, _read(path, printable_line(folder.name if name == "." else name), self._shown)
            runs[path] = known
        self._known = runs
        return [run for _, run in runs.values() if run.settings.get(COMMAND_KEY, "train-student") == "train-student"]


def read_runs(folder: Path, shown: Callable[[str], str] = str) -> list[Run]:
    """Read every run of the command `train-student` in `folder`, at any depth; return the runs sorted by name.

    A name is the path of the run's folder, with an escape for each character that can't be printed. Raises
    `RunMismatch` if `folder` is not a folder. `shown` puts the place that users know into messages that name `folder`.
    """
    return RunReader(folder, shown).read()


def require_runs(folder: Path, shown: Callable[[str], str] = str) -> list[Run]:
    """Read the runs as `read_runs` does; raises `RunMismatch` unless at least one run is finished."""
    runs = read_runs(folder, shown)
    if not finished_of(runs):
        raise RunMismatch(f"{folder}: expected finished runs of train-student or sweep, found {why_unusable(runs)}")
    return runs


def why_unusable(runs: Sequence[Run]) -> str:
    """Return "none", and why these runs can't be reported; the first few by name, with the reason for each."""
    reasons = [f"{run.name} is {run.state}{_because(run)}" for run in runs[:REASONS]]
    more = f" and {len(runs) - REASONS} more" if len(runs) > REASONS else ""
    return ": ".join(["none", *(["; ".join(reasons) + more] if reasons else [])])


def _because(run: Run) -> str:
    reason = run.damage or run.failure
    return f" ({reason})" if reason else ""


def finished_of(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that have a result."""
    return [run for run in runs if run.state == "finished"]


def read_sweep_record(folder: Path) -> SweepRecord:
    """Read what the sweep in `folder` was asked to run; the record is empty if no sweep trained these runs."""
    try:
        plain = json.loads((folder / SWEEP).read_bytes())
        return SweepRecord(list(plain["commands"]), list(plain["runs"]))
    except (OSError, ValueError, KeyError, TypeError):
        return SweepRecord()


def kept_weights(path: Path) -> dict[int, Path]:
    """Return the weights files that the run at `path` kept during training, by the number of epochs trained.

    For a run without the setting `keep_every`, the result is empty.
    """
    return {int(file.stem.partition("-")[2]): file for file in sorted((path / WEIGHTS).glob("epoch-*.safetensors"))}


def _stamp(path: Path) -> Stamp:
    """Return what changes when a file of the run is written: each file's size, time and number; None if it's absent."""
    stamp: list[tuple[int, int, int] | None] = []
    for name in (CONFIG, METRICS, RESULT, FAILED):
        try:
            status = (path / name).stat()
            stamp.append((status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError:
            stamp.append(None)
    return tuple(stamp)


def _read(path: Path, name: str, shown: Callable[[str], str]) -> Run:
    settings: dict[str, Any] = {}  # Any: see `Run`
    metrics: list[EpochMetrics] = []
    failed = path / FAILED
    failure = printable_line(failed.read_text(errors="replace").partition("\n")[0]) if failed.exists() else None
    try:
        config = read_config(path)
        if config is None:
            require_no_remains(path)
        settings = flat(config or {})
        if type(settings.get(SEED_KEY)) is not int:
            raise RunMismatch(f"{path / CONFIG}: expected a run's configuration, found none with a seed")
        metrics = read_metrics(path)
        result = read_result(path, metrics, settings_sha256(config or {}))
    except RunMismatch as error:
        return Run(name, path, settings, metrics, failure=failure, damage=printable_line(shown(str(error))))
    return Run(name, path, settings, metrics, result, failure)


def naturally(text: str) -> list[tuple[float, str]]:
    """Return a sorting key that puts numbers where people expect them: 4 before 16, and 0.05 before 0.1."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)  # text and numbers alternate
    return [(float(part), "") if position % 2 else (0.0, part) for position, part in enumerate(parts)]
