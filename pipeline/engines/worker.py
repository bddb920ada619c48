"""A worker, whatever the engine: it begins a work once, does the units that it is given, and says what happens.

The work runs in a thread of its own. What it says waits here, in order, until the engine takes it home.
"""

import contextlib
import logging
import os
import pickle
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dhkd.data.errors import DhkdError, ProcessError
from dhkd.pipeline.engines.base import Work
from dhkd.pipeline.engines.packed import portable

MOST_BYTES = 64 * 2**20  # of messages that wait to be taken; then `tell` waits

_END = object()  # in place of a unit

log = logging.getLogger("dhkd")


@dataclass(frozen=True)
class Placed:
    """The worker's process has started, on the node with this id."""

    node_id: str


@dataclass(frozen=True)
class Begun:
    """The worker has begun its work, and waits for a unit."""


@dataclass(frozen=True)
class Refused:
    """The worker can't begin."""

    error: Exception


@dataclass(frozen=True)
class Told:
    """A message of the work."""

    message: object


@dataclass(frozen=True)
class Line:
    """A line of the log."""

    level: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The end of the unit that the worker had: its result, or the exception that its function raised."""

    outcome: Any  # Any: whatever the unit's function returns


class Worker:
    """Begins a work in a thread, and does one unit after the other."""

    def __init__(self, pickled_work: bytes, threads: int, folder: str, node_id: str) -> None:
        settle(threads, folder)
        self._units: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._said = _Said()
        self._said.add(Placed(node_id))
        self._thread = threading.Thread(target=self._run, args=(pickled_work,), name="work", daemon=True)
        self._thread.start()

    def give(self, unit: object) -> None:
        """Give the worker its next unit."""
        self._units.put(unit)

    def end(self) -> None:
        """Let the worker end its work, after the unit that it has, and wait for that."""
        self._units.put(_END)
        self._thread.join()

    def take(self) -> list[bytes]:
        """Wait until the worker has said something, and return all of it in order, pickled."""
        return self._said.take()

    def _run(self, pickled_work: bytes) -> None:
        with log_lines(self._said.add):
            try:
                work: Work[object, object] = pickle.loads(pickled_work)
                with work.begun(lambda message: self._said.add(Told(message))) as function:
                    self._said.add(Begun())
                    while (unit := self._units.get()) is not _END:
                        try:
                            outcome = function(unit)
                        except BaseException as error:  # own code may even raise SystemExit
                            outcome = portable(error)
                        self._said.add(Finished(outcome))
            except BaseException as error:
                self._said.add(Refused(portable(error)))


def settle(threads: int, folder: str) -> None:
    """Prepare a worker's process, before it unpickles the work, which imports torch."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with contextlib.suppress(OSError):  # relative paths in settings mean the command's folder, if it is seen here
        os.chdir(folder)


class _Said:
    """What a worker has said and nobody has taken yet."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._changed = threading.Condition()

    def add(self, said: object) -> None:
        pickled = pickle.dumps(said)
        with self._changed:
            self._changed.wait_for(lambda: self._bytes <= MOST_BYTES)
            self._waiting.append(pickled)
            self._bytes += len(pickled)
            self._changed.notify_all()

    def take(self) -> list[bytes]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            taken, self._waiting, self._bytes = self._waiting, [], 0
            self._changed.notify_all()
            return taken


class _Lines(logging.Handler):
    def __init__(self, say: Callable[[object], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(Line(record.levelno, self.format(record)))


@contextmanager
def log_lines(say: Callable[[object], None]) -> Iterator[None]:
    """Let the lines of the log be said."""
    handler = _Lines(say)
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def given_up(losses: int, node: str, reason: str) -> ProcessError:
    """Build the error of a unit that has lost too many workers, the last one on `node`."""
    return ProcessError(f"expected a worker to end it, got {losses} lost workers, the last one on {node}: {reason}")


def as_told(error: Exception) -> DhkdError:
    """Return the error that a worker's failed beginning is for the command."""
    return error if isinstance(error, DhkdError) else ProcessError(f"{type(error).__name__}: {error}")
