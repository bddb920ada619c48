"""The engine on a Ray cluster: a pool of actors that grows as nodes join, and replaces actors that are lost.

Ray chooses the nodes, so it also knows, if it scales its cluster, how many more are wanted. This process gives the
units, one at a time for each actor, and takes home what the actors say: one call to each actor waits there until there
is something. Nothing is written to Ray's object store for longer than that, and nothing survives this process: Ray ends
the actors of a command that is gone.
"""

import logging
import math
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from dhkd.data.errors import ConfigError, DhkdError, ProcessError
from dhkd.data.shown import line_of
from dhkd.pipeline.engines.base import Ended, Hear, Needs, Work
from dhkd.pipeline.engines.choice import RAY, EngineOptions
from dhkd.pipeline.engines.packed import packed
from dhkd.pipeline.engines.ray_nodes import Node, Waiting, alive_nodes, names_of, room_of
from dhkd.pipeline.engines.schedule import MOST_LOSSES, Schedule
from dhkd.pipeline.engines.worker import Begun, Finished, Line, Placed, Refused, Told, Worker, as_told, given_up
from ray.exceptions import RayActorError, RayError

log = logging.getLogger("dhkd")

U = TypeVar("U")
R = TypeVar("R")

NEVER_RAN = "never ran"  # Ray's words for a worker that had no process yet; its exceptions have no field for that
NO_REASONS = ("before finishing this task", NEVER_RAN)  # in sentences of Ray that stand beside the reason
POLL_SECONDS = 1.0  # between two looks at the cluster's nodes
MOST_UNSTARTED = 30  # workers in a row that the cluster could not start
END_SECONDS = 5.0  # for workers to tidy up
PATIENCE_SECONDS = 300.0  # for a node that is large enough, which a cluster that scales itself may add


class RayEngine:
    """Runs units on the workers of a connected Ray cluster."""

    def __init__(self, tasks: int | None = None, patience: float = PATIENCE_SECONDS) -> None:
        self._tasks, self._patience = tasks, patience

    @property
    def has_gpus(self) -> bool:
        """Whether any node has a GPU."""
        return any(node["Resources"].get("GPU", 0) > 0 for node in alive_nodes())

    def run(self, work: Work[U, R], units: Sequence[U], needs: Needs, hear: Hear) -> Iterator[Ended[U, R]]:
        """Yield every unit as it ends, as the contract says."""
        pool: _Pool[U, R] = _Pool(work, units, needs, hear, self._tasks, self._patience)
        try:
            yield from pool.ended()
        finally:
            pool.close()


@contextmanager
def ray_engine(options: EngineOptions) -> Iterator[RayEngine]:
    """Connect to the cluster that the options name, or start one on this machine; a connection that exists is used.

    Raises `ConfigError` if the cluster can't be reached, or Ray refuses an option.
    """
    if ray.is_initialized():
        yield RayEngine(options.tasks)
        return
    starts = _connect(options)
    try:
        yield RayEngine(options.tasks, 0.0 if starts else PATIENCE_SECONDS)
    finally:
        ray.shutdown()


