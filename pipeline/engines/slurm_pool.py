"""The jobs of one work, as workers: which there are, which units they have, and what they say."""

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dhkd.data.errors import ConfigError, DhkdError, ProcessError
from dhkd.pipeline.engines.base import Ended, Hear
from dhkd.pipeline.engines.mail import Inbox, create, send
from dhkd.pipeline.engines.schedule import MOST_LOSSES, Schedule
from dhkd.pipeline.engines.slurm_job import (
    BEAT_SECONDS,
    Done,
    Given,
    Interrupted,
    Job,
    Started,
    Stop,
    given_to,
    said_by,
)
from dhkd.pipeline.engines.worker import Begun, Line, Refused, Told, as_told, given_up

log = logging.getLogger("dhkd")

U = TypeVar("U")
R = TypeVar("R")

LOOK_SECONDS = 1.0  # between two looks at whether there are as many jobs as units
SILENT_SECONDS = 3 * BEAT_SECONDS  # after which a job that has started may have ended
ASK_SECONDS = 30.0  # between two questions to Slurm about jobs
LOST_SECONDS = 600.0  # of silence, after which a job is lost, whatever Slurm says
SAY_SECONDS = 60.0  # between two lines of a command whose jobs all wait in Slurm's queue
END_SECONDS = 10.0  # for jobs to tidy up


class Submits(Protocol):
    """Submits jobs to Slurm."""

    @property
    def is_local(self) -> bool:
        """Whether jobs are processes of this machine, of which is known at once whether they run."""

    def exclude(self, node: str) -> None:
        """Submit no more jobs to a node."""

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Submit jobs, and return submitit's (Any: they have no types). Raises `ConfigError` if Slurm refuses."""


@dataclass
class _Member:
    """A worker, as the command knows it; `number` is that of the unit that it has, or None."""

    name: str
    job: Any  # Any: submitit's
    said: Inbox
    given: Path
    heard: float  # when it was heard last
    asked: float  # when Slurm was asked last whether it runs
    node: str | None = None  # None until it has started
    has_begun: bool = False
    number: int | None = None


