"""What a job of Slurm does: it is a worker, which reads its units from a file and writes what it says to another.

Both files lie in a folder that the command and its jobs see. A job ends when it is told to, or when the command has
been gone for some time. The units of a job that starts again, after its time limit or for another job's sake, are given
anew by the command.
"""

import contextlib
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dhkd.pipeline.engines.base import Work
from dhkd.pipeline.engines.mail import Inbox, repair, send
from dhkd.pipeline.engines.packed import portable
from dhkd.pipeline.engines.worker import Begun, Refused, Told, log_lines, settle

BEAT_SECONDS = 10.0  # between two signs of life, of a job and of the command
GONE_SECONDS = 120.0  # without a sign of life of the command, after which an idle job ends
POLL_SECONDS = (0.02, 0.5)  # between two looks for the next unit: at first, and at last

WORK, COMMAND = "work", "command"  # the work, and the file to which the command appends its signs of life


@dataclass(frozen=True)
class Setting:
    """What all jobs have in common: the pickled work, the number of threads, and the folder of the command."""

    pickled: bytes
    threads: int
    folder: str


@dataclass(frozen=True)
class Given:
    """A unit for the job to do."""

    number: int
    unit: Any  # Any: whatever the command's units are


@dataclass(frozen=True)
class Stop:
    """The job is to end: at once, or else after the unit that it has."""

    at_once: bool


@dataclass(frozen=True)
class Started:
    """The job's process has started, perhaps not for the first time."""

    node: str


@dataclass(frozen=True)
class Beat:
    """A sign of life."""


@dataclass(frozen=True)
class Interrupted:
    """Slurm ends the job, for its time limit or for another job's sake; the job is to start again later."""


@dataclass(frozen=True)
class Done:
    """The end of the unit with this number."""

    number: int
    outcome: Any  # Any: whatever the unit's function returns


@dataclass
class Job:
    """The function that submitit calls in the job; `name` is the worker's, in the folder of the command's jobs."""

    folder: Path
    name: str
    _leaving: bool = field(default=False, init=False)

    def __call__(self) -> None:
        """Begin the work, and do unit after unit until the command says stop or is gone."""
        given = Inbox(self.folder / given_to(self.name), skip=True)
        repair(self.folder / said_by(self.name))
        self._say(Started(node_name()))
        threading.Thread(target=self._beat, daemon=True).start()
        with log_lines(self._say), contextlib.suppress(FileNotFoundError):  # the command has ended and tidied up
            try:
                with self._begun() as function:
                    self._say(Begun())
                    self._do_units(function, given)
            except (KeyboardInterrupt, FileNotFoundError):
                raise
            except BaseException as error:
                if self._leaving:
                    raise
                self._say(Refused(portable(error)))

    def checkpoint(self) -> Any:  # Any: of submitit, which has no types
        """Say that the job is interrupted, and return what it is to do when it starts again; submitit calls this."""
        from submitit.helpers import DelayedSubmission

        self._leaving = True
        with contextlib.suppress(OSError):
            self._say(Interrupted())
        return DelayedSubmission(Job(self.folder, self.name))

    def _say(self, record: object) -> None:
        send(self.folder / said_by(self.name), record)

    @contextmanager
    def _begun(self) -> Iterator[Any]:
        setting: Setting = pickle.loads((self.folder / WORK).read_bytes())
        settle(setting.threads, setting.folder)
        work: Work[object, object] = pickle.loads(setting.pickled)
        with work.begun(lambda message: self._say(Told(message))) as function:
            yield function

    def _do_units(self, function: Any, given: Inbox) -> None:
        for each in self._units(given):
            try:
                outcome = function(each.unit)
                pickle.dumps(outcome)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # own code may even raise SystemExit
                if self._leaving:
                    raise
                outcome = portable(error)
            self._say(Done(each.number, outcome))

    def _units(self, given: Inbox) -> Iterator[Given]:
        """Yield units as they come, until there are to be no more."""
        alive, seen = time.monotonic(), -1
        wait = POLL_SECONDS[0]
        while time.monotonic() - alive < GONE_SECONDS:
            for record in given.new():
                if isinstance(record, Stop):
                    return
                assert isinstance(record, Given)
                yield record
                alive, wait = time.monotonic(), POLL_SECONDS[0]
            beats = _size(self.folder / COMMAND)
            if beats != seen:
                alive, seen = time.monotonic(), beats
            time.sleep(wait)
            wait = min(POLL_SECONDS[1], 1.5 * wait)

    def _beat(self) -> None:
        """Give signs of life, and interrupt the work when the command wants the job to end at once."""
        given = Inbox(self.folder / given_to(self.name), skip=True)
        with contextlib.suppress(FileNotFoundError):
            while True:
                if Stop(at_once=True) in given.new():
                    self._leaving = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                self._say(Beat())
                time.sleep(BEAT_SECONDS)


def given_to(name: str) -> str:
    """Return the name of the file of a worker's units."""
    return f"{name}.given"


def said_by(name: str) -> str:
    """Return the name of the file of what a worker says."""
    return f"{name}.said"


def node_name() -> str:
    """Return the name of the node on which this process runs, as Slurm has it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _size(path: Path) -> int:
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END)
