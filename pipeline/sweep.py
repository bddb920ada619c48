"""`dhkd sweep`: trains every student of a grid once, despite interruptions, and writes one table of the results.

A run folder, which may lie at a URL, shows the state of its run. With result.json, the run is finished. With
failed.txt, it ended early and is skipped unless the command has --again. Otherwise the run is open and will be started
or continued. A worker, i.e. a process of the sweep, holds the lock of the run that it trains, so the same command may
be started several times, also on machines that share the folder.
"""

import contextlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.cache.manifest import differences
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import ConfigError, DhkdError, RunMismatch, RunTaken, StorageError, TrackerError
from dhkd.data.runs.config import read_config, require_no_remains
from dhkd.data.runs.measured import top1_name
from dhkd.data.runs.names import CONFIG, FAILED, RESULT, SWEEP
from dhkd.data.runs.place import NearRun, Runs, runs_at
from dhkd.data.runs.read import Run, read_runs
from dhkd.pipeline.build.cache import digest_for, reader_of
from dhkd.pipeline.build.checks import require_one_class
from dhkd.pipeline.build.code import require_code_of_run
from dhkd.pipeline.build.regularizing import require_regularizing
from dhkd.pipeline.build.training import objective_of
from dhkd.pipeline.claims import settings_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.report.table import TABLE, write_table
from dhkd.pipeline.results import Swept, TrainedRun
from dhkd.pipeline.training import Outcomes, train_students

log = logging.getLogger("dhkd")

Train = Callable[[Mapping[Path, Experiment]], Outcomes]

LOCK_SECONDS = 1.0  # between two attempts to take a lock that is waited for


def sweep(
    experiments: Mapping[str, Experiment],
    cache: str | None,
    out: str | Path,
    *,
    command: str,
    data: DataOptions,
    part: tuple[int, int] = (0, 1),
    together: int = 1,
    again: bool = False,
    teacher: Path | None = None,
    allow_drift: bool = False,
    track: Sequence[str] = (),
    cpu: bool = False,
) -> Swept:
    """Train each student in the subfolder of `out` with the student's name, unless the run is finished or has failed.

    `part` (I, N) selects every N-th run, beginning with the I-th (from 0). `together` students are trained side by
    side. With `again`, failed runs are continued. `command` is recorded in `out`. The other arguments are as in
    `train_student`. If a run ends early, the other runs go on. Raises `DhkdError` for errors that concern all runs.
    """
    place = runs_at(out)
    place.refresh()
    require_trainable(experiments, cache, place, data)
    remember(place, command, list(experiments))
    train = partial(
        train_students,
        cache=cache,
        data=replace(data, shared=True),  # several copies of the command may train on this machine
        teacher=teacher,
        allow_drift=allow_drift,
        track=track,
        cpu=cpu,
        resume=True,
    )
    began = time.perf_counter()
    share = dict(list(experiments.items())[part[0] :: part[1]])
    refused = _work(Trainer(place, share, again, train), together)
    return swept(place, len(experiments), refused, began)


def swept(place: Runs, number: int, refused: Mapping[str, str], began: float) -> Swept:
    """Write the table, and return the result of a sweep over a `number` of runs that began at this performance count.

    `refused` has the errors that no folder records, by run name.
    """
    runs = written_table(place)
    return Swept(
        folder=place.location,
        table=place.shown(str(place.folder / TABLE)),
        runs=number,
        finished=[run.name for run in runs if run.state == "finished"],
        failed={run.name: run.failure for run in runs if run.failure is not None} | dict(refused),
        seconds=round(time.perf_counter() - began, 1),
    )


def written_table(place: Runs) -> list[Run]:
    """Write the table of all runs as they are now, and return the runs."""
    place.refresh()
    runs = read_runs(place.folder, place.shown)
    write_table(runs, place.folder)
    place.send(TABLE)
    return runs


