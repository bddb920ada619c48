"""`cache-teacher --on`: an engine's workers hold the teacher, and compute, check and finish a cache.

The cache holds the truth, as it does for any number of commands on one cache: a block is there or is missing, and no
existing object is written again. So the bytes are those of one process, whichever workers come, go and are lost. The
command itself loads neither teacher nor data. It gives four kinds of work, one after the other:

1. One worker begins the cache, lists what is missing, and computes a little of it.
2. Any number of workers compute the rest.
3. Workers that need neither teacher nor images read everything back. Damaged blocks go back to 2.
4. One worker writes the index, and compares random rows with a live forward pass.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dhkd.configs.schema import Experiment
from dhkd.data.cache.blocks import Block
from dhkd.data.cache.writer import Checked
from dhkd.data.errors import CacheDamaged
from dhkd.data.progress import progress
from dhkd.data.storage.places import is_url
from dhkd.pipeline.caching import Caching, require_known_store, result_of
from dhkd.pipeline.caching_work import (
    Began,
    BeginWork,
    CheckUnit,
    CheckWork,
    ComputeUnit,
    ComputeWork,
    Done,
    FinishWork,
    ListWork,
    new_mark,
)
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.engines.base import Engine, Needs
from dhkd.pipeline.engines.choice import EngineOptions, engine_of
from dhkd.pipeline.on_workers import READ_NEEDS, absolute_path, blocks_to_read, implied_needs, on_worker, once, results
from dhkd.pipeline.results import CachedTeacher
from dhkd.stages.cache.write import Written, rows_of, units_of

# How long a worker computes on one unit, by the rate of the first worker. Between two units it renders nothing ahead,
# which costs a fraction of a second. A lost unit costs less than this, because its written blocks stay; but workers
# wait so long for the last one.
UNIT_SECONDS = 20.0
LEAST_GROUPS = 64  # so that many workers share a small cache
MOST_ROUNDS = 3  # of computing damaged blocks again, after which the storage itself is taken to be damaged


def cache_teacher_on(
    engine_options: EngineOptions,
    experiment: Experiment,
    teacher: Path,
    out: str,
    *,
    data: DataOptions,
    name: str | None = None,
    command: str = "",
    cpu: bool = False,
) -> CachedTeacher:
    """Write the teacher's signals as `cache_teacher` does, on the workers of an engine; the arguments are as there."""
    asked = Caching(experiment, teacher, out, data, name, command, cpu)
    require_known_store(asked)
    with engine_of(engine_options) as engine:
        needs = engine_options.needs(implied_needs(experiment, data, engine, cpu=cpu))
        return _OnEngine(engine, needs, asked).cached()


class _OnEngine:
    """One command's work on an engine, and what has been done of it."""

    def __init__(self, engine: Engine, needs: Needs, asked: Caching) -> None:
        self._engine, self._needs, self._asked = engine, needs, asked
        self._on_worker = replace(
            asked,
            teacher=absolute_path(asked.teacher),
            out=asked.out if is_url(asked.out) else str(Path(asked.out).absolute()),
            data=on_worker(asked.data, needs),
        )
        self._workers: set[str] = set()
        self._unreadable: set[str] = set()
        self._blocks = self._rows = self._repaired = 0

    def cached(self) -> CachedTeacher:
        """Do all of the work."""
        first = once(self._engine, BeginWork(self._on_worker, new_mark()), self._needs)
        began, units = replace(first, units=()), first.units  # the list, which may be long, is not for every worker
        since = time.perf_counter() - began.seconds
        # What the first worker resolved from --precision auto holds for all.
        cache = self._asked.experiment.cache.model_copy(update={"precision": began.precision})
        experiment = self._asked.experiment.model_copy(update={"cache": cache})
        self._on_worker = replace(self._on_worker, experiment=experiment)

        fresh = {block for unit in units for block in unit}  # an existing index is older than these
        self._count(began.first)
        self._compute(began, units[1:])
        store = self._on_worker.experiment.cache.store
        remaining = began.others and once(self._engine, ListWork(self._on_worker.out, store, began), READ_NEEDS)
        checked = [] if remaining else self._checked(began, fresh)
        written = Written(self._blocks, self._rows, time.perf_counter() - since, self._repaired, remaining)
        compared = None
        if not remaining:
            compared = once(self._engine, FinishWork(self._on_worker, began, checked), self._needs)
        files, signals = sorted(self._unreadable) or None, began.signals
        return result_of(self._asked, began.manifest, signals, written, files, compared, len(self._workers))

    def _compute(self, began: Began, units: ComputeUnit) -> None:
        """Let workers compute these units of blocks."""
        rate = began.first.rows / began.seconds
        work, groups = ComputeWork(self._on_worker, began), list(grouped(units, rate))
        with progress("caching", sum(map(rows_of, units))) as advance:
            for group, done in results(self._engine, work, groups, self._needs):
                self._count(done)
                advance(sum(map(rows_of, group)))

    def _checked(self, began: Began, fresh: set[Block]) -> list[Checked]:
        """Let workers read all blocks back; return what they found when nothing is damaged any more."""
        work = CheckWork(self._on_worker.out, self._on_worker.experiment.cache.store, began)
        plan, parts = began.manifest.plan, blocks_to_read(began.manifest)
        for _ in range(MOST_ROUNDS):
            checked: list[Checked] = []
            units = [CheckUnit(part, tuple(block for block in part if block in fresh)) for part in parts]
            with progress("checking", plan.num_views * plan.num_samples) as advance:
                for unit, read in results(self._engine, work, units, READ_NEEDS):
                    checked.append(read)
                    advance(rows_of(unit.blocks))
            damages = [damage for read in checked for damage in read.damages]
            damaged = {damage.block for damage in damages if damage.block is not None}
            if not damaged:
                return checked
            fresh |= damaged
            self._repaired += len(damaged)
            self._compute(began, tuple(map(tuple, units_of(sorted(damaged), began.views_at_once).values())))
        raise CacheDamaged(
            f"cache at {self._asked.out}: {damages[0]}; computed {MOST_ROUNDS} times, and still damaged; look for what"
            f" is wrong with this place, or write to another one"
        )

    def _count(self, done: Done) -> None:
        self._workers.add(done.worker)
        self._unreadable.update(done.unreadable)
        self._blocks += done.blocks
        self._rows += done.rows


def grouped(units: ComputeUnit, rate: float) -> Iterator[ComputeUnit]:
    """Group units of blocks so that a worker with this `rate`, in rows per second, takes `UNIT_SECONDS` for each group.

    There are at least `LEAST_GROUPS`, if possible. The rate is 0 if it is unknown.
    """
    if not units:
        return
    of_time = int(UNIT_SECONDS * rate / rows_of(units[0]))
    number = max(1, min(of_time, len(units) // LEAST_GROUPS))
    for start in range(0, len(units), number):
        yield units[start : start + number]