def _connect(options: EngineOptions) -> bool:
    """Connect to a cluster; return whether it was started here, so that no other nodes are to be expected."""
    settings = dict(options.values)
    if options.on != RAY:
        settings["address"] = options.on
    # Ray's own printing is left out, because workers' lines come home as messages.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**{**quiet, **settings})
        # Ray prints its daemons' messages on standard output, which is for results. Lost workers are told here.
        ray._private.worker._worker_logs_enabled = False
    except (Exception, SystemExit) as error:  # Ray raises many kinds, and exits for some
        kind = type(error).__name__
        raise ConfigError(f"--on {options.on}: expected a Ray cluster, got {kind}: {line_of(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in place
    nodes = alive_nodes()
    resources = {name: sum(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    log.info("ray: %d nodes, %g CPUs, %g GPUs", len(nodes), resources["CPU"], resources["GPU"])
    node = getattr(ray._private.worker, "_global_node", None)
    return options.on == RAY and node is not None and node.head


class _Actor:
    """The process of a worker on the cluster. Several calls run in it at a time: one waits for what the worker says."""

    def __init__(self, pickled_work: bytes, threads: int, folder: str) -> None:
        self._worker = Worker(pickled_work, threads, folder, ray.get_runtime_context().get_node_id())

    def give(self, unit: object) -> None:
        """Give the worker its next unit."""
        self._worker.give(unit)

    def end(self) -> None:
        """Let the worker end its work, and wait for that."""
        self._worker.end()

    def take(self) -> list[bytes]:
        """Wait until the worker has said something, and return it."""
        return self._worker.take()


@dataclass
class _Member:
    """A worker of the pool, as this process knows it."""

    name: str
    actor: Any  # Any: Ray's handle, whose methods it makes up
    node_id: str | None = None  # None until its process has started
    has_begun: bool = False
    is_idle: bool = False  # it has begun, and has no unit


class _Pool(Generic[U, R]):
    """The workers that share the units of one work, and the decisions about them."""

    def __init__(
        self, work: Work[U, R], units: Sequence[U], needs: Needs, hear: Hear, most: int | None, patience: float
    ) -> None:
        self._needs, self._hear, self._most = needs, hear, math.inf if most is None else most
        self._schedule: Schedule[U] = Schedule(units)
        self._members: dict[Any, _Member] = {}  # Any: by Ray's reference to what each says next
        self._ending: dict[Any, _Member] = {}  # Any: by Ray's reference to the end of each
        self._refusals: dict[str, DhkdError] = {}  # by the id of the node
        self._lost_beginnings: Counter[str | None] = Counter()  # by the id of the node; None if there is none yet
        self._names: dict[str, str] = {}  # of nodes, by id
        self._number = 0
        self._pickled = ray.put(pickle.dumps(packed(work)))
        self._threads = max(1, round(needs.cpus))
        self._actors = ray.remote(_Actor)
        self._options: dict[str, Any] = {  # plain values, as Ray takes them
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "memory": None if needs.memory_gb is None else int(needs.memory_gb * 1e9),
            "max_concurrency": 4,
        }
        self._looked = -math.inf
        self._waits = Waiting(needs, patience)

    def ended(self) -> Iterator[Ended[U, R]]:
        """Yield every unit as it ends."""
        while not self._schedule.is_done:
            self._fit()
            references = list(self._members)
            ready, _ = ray.wait(references, num_returns=1, timeout=POLL_SECONDS)
            if ready and len(references) > 1:
                ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
            for reference in ready:
                yield from self._taken(reference)
        if self._ending:
            ray.wait(list(self._ending), num_returns=len(self._ending), timeout=END_SECONDS)

    def close(self) -> None:
        """End all workers, whatever they do."""
        for member in (*self._members.values(), *self._ending.values()):
            ray.kill(member.actor)
        self._members.clear()
        self._ending.clear()

    def _taken(self, reference: Any) -> Iterator[Ended[U, R]]:
        """Take home what a worker has said; yield the unit that it has ended or that was given up."""
        member = self._members.pop(reference)
        try:
            said = [pickle.loads(pickled) for pickled in ray.get(reference)]
        except RayError as error:
            yield from self._lost(member, error)
            return
        self._members[member.actor.take.remote()] = member
        for each in said:
            match each:
                case Placed(node_id):
                    member.node_id = node_id
                case Told(message):
                    self._hear(self._node(member), message)
                case Line(level, text):
                    log.log(level, "%s: %s", self._node(member), text)
                case Begun():
                    member.has_begun = member.is_idle = True
                    self._lost_beginnings.clear()
                case Refused(refusal):
                    self._refuse(member, as_told(refusal))
                case Finished(outcome):
                    member.is_idle = True
                    yield Ended(self._schedule.end(member.name), outcome, self._node(member))
        self._give(member)

    def _give(self, member: _Member) -> None:
        """Give an idle worker its next unit, if there is any, and let a worker go that is not needed."""
        if member.node_id in self._refusals:
            self._release(member)
        if not member.is_idle:
            return
        unit = self._schedule.give(member.name)
        if unit is None:
            self._release(member)
            return
        member.is_idle = False
        member.actor.give.remote(unit)

    def _release(self, member: _Member) -> None:
        """End a worker that has no unit."""
        self._members = {reference: each for reference, each in self._members.items() if each is not member}
        if member.is_idle:
            member.is_idle = False
            self._ending[member.actor.end.remote()] = member
        else:
            ray.kill(member.actor)

    def _refuse(self, member: _Member, error: DhkdError) -> None:
        assert member.node_id is not None
        if member.node_id not in self._refusals:
            self._refusals[member.node_id] = error
            log.error("%s: it gets no work: %s", self._node(member), error)

    def _lost(self, member: _Member, error: RayError) -> Iterator[Ended[U, R]]:
        """Take back the unit of a lost worker; yield it if it has lost too many."""
        ray.kill(member.actor)  # one that can't be reached for the moment must not come back
        node, reason = self._node(member), _reason(error)
        if not member.has_begun:
            # One that never ran may have waited for room on a node that is gone; another one is asked for.
            level = logging.DEBUG if member.node_id is None and NEVER_RAN in str(error) else logging.WARNING
            log.log(level, "%s: a worker was lost before it began: %s", node, reason)
            self._count_beginning(member, error, reason)
            return
        log.warning("%s: a worker was lost: %s", node, reason)
        unit = self._schedule.lose(member.name)
        if unit is not None:
            yield Ended(unit, given_up(self._schedule.losses_of(unit), node, reason), node)

    def _count_beginning(self, member: _Member, error: RayError, reason: str) -> None:
        """Refuse a node on which too many workers were lost before they began; raise if it seems to be every node."""
        self._lost_beginnings[member.node_id] += 1
        number = self._lost_beginnings[member.node_id]
        failure = ProcessError(f"{number} workers were lost before they began, the last one: {reason}")
        if member.node_id is not None:
            if number >= MOST_LOSSES:
                self._refuse(member, failure)
        # Ray also drops workers that a busy node couldn't start in time, or that were to start on a lost node.
        elif number >= (MOST_LOSSES if _is_of_program(error) else MOST_UNSTARTED):
            raise failure

    def _node(self, member: _Member) -> str:
        if member.node_id is None:
            return "ray"
        if member.node_id not in self._names:
            self._names = names_of(ray.nodes())
        return self._names.get(member.node_id, member.node_id[:8])

    def _fit(self) -> None:
        """Ask for workers that the cluster has room for, and for as many again, in case that it grows."""
        now = time.monotonic()
        if now - self._looked < POLL_SECONDS and self._members:
            return
        self._looked = now
        if self._ending:
            ended, _ = ray.wait(list(self._ending), num_returns=len(self._ending), timeout=0)
            for reference in ended:
                ray.kill(self._ending.pop(reference).actor)
        nodes = [node for node in alive_nodes() if node["NodeID"] not in self._refusals]
        room = sum(room_of(node, self._needs) for node in nodes)
        self._require_room(room, nodes, now)
        working = sum(member.has_begun for member in self._members.values())
        left = self._schedule.num_waiting + working
        wanted = min(left, 2 * room + 1, self._most)
        while len(self._members) < wanted:
            self._ask()
        unplaced = [member for member in self._members.values() if member.node_id is None]
        for member in unplaced[: max(0, len(self._members) - int(wanted))]:
            self._release(member)

    def _require_room(self, room: int, nodes: Sequence[Node], now: float) -> None:
        placed = any(member.node_id is not None for member in self._members.values())
        if not room and not placed and self._refusals:
            raise next(iter(self._refusals.values()))
        self._waits.say(placed, bool(room), nodes, now)

    def _ask(self) -> None:
        """Ask Ray for one more worker, on a node that can begin."""
        self._number += 1
        options = dict(self._options)
        if self._refusals:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self._refusals)})"}
        actor = self._actors.options(**options).remote(self._pickled, self._threads, os.getcwd())
        self._members[actor.take.remote()] = _Member(f"worker {self._number}", actor)


def _is_of_program(error: RayError) -> bool:
    """Return whether a worker's process started and failed by its program, for example because dhkd isn't installed."""
    return isinstance(error, RayActorError) and bool(error.actor_init_failed)


def _reason(error: RayError) -> str:
    """Return the sentence in which Ray says why an actor is gone."""
    if _is_of_program(error):
        return " ".join(str(error).split())[-300:]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    dead = [line for line in lines if line.startswith("The actor") and not any(words in line for words in NO_REASONS)]
    return (dead or lines or [type(error).__name__])[-1].partition(" Some common causes")[0][:300]