class Pool(Generic[U, R]):
    """The workers that share the units of one work, and the decisions about them."""

    def __init__(self, submitter: Submits, folder: Path, units: Sequence[U], hear: Hear, most: int) -> None:
        """`folder` is for the files of workers; at most `most` workers work at a time."""
        self.has_lost = False
        self._submitter, self._folder, self._hear, self._most = submitter, folder, hear, most
        self._schedule: Schedule[U] = Schedule(units)
        self._members: list[_Member] = []
        self._ending: list[_Member] = []
        self._refusals: dict[str, DhkdError] = {}  # by node
        self._lost_beginnings: Counter[str | None] = Counter()  # by node; None if it never started
        self._num_given = self._num_workers = 0
        self._looked = self._tried = -math.inf
        self._asked = self._said_at = time.monotonic()

    def ended(self) -> Iterator[Ended[U, R]]:
        """Yield every unit as it ends."""
        while not self._schedule.is_done:
            self._fit()
            for member in list(self._members):
                yield from self._taken(member)
            # Many files take time to look at, above all on a shared file system.
            time.sleep(min(1.0, 0.05 + 0.01 * len(self._members)))

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Let jobs end after the context, at once if an exception ends it; cancel those that don't."""
        at_once = True
        try:
            yield
            at_once = False
        finally:
            for member in self._members:
                self._release(member, at_once)
            until = time.monotonic() + END_SECONDS
            ending = [] if at_once and not self._submitter.is_local else self._ending
            while time.monotonic() < until and any(not member.job.done() for member in ending):
                time.sleep(0.1)
            for member in ending:
                if not member.job.done():
                    member.job.cancel(check=False)

    def _taken(self, member: _Member) -> Iterator[Ended[U, R]]:
        """Take home what a worker has said; yield the unit that it has ended or that was given up."""
        is_gone = self._is_gone(member)  # before its last words are read
        records = member.said.new()
        if records:
            member.heard = time.monotonic()
        for record in records:
            match record:
                case Started(node):
                    yield from self._restarted(member)
                    member.node, member.has_begun = node, False
                case Begun():
                    member.has_begun = True
                case Told(message):
                    self._hear(_node(member), message)
                case Line(level, text):
                    log.log(level, "%s: %s", _node(member), text)
                case Done(number, outcome) if number == member.number:
                    member.number = None
                    yield Ended(self._schedule.end(member.name), outcome, _node(member))
                case Interrupted():
                    log.info("%s: Slurm ends job %s, which is to start again", _node(member), member.job.job_id)
                    member.number, member.has_begun = None, False
                    self._schedule.give_back(member.name)
                case Refused(refusal):
                    self._members.remove(member)
                    self._refuse(_node(member), as_told(refusal))
        if is_gone and member in self._members:
            yield from self._lost(member, f"its job {member.job.job_id} ended ({member.job.state})")
        self._give(member)

    def _give(self, member: _Member) -> None:
        """Give an idle worker its next unit, or let it go if there is none."""
        if member not in self._members or not member.has_begun or member.number is not None:
            return
        unit = self._schedule.give(member.name)
        if unit is None:
            self._release(member)
            return
        self._num_given += 1
        member.number = self._num_given
        send(member.given, Given(member.number, unit))

    def _release(self, member: _Member, at_once: bool = False) -> None:
        """Let a worker end; one that waits in Slurm's queue is taken out of it."""
        self._members = [each for each in self._members if each is not member]
        send(member.given, Stop(at_once))
        if at_once or member.node is None:
            member.job.cancel(check=False)
        self._ending.append(member)

    def _refuse(self, node: str, error: DhkdError) -> None:
        """Give a node no more units, because workers there can't begin."""
        if node not in self._refusals:
            self._refusals[node] = error
            log.error("%s: it gets no work: %s", node, error)
            self._submitter.exclude(node)

    def _restarted(self, member: _Member) -> Iterator[Ended[U, R]]:
        """Take back the unit of a worker whose job has started again without a word."""
        if member.node is not None and member.number is not None:
            yield from self._lost_unit(member, f"its job {member.job.job_id} was started again")

    def _lost(self, member: _Member, reason: str) -> Iterator[Ended[U, R]]:
        """Take a lost worker out of the pool; yield its unit if that has lost too many."""
        with contextlib.suppress(OSError):
            send(member.given, Stop(at_once=True))  # in case that it still runs, and only its job is gone
        self._members.remove(member)
        if member.has_begun:
            yield from self._lost_unit(member, reason)
            return
        node = member.node
        self.has_lost = True
        self._lost_beginnings[node] += 1
        log.warning("%s: a worker was lost before it began: %s", _node(member), reason)
        if self._lost_beginnings[node] < MOST_LOSSES:
            return
        failure = ProcessError(f"{MOST_LOSSES} workers were lost before they began, the last one: {reason}")
        if node is not None:
            self._refuse(node, failure)
            return
        raise ProcessError(
            f"{failure}; expected jobs to write into {self._folder.parent}, found nothing from them: read their"
            " logs there, and if there are none, name a folder that all nodes see (--on-option folder=PATH)"
        )

    def _lost_unit(self, member: _Member, reason: str) -> Iterator[Ended[U, R]]:
        """Take back the unit of a lost worker; yield it if it has lost too many."""
        self.has_lost = True
        member.number = None
        log.warning("%s: a worker was lost: %s", _node(member), reason)
        unit = self._schedule.lose(member.name)
        if unit is not None:
            node = _node(member)
            yield Ended(unit, given_up(self._schedule.losses_of(unit), node, reason), node)

    def _is_gone(self, member: _Member) -> bool:
        """Return whether a worker's job has ended, as far as is known."""
        if self._submitter.is_local:
            return bool(member.job.done())
        now = time.monotonic()
        has_started, silent = member.node is not None, now - member.heard
        if (has_started and silent < SILENT_SECONDS) or now - member.asked < ASK_SECONDS:
            return False
        member.asked = now
        # A cluster may keep no accounts that say what became of a job.
        return bool(member.job.done()) or (has_started and silent > LOST_SECONDS)

    def _fit(self) -> None:
        """Have as many workers as there are units for, and ask Slurm now and then what became of their jobs."""
        now = time.monotonic()
        if self._members and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._ask(now)
        working = sum(member.number is not None for member in self._members)
        wanted = min(self._schedule.num_waiting + working, self._most)
        queued = [member for member in self._members if member.node is None]
        for member in queued[: max(0, len(self._members) - wanted)]:
            self._release(member)
        self._submit(wanted - len(self._members), now)

    def _submit(self, number: int, now: float) -> None:
        if self._refusals and self._submitter.is_local:
            if not self._members:
                raise next(iter(self._refusals.values()))
            return
        if number <= 0 or now - self._tried < ASK_SECONDS:
            return
        names = [f"worker-{self._num_workers + each}" for each in range(1, number + 1)]
        self._num_workers += number
        for name in names:
            create(self._folder / given_to(name))
            create(self._folder / said_by(name))
        try:
            jobs = self._submitter.submit([Job(self._folder, name) for name in names])
        except ConfigError as error:
            if not self._members:
                raise next(iter(self._refusals.values()), error) from None
            log.warning("%s", error)
            self._tried = now
            return
        for name, job in zip(names, jobs, strict=True):
            said = Inbox(self._folder / said_by(name))
            self._members.append(_Member(name, job, said, self._folder / given_to(name), heard=now, asked=now))

    def _ask(self, now: float) -> None:
        """Ask Slurm once for all jobs, and say so if all of them wait."""
        if not self._submitter.is_local and self._members and now - self._asked >= ASK_SECONDS:
            self._asked = now
            self._members[0].job.done(force_check=True)
        if any(member.node is not None for member in self._members):
            self._said_at = now
        elif self._members and now - self._said_at >= SAY_SECONDS:
            self._said_at = now
            log.info("slurm: %d jobs wait in Slurm's queue, and none has started", len(self._members))


def _node(member: _Member) -> str:
    return member.node or f"job {member.job.job_id}"
