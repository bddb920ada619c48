"""Stage one by many commands that share a bucket and don't know of each other, simulated.

Each command does what `dhkd cache-teacher` does without `--on` and `--part`: it lists what is missing, asks before each
block whether it exists by now, and continues elsewhere in its list if another command was faster. Left out: photographs
are decoded ahead, so that a real command asks a little earlier.
"""

from collections import deque
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from dhkd.benchmarks.scale.clock import Clock
from dhkd.benchmarks.scale.settings import Setting
from dhkd.benchmarks.scale.store import LISTED_AT_A_TIME, SimulatedBucket

ASKED_AT_ONCE = 20  # blocks that one event of the simulation asks for


@dataclass
class _Command:
    rate: float
    waiting: deque[int] = field(default_factory=deque)  # numbers of blocks
    asking: float = 0.0  # seconds
    listing: float = 0.0


@dataclass(frozen=True)
class Shared:
    """What happened. `asking` and `listing` are shares of all commands' time; `twice` counts needless computations."""

    blocks: int
    seconds: float
    ideal_seconds: float
    twice: int
    asking: float
    listing: float


class Commands:
    """Commands that compute the blocks of one cache, until each finds nothing missing."""

    def __init__(self, setting: Setting) -> None:
        self.clock, self.bucket, self._setting = Clock(), SimulatedBucket(setting.store), setting
        self._rng, workers = np.random.default_rng(setting.seed), setting.workers
        manifest = setting.size.manifest()
        self.blocks = manifest.plan.blocks()
        self._bytes = manifest.block_rows * (2 * setting.size.classes + 4)
        self.stored, self.twice, self.ended = np.zeros(len(self.blocks), dtype=bool), 0, list[float]()
        self.commands = [
            _Command(workers.rate * float(self._rng.lognormal(-(workers.spread**2) / 2, workers.spread)))
            for _ in range(workers.number)
        ]
        for command in self.commands:
            self.clock.at(self._rng.uniform(0, workers.late_s) + workers.begin_s, partial(self._list, command))

    def run(self) -> Shared:
        """Run until all commands have ended."""
        self.clock.run(until=lambda: len(self.ended) == len(self.commands))
        assert self.stored.all()
        workers = self._setting.workers
        rows, in_all = sum(map(len, self.blocks)), self.clock.now * len(self.commands)
        return Shared(
            blocks=len(self.blocks),
            seconds=self.clock.now,
            ideal_seconds=rows / (workers.number * workers.rate),
            twice=self.twice,
            asking=sum(command.asking for command in self.commands) / in_all,
            listing=sum(command.listing for command in self.commands) / in_all,
        )

    def _list(self, command: _Command) -> None:
        requests = max(1, -(-2 * int(self.stored.sum()) // LISTED_AT_A_TIME))
        answered = self.bucket.answered(self.clock.now, "LIST", number=requests)
        command.listing += answered - self.clock.now

        def listed() -> None:
            command.waiting = deque(np.flatnonzero(~self.stored).tolist())
            if command.waiting:
                self._next(command)
            else:
                self.ended.append(self.clock.now)

        self.clock.at(answered, listed)

    def _next(self, command: _Command) -> None:
        """Ask for one block after the other, and compute the first one that is missing."""
        if not command.waiting:
            self._list(command)
            return
        asked, number = 0, None
        while command.waiting and number is None and asked < 2 * ASKED_AT_ONCE:
            candidate = command.waiting.popleft()
            asked += 2 if self.stored[candidate] else 1  # signal and witness; the signal alone if it is missing
            number = None if self.stored[candidate] else candidate
            if number is None:
                self._turn_away(command)
        answered = self.bucket.answered(self.clock.now, "HEAD", number=asked)
        command.asking += answered - self.clock.now
        if number is None:
            self.clock.at(answered, lambda: self._next(command))
        else:
            computed = answered + len(self.blocks[number]) / command.rate
            self.clock.at(computed, lambda: self._store(command, number))

    def _store(self, command: _Command, number: int) -> None:
        stored = self.bucket.answered(self.clock.now, "PUT", self._bytes, 2)

        def put() -> None:
            if self.stored[number]:
                self.twice += 1
                self._turn_away(command)
            self.stored[number] = True

        self.clock.at(stored, put)
        self._next(command)

    def _turn_away(self, command: _Command) -> None:
        """Continue elsewhere: another command is at work here."""
        if command.waiting:
            command.waiting.rotate(-int(self._rng.integers(len(command.waiting))))
