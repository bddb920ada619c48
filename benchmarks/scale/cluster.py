"""Stage one on an engine, simulated: the real schedule gives real units of a real plan to workers that come and go."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from dhkd.benchmarks.scale.clock import Clock, Queue
from dhkd.benchmarks.scale.settings import Setting
from dhkd.benchmarks.scale.store import SimulatedBucket
from dhkd.data.cache.blocks import Block
from dhkd.data.cache.layouts import layout_of
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.missing import missing_blocks
from dhkd.pipeline.caching_on import grouped
from dhkd.pipeline.engines.schedule import Schedule
from dhkd.stages.cache.write import units_of

Unit = tuple[Block, ...]


@dataclass
class _Worker:
    """One life of a worker; a replaced worker is another one. `rest` are the blocks of its unit still to compute."""

    name: str
    rate: float
    born: float
    rest: list[Block] = field(default_factory=list)
    unfinished: set[Block] = field(default_factory=set)  # computing, or computed and not yet stored
    written_at: float = 0.0
    dead: bool = False


@dataclass(frozen=True)
class Outcome:
    """The figures of one simulated run. Seconds are of the simulated clock, unless they are called CPU seconds."""

    blocks: int
    units: int
    seconds: float
    ideal_seconds: float
    tail_seconds: float
    deaths: int
    losses: int
    recomputed: int
    given_up: int
    lost: int
    unexplained: int
    coordinator_busy: float


class Simulation:
    """Workers that compute the units of a schedule until all are done."""

    def __init__(self, setting: Setting, manifest: Manifest, bucket: SimulatedBucket, units: Sequence[Unit]) -> None:
        self.clock, self.bucket, self._setting, self._manifest = Clock(), bucket, setting, manifest
        self.schedule: Schedule[Unit] = Schedule(units)
        self.starts: Counter[Block] = Counter()
        self.losses: Counter[Block] = Counter()  # of a block that a worker had begun and not stored when it died
        self.ends: Counter[Unit] = Counter()
        self.deaths = self.lost_units = self.after_the_end = 0
        self.given_up: list[Unit] = []
        self.first_idle: float | None = None
        self.coordinator = Queue()
        self._rng = np.random.default_rng(setting.seed)
        self._layout = layout_of("zarr", manifest)
        self._idle: list[_Worker] = []
        self._number = 0
        for _ in range(setting.workers.number):
            self.clock.at(self._rng.uniform(0, setting.workers.late_s), self._join)

    def run(self) -> None:
        """Run to the end."""
        self.clock.run(until=lambda: self.schedule.is_done)

    def _join(self) -> None:
        self._number += 1
        workers, now = self._setting.workers, self.clock.now
        rate = workers.rate * float(self._rng.lognormal(-(workers.spread**2) / 2, workers.spread))
        worker = _Worker(f"worker {self._number}", rate, now)
        self.clock.after(self._rng.exponential(workers.lives_s), lambda: self._die(worker))
        self.clock.after(workers.begin_s, lambda: self._ask(worker))

    def _ask(self, worker: _Worker) -> None:
        """The worker is ready; the coordinator hears of it, and gives it a unit."""
        if worker.dead:
            return
        heard = self.coordinator.serve(self.clock.now, self._setting.coordinator_s)
        self.clock.at(heard, lambda: self._give(worker))

    def _give(self, worker: _Worker) -> None:
        if worker.dead:
            return
        unit = self.schedule.give(worker.name)
        if unit is None:
            self.first_idle = self.clock.now if self.first_idle is None else self.first_idle
            self._idle.append(worker)
            return
        worker.rest = list(reversed(unit))
        self._compute(worker, unit)

    def _compute(self, worker: _Worker, unit: Unit) -> None:
        """Compute the next block, while the one before is being stored; a block that exists is passed over."""
        if worker.dead:
            return
        now = self.clock.now
        while worker.rest:
            block = worker.rest.pop()
            keys = self.keys(block)
            now = self.bucket.answered(now, "HEAD", number=1 if keys[0] not in self.bucket.objects else len(keys))
            if all(key in self.bucket.objects for key in keys):
                continue
            self.starts[block] += 1
            worker.unfinished.add(block)
            now += len(block) / worker.rate
            self.clock.at(now, partial(self._store, worker, unit, block))
            return
        # The unit ends when its last block is stored.
        self.clock.at(max(now, worker.written_at), lambda: self._end(worker, unit))

    def _store(self, worker: _Worker, unit: Unit, block: Block) -> None:
        if worker.dead:
            return
        sizes = [size for name in self._manifest.names for size in self._layout.objects(name, block).values()]
        begins = max(self.clock.now, worker.written_at)  # one thread writes

        def stored() -> None:
            if not worker.dead:
                worker.unfinished.discard(block)
                self.bucket.objects |= dict(zip(self.keys(block), sizes, strict=True))

        worker.written_at = self.bucket.answered(begins, "PUT", sum(sizes), len(sizes))
        self.clock.at(worker.written_at, stored)
        # At most one block waits to be written: a worker whose store is slow waits for it.
        self.clock.at(begins, lambda: self._compute(worker, unit))

    def _end(self, worker: _Worker, unit: Unit) -> None:
        if worker.dead:
            return
        self.after_the_end += self.schedule.is_done
        heard = self.coordinator.serve(self.clock.now, self._setting.coordinator_s)

        def taken() -> None:
            if not worker.dead:
                ended = self.schedule.end(worker.name)
                assert ended == unit
                self.ends[ended] += 1
                self._give(worker)

        self.clock.at(heard, taken)

    def _die(self, worker: _Worker) -> None:
        if self.schedule.is_done:
            return
        worker.dead = True
        self.deaths += 1
        if worker in self._idle:
            self._idle.remove(worker)
        self.losses.update(worker.unfinished)
        workers = self._setting.workers
        self.clock.after(workers.noticed_s, lambda: self._notice(worker))
        self.clock.after(workers.noticed_s + self._rng.exponential(workers.away_s), self._join)

    def _notice(self, worker: _Worker) -> None:
        before = self.schedule.num_waiting
        given_up = self.schedule.lose(worker.name)
        if given_up is not None:
            self.given_up.append(given_up)
        self.lost_units += given_up is not None or self.schedule.num_waiting > before
        while self._idle and self.schedule.num_waiting:
            self._give(self._idle.pop())

    def keys(self, block: Block) -> list[str]:
        """Return the keys of a block's objects."""
        return [key for name in self._manifest.names for key in self._layout.objects(name, block)]


