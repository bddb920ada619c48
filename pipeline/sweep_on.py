"""`dhkd sweep --on`: the runs of a sweep are units of an engine, which trains them on workers elsewhere.

The folder of the sweep holds the truth, as in a sweep on this machine: a run's folder shows its state. So a sweep may
be stopped, killed and given again, with another engine or with none.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dhkd.configs.schema import Experiment
from dhkd.data.errors import DataError, ProcessError
from dhkd.data.progress import duration
from dhkd.data.runs.names import CONFIG, FAILED
from dhkd.data.runs.place import is_elsewhere, runs_at
from dhkd.pipeline.build.cache import reader_of
from dhkd.pipeline.build.data import images_of, plain_identity
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.engines.base import Ended
from dhkd.pipeline.engines.choice import EngineOptions, engine_of
from dhkd.pipeline.on_workers import absolute, absolute_path, implied_needs, on_worker
from dhkd.pipeline.results import Swept
from dhkd.pipeline.sweep import Trainer, keep_failure, remember, require_trainable, swept, written_table
from dhkd.pipeline.sweep_apart import Apart, Files, Put, Received, token_in
from dhkd.pipeline.sweep_work import Began, Group, Refused, SweepData, SweepWork
from dhkd.pipeline.training import train_students

log = logging.getLogger("dhkd")

TABLE_SHARE = 0.1  # of the time goes at most into writing the table again


def sweep_on(
    engine_options: EngineOptions,
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
    """Train the students as `sweep` does, on the workers of an engine; the arguments are as there.

    Raises `DhkdError` for errors that concern all runs, for example if no node has the data.
    """
    began = time.perf_counter()
    cache = None if cache is None else absolute(cache)
    teacher = None if teacher is None else absolute_path(teacher)
    place = runs_at(out if is_elsewhere(out) else Path(out).absolute())
    place.refresh()
    require_trainable(experiments, cache, place, data)
    remember(place, command, list(experiments))
    first = next(iter(experiments.values()))
    with token_in(place) as token, engine_of(engine_options) as engine:
        needs = engine_options.needs(implied_needs(first, data, engine, cpu=cpu))
        options = on_worker(data, needs)
        train = partial(
            train_students,
            cache=cache,
            data=options,
            teacher=teacher,
            allow_drift=allow_drift,
            track=track,
            cpu=cpu,
            resume=True,
        )
        share = dict(list(experiments.items())[part[0] :: part[1]])
        trainer = Trainer(place, share, again, train)
        home = _Home(trainer)
        work = SweepWork(trainer, _data_of(first, cache, options), token)
        units = home.units(together)
        for ended in engine.run(work, units, needs, home.hear) if units else ():
            home.end(ended)
    return swept(place, len(experiments), home.refused, began)


def _data_of(first: Experiment, cache: str | None, options: DataOptions) -> SweepData:
    """Return what the nodes are to have; the command itself needs no images, but compares them if it has them."""
    digest = None if cache is None else reader_of(cache, options).manifest.digest
    identity = None
    if cache is None:  # else the cache says which images it was made from
        try:
            identity = plain_identity(images_of(first, "train", options))
        except DataError as error:
            log.info("data: not compared with the nodes', because it isn't here: %s", error)
    return SweepData(first, cache, options, digest, identity)


@dataclass(frozen=True, eq=False)
class _Sent(Group):
    """A group in the command. It is pickled when a worker gets it, with the runs' files as they are at that time."""

    files_given: Callable[[Sequence[str]], Mapping[str, Files]] = field(kw_only=True)

    def __reduce__(self) -> tuple[type[Group], tuple[Sequence[str], Mapping[str, Files]]]:
        return Group, (self.names, self.files_given(self.names))


class _Home:
    """What the command does with what comes home: it keeps failures, writes the table, and says how far it is."""

    def __init__(self, trainer: Trainer) -> None:
        self.refused: dict[str, str] = {}
        self._trainer = trainer
        self._received = Received(trainer.place.folder, trainer.is_open)
        self._apart: set[str] = set()  # the nodes that don't see the sweep's folder
        self._began = time.perf_counter()
        self._table_at = 0.0
        self._left = self._number = 0

    def units(self, together: int) -> list[Group]:
        """Return the open runs in groups."""
        names = self._trainer.open_runs()
        self._left = self._number = len(names)
        groups = [tuple(names[start : start + together]) for start in range(0, len(names), together)]
        return [_Sent(group, files_given=self._given) for group in groups]

    def hear(self, node: str, message: object) -> None:
        """Take a message of a worker."""
        match message:
            case Began(names):
                for name in names:
                    log.info("%s: %s: training", node, name)
            case Apart(scratch):
                if node not in self._apart:
                    log.info(
                        "%s: doesn't see %s; trains in %s and sends runs home",
                        node,
                        self._trainer.place.location,
                        scratch,
                    )
                self._apart.add(node)
            case Put():
                self._received.take(message)

    def end(self, ended: Ended[Group, Refused]) -> None:
        """Take the end of a group."""
        self._received.release(ended.unit.names)
        if isinstance(ended.outcome, Exception):
            self._keep(ended.unit.names, ended.outcome)
        else:
            self.refused |= ended.outcome
        self._left -= len(ended.unit.names)
        self._write_table()
        if self._left:
            passed = time.perf_counter() - self._began
            left = duration(passed / (self._number - self._left) * self._left)
            log.info("sweep: %d of %d runs left, about %s", self._left, self._number, left)

    def _given(self, names: Sequence[str]) -> Mapping[str, Files]:
        """Return what a worker gets of these runs, and let them go that an earlier worker had, since it is lost."""
        self._received.release(names)
        return {name: self._received.files_of(name) if self._apart else {} for name in names}

    def _keep(self, names: Sequence[str], error: Exception) -> None:
        """Keep runs apart that have lost too many workers, or on which the program failed."""
        line = str(error) if isinstance(error, ProcessError) else f"{type(error).__name__}: {error}"
        for name in names:
            log.error("%s: %s", name, line)
            place = self._trainer.place
            place.refresh()
            if (place.folder / name / CONFIG).exists() and self._trainer.is_open(name):
                keep_failure(place.folder / name, line, error)
                place.send(f"{name}/{FAILED}")
            elif self._trainer.is_open(name):
                self.refused[name] = line

    def _write_table(self) -> None:
        """Write the table, unless that would take much of the time."""
        now = time.perf_counter()
        if now >= self._table_at:
            written_table(self._trainer.place)
            took = time.perf_counter() - now
            self._table_at = now + took / TABLE_SHARE