@dataclass(frozen=True)
class Trainer:
    """Trains runs of a sweep that are not finished and have not failed. Runs are locked, so several may share them."""

    place: Runs
    experiments: Mapping[str, Experiment]
    again: bool
    train: Callable[..., Outcomes]  # a `Train` that also takes how the runs' folders are `held`

    def is_open(self, name: str) -> bool:
        """Return whether this run is to be trained, as far as is known here."""
        return is_open(self.place.folder / name, self.again)

    def open_runs(self) -> list[str]:
        """Return the runs that are to be trained, and log how many they are."""
        names = [name for name in self.experiments if self.is_open(name)]
        finished = sum((self.place.folder / name / RESULT).exists() for name in self.experiments)
        counted = f", {finished} finished" if finished else ""
        log.info("sweep: %d of %d runs to train%s", len(names), len(self.experiments), counted)
        return names

    def train_runs(self, names: Sequence[str], patience: float = 0.0) -> tuple[bool, dict[str, str]]:
        """Train these runs side by side, except those that are not open or that another worker trains.

        A lock that another worker holds is waited for, up to `patience` in seconds. Returns whether any run was
        trained, and the errors that no folder records, by run name.
        """
        unsent: dict[str, str] = {}
        with self._locked(names, patience, unsent) as runs:
            group = {near.folder: self.experiments[name] for name, near in runs.items()}
            refused = train_or_record(group, partial(self._train, {near.folder: near for near in runs.values()}))
        return bool(group), refused | unsent

    def _train(self, runs: Mapping[Path, NearRun], group: Mapping[Path, Experiment]) -> Outcomes:
        """Train the runs of the group, whose errors then name the places where the runs lie."""
        try:
            outcomes = self.train(group, held=runs)
        except Exception as error:
            for near in runs.values():
                near.rename(error)
            raise
        for folder, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                runs[folder].rename(outcome)
        return outcomes

    @contextlib.contextmanager
    def _locked(self, names: Sequence[str], patience: float, unsent: dict[str, str]) -> Iterator[dict[str, NearRun]]:
        """Hold the open runs of `names` that no other worker trains, and delete their failed.txt.

        If the files of a run can't be sent to its home in the end, the error is added to `unsent`.
        """
        until = time.monotonic() + patience
        with contextlib.ExitStack() as stack:
            runs = {}
            for name in names:
                try:
                    near = self._held_by(stack, name, until, unsent)
                except RunTaken as error:
                    log.info("%s: another worker trains it (%s)", name, error)
                    continue
                # Another worker may have ended the run before this worker got the run's lock.
                if is_open(near.folder, self.again):
                    (near.folder / FAILED).unlink(missing_ok=True)
                    runs[name] = near
            yield runs

    def _held_by(self, stack: contextlib.ExitStack, name: str, until: float, unsent: dict[str, str]) -> NearRun:
        """Hold a run until the stack ends; wait for its lock up to a time on the monotonic clock."""
        while True:
            try:
                return stack.enter_context(self._held(name, unsent))
            except RunTaken:
                if time.monotonic() >= until:
                    raise
                time.sleep(LOCK_SECONDS)

    @contextlib.contextmanager
    def _held(self, name: str, unsent: dict[str, str]) -> Iterator[NearRun]:
        begun = False
        try:
            with self.place.trained(name) as near:
                begun = True
                yield near
        except (StorageError, RunTaken) as error:
            if not begun:
                raise
            log.error("%s: %s", name, error)
            unsent[name] = str(error)


def _work(trainer: Trainer, together: int) -> dict[str, str]:
    """Train the open runs, `together` at a time; return the errors that no folder records, by run name."""
    names = trainer.open_runs()
    began = time.perf_counter()
    refused: dict[str, str] = {}
    for start in range(0, len(names), together):
        trained, errors = trainer.train_runs(names[start : start + together])
        refused |= errors
        written_table(trainer.place)
        # Workers with the same share go through the same list, so runs before `passed` are all taken.
        passed = start + together
        left = sum(trainer.is_open(name) for name in names[passed:])
        if trained and left:
            minutes = (time.perf_counter() - began) / passed * left / 60
            log.info("sweep: %d of %d runs left, about %.1f min", left, len(names), minutes)
    return refused


def is_open(run: Path, again: bool) -> bool:
    """Return whether a run is to be trained: it is not finished and, unless `again` is set, it has not failed."""
    return not (run / RESULT).exists() and (again or not (run / FAILED).exists())