def units_to_compute(setting: Setting, manifest: Manifest) -> list[Unit]:
    """Return the missing blocks of an empty cache in units, as `cache-teacher --on` groups them."""
    units = [tuple(unit) for unit in units_of(manifest.plan.blocks(), setting.size.views_at_once).values()]
    groups = grouped(tuple(units), setting.workers.rate)
    return [tuple(block for unit in group for block in unit) for group in groups]


def simulate(setting: Setting) -> tuple[Outcome, SimulatedBucket, Manifest]:
    """Simulate the computing of all blocks; return what happened, the bucket then, and the cache's manifest."""
    manifest, bucket = setting.size.manifest(), SimulatedBucket(setting.store)
    units = units_to_compute(setting, manifest)
    simulation = Simulation(setting, manifest, bucket, units)
    simulation.run()
    left = {block for unit in simulation.given_up for block in unit}
    lost = set(missing_blocks(bucket, "zarr", manifest, manifest.names)) - left
    starts, losses = simulation.starts, simulation.losses
    workers, rows = setting.workers, manifest.num_views * manifest.num_samples
    end = simulation.clock.now
    outcome = Outcome(
        blocks=manifest.plan.num_blocks,
        units=len(units),
        seconds=end,
        ideal_seconds=rows / (workers.number * workers.rate),
        tail_seconds=end - (simulation.first_idle if simulation.first_idle is not None else end),
        deaths=simulation.deaths,
        losses=simulation.lost_units,
        recomputed=sum(starts.values()) - len(starts),
        given_up=len(simulation.given_up),
        lost=len(lost),
        unexplained=sum(starts[block] > 1 + losses[block] for block in starts),
        coordinator_busy=simulation.coordinator.busy,
    )
    return outcome, bucket, manifest