def train_or_record(group: Mapping[Path, Experiment], train: Train) -> dict[str, str]:
    """Train these students side by side, and write the failure of each run that had begun into the run's folder.

    If the group fails as a whole, its students are trained one by one. Returns, by run name, the errors that no folder
    records: the errors of runs that could not begin or that another process took, and those of trackers.
    """
    if not group:
        return {}
    outcomes: Mapping[Path, TrainedRun | Exception]
    try:
        outcomes = train(group)
    except Exception as error:  # whether a run or the program is at fault, the other runs are to be trained
        if len(group) > 1:  # each student may still succeed alone
            alone = [train_or_record({run: experiment}, train) for run, experiment in group.items()]
            return {name: line for refused in alone for name, line in refused.items()}
        outcomes = dict.fromkeys(group, error)
    refused = {}
    for run, outcome in outcomes.items():
        if not isinstance(outcome, Exception):
            log.info("%s: trained, %s %.2f %%", run.name, top1_name(outcome.measured), outcome.last_top1)
            continue
        line = str(outcome) if isinstance(outcome, DhkdError) else f"{type(outcome).__name__}: {outcome}"
        log.error("%s: %s", run.name, line)
        # An error of a tracker is no failure of the run, and a run that another process took is that process's.
        if (run / CONFIG).exists() and not isinstance(outcome, TrackerError | RunTaken):
            keep_failure(run, line, outcome)
        else:
            refused[run.name] = line
    return refused


def keep_failure(run: Path, line: str, error: Exception) -> None:
    """Write failed.txt, which keeps the run apart: the error in one line, then the traceback."""
    text = "".join([line, "\n\n", *traceback.format_exception(error)])
    write_atomically(run / FAILED, lambda stream: stream.write(text.encode()))


def require_trainable(experiments: Mapping[str, Experiment], cache: str | None, place: Runs, data: DataOptions) -> None:
    """Raise, before anything is trained, the `DhkdError` that would otherwise end the sweep hours later."""
    for experiment in experiments.values():
        objective = objective_of(experiment)
        require_one_class(experiment, objective)
        require_regularizing(experiment, experiment.student, objective)
    require_different(experiments)
    reader = reader_of(cache, data) if cache is not None else None
    if reader is not None:
        reader.require_present()
    with place.named():
        for name, experiment in experiments.items():
            digest = None if reader is None else digest_for(reader, experiment.student.teacher)
            require_same(place.folder / name, experiment, digest)


def require_different(experiments: Mapping[str, Experiment]) -> None:
    """Raise `ConfigError` if two names stand for the same settings."""
    seen: dict[str, str] = {}
    for name, experiment in experiments.items():
        settings = json.dumps(settings_of(experiment), sort_keys=True)
        if settings in seen:
            raise ConfigError(f"--grid: expected different runs, {seen[settings]} and {name} have the same settings")
        seen[settings] = name


def require_same(run: Path, experiment: Experiment, digest: str | None) -> None:
    """Raise `RunMismatch` if the folder holds a run with other settings or another cache, or a run without settings.

    Training itself doesn't check the folders of finished runs. `digest` is the digest of the cached logits that the
    experiment learns from, or None without a cache.
    """
    existing = read_config(run)
    if existing is None:
        require_no_remains(run)
        return
    require_code_of_run(run)
    changed = differences(existing.get("experiment") or {}, settings_of(experiment), exact=True)
    before = (existing.get("run") or {}).get("cache")
    if before != digest:
        changed.append(f"cache expected {str(before)[:12]}, got {str(digest)[:12]}")
    if changed:
        raise RunMismatch(f"run at {run}: {'; '.join(changed)}; give its own settings or choose another --out")


def remember(place: Runs, command: str, names: Sequence[str]) -> None:
    """Add the command and its runs to the sweep's file at `place`, which reports read.

    Earlier commands of the same sweep stay in the file.
    """
    path = place.folder / SWEEP
    before: dict[str, Any] = {"commands": [], "runs": []}  # JSON, as the file holds it
    with contextlib.suppress(FileNotFoundError, ValueError):
        before |= json.loads(path.read_bytes())
    added = {"commands": [command], "runs": names}
    both = {key: list(dict.fromkeys([*before[key], *values])) for key, values in added.items()}
    if both != before:
        write_atomically(path, lambda stream: stream.write(json.dumps(both, indent=2).encode() + b"\n"))
        place.send(SWEEP)
