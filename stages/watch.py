"""The watch that the processes of one command keep over each other, so that none waits for another without a word.

The processes meet: they wait for each other to exchange numbers. If one of them dies, a meeting never ends, or it ends
with an error of a library that names no process. So each process counts its heartbeats and its meetings in the store
through which `torch.distributed` starts (a table of keys and values in one of the processes or in the launcher), and
reads what the others count.

- A process that ends with an error leaves the error in the store, and the others end with that error.
- A process that died on this machine is missing among the system's processes. One that died on another machine is
  noticed when a connection breaks and its heartbeats have stopped.
- A process that stands still is named in a warning.
"""

import contextlib
import json
import logging
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import count

import psutil
from dhkd.data.errors import ProcessError, error_line
from torch._C._distributed_c10d import (
    Store,
    TCPStore,
)  # torch.distributed doesn't declare its own names to type checkers

log = logging.getLogger("dhkd")

BEAT_SECONDS = 1.0
QUIET_SECONDS = 60.0  # after so long without a sign, a process is said to stand still
STALE_SECONDS = 10.0  # after so long without a heartbeat, a process behind a broken connection is dead
GRACE_SECONDS = 10.0  # the time in which a process ends by itself after another one was lost
START_SECONDS = 1800.0  # the longest wait for a process that has not started
JOIN_SECONDS = 5.0  # how long to wait for a thread that may hang in a call to the store
TELL_SECONDS = 20.0  # how long a process that fails before it meets the others tries to tell them

DIED = "died (it was killed, or ran out of memory)"

_numbers = count()  # each watch of this interpreter has its own keys in the store


@dataclass(frozen=True)
class Lost:
    """A process that ended before the others, by its `rank`, and what happened to it, as the end of a sentence."""

    rank: int
    what: str


@dataclass
class _Peer:
    """What is known of another process; `heard` and `moved` are times of `time.monotonic`."""

    rank: int
    heard: float
    moved: float
    beats: int = 0
    meetings: int = 0
    place: str = ""
    pid: int = 0
    born: float = 0.0
    warned: bool = field(default=False, compare=False)

    def is_gone(self) -> bool:
        """Return whether this process ran on this machine and is not among its processes any more."""
        if self.place != _place():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or process.create_time() != self.born
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


class Watch:
    """One process's part of the watch: two threads, one that talks to the store and one that judges what it heard.

    The second thread is needed because the first one hangs if the process that holds the store stands still.
    """

    def __init__(self, rank: int, world_size: int, host: str, port: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._address = (host, port)
        self._keys = _keys(next(_numbers))
        now = time.monotonic()
        self._began = self._answered = now
        self._peers = {other: _Peer(other, now, now) for other in range(world_size) if other != rank}
        self._meetings, self._met = 0, now
        self._lost: Lost | None = None
        self._connected = self._broken = self._published = False
        self._stopped, self._wake = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._judge)]

    @classmethod
    def of_environment(cls) -> "Watch | None":
        """Return the watch of the processes that a launcher started with this one, or None for a process alone."""
        world_size, host, port = (os.environ.get(name) for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        if not (world_size and host and port) or int(world_size) == 1:
            return None
        return cls(int(os.environ["RANK"]), int(world_size), host, int(port))

    def start(self) -> None:
        """Begin to watch; the other processes need not have started."""
        for thread in self._threads:
            thread.start()

    def meet(self) -> None:
        """Count a meeting that this process enters."""
        self._meetings += 1
        self._met = time.monotonic()

    def stop(self) -> None:
        """End the watch, when no meeting will follow."""
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:  # a thread that comes back from torch while Python ends would abort the process
            if thread.is_alive():
                thread.join(JOIN_SECONDS)

    def tell(self, what: str) -> None:
        """Tell the others that this process ends, unless another one was lost before; return once it is stored."""
        self._lost = self._lost or Lost(self.rank, what)
        self._wait_for(lambda: self._published, 3.0)

    def lost(self, seconds: float) -> Lost | None:
        """Return the process that was lost first, after a connection broke; wait `seconds` at most to find it."""
        self._broken = True
        self._wait_for(lambda: self._lost is not None, seconds)
        return self._lost

    def error(self, lost: Lost) -> ProcessError:
        """Return the error with which this process ends because another one was lost."""
        return ProcessError(f"process {lost.rank} of {self.world_size} {lost.what}; {_what_follows()}")

    def _wait_for(self, happened: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not happened() and time.monotonic() < until:
            self._wake.set()
            time.sleep(0.05)

    # the thread that talks to the store

    def _talk(self) -> None:
        store = self._connected_store()
        pause = BEAT_SECONDS * max(1.0, self.world_size / 32)  # n processes read n · n counts
        try:
            while store is not None:
                self._exchange(store)
                if self._published or self._stopped.is_set():
                    return
                self._wake.wait(pause)
                self._wake.clear()
        except RuntimeError:  # the store has gone, and with it the process that holds it, usually the first
            if not self._stopped.is_set():
                time.sleep(BEAT_SECONDS)  # in which this process may end, as the first one did
                self._lost = self._lost or Lost(0, DIED)

    def _connected_store(self) -> Store | None:
        while not self._stopped.is_set():
            store = _client(self._address)
            if store is not None:
                self._answered = time.monotonic()
                self._connected = True
                return store
            self._stopped.wait(BEAT_SECONDS / 4)
        return None

    def _exchange(self, store: Store) -> None:
        """Store this process's counts, and read the others'."""
        keys = self._keys
        if store.add(f"{keys}beats/{self.rank}", 1) == 1:
            born = psutil.Process().create_time()
            store.set(f"{keys}place/{self.rank}", json.dumps({"place": _place(), "pid": os.getpid(), "born": born}))
        store.set(f"{keys}meetings/{self.rank}", str(self._meetings))
        for peer in self._peers.values():
            if not peer.place and store.check([f"{keys}place/{peer.rank}"]):
                known = json.loads(store.get(f"{keys}place/{peer.rank}"))
                peer.place, peer.pid, peer.born = known["place"], known["pid"], known["born"]
            beats = store.add(f"{keys}beats/{peer.rank}", 0)
            meetings = int(store.get(f"{keys}meetings/{peer.rank}")) if beats > 1 else 0
            now = time.monotonic()
            if beats != peer.beats:
                peer.beats, peer.heard = beats, now
            if meetings != peer.meetings:
                peer.meetings, peer.moved = meetings, now
        self._lost = _first_lost(store, keys, self._lost)
        if self._lost is not None:
            store.add(f"{keys}told", 1)
            self._published = True
        self._answered = time.monotonic()

    # the thread that judges

    def _judge(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS / 2):
            if self._lost is None:
                self._lost = next((Lost(peer.rank, DIED) for peer in self._peers.values() if self._is_dead(peer)), None)
            if self._lost is None and self._missing() and time.monotonic() - self._began > START_SECONDS:
                self._lost = Lost(self._missing()[0], f"has not started within {START_SECONDS / 60:.0f} minutes")
            if self._lost is None:
                self._warn()
            elif not self._stopped.wait(GRACE_SECONDS):
                # Still in a meeting, from which only the end of the process leads.
                line = self._lost.what if self._lost.rank == self.rank else str(self.error(self._lost))
                sys.stderr.write(error_line(line) + "\n")
                sys.stderr.flush()
                os._exit(1)

    def _is_dead(self, peer: _Peer) -> bool:
        return peer.is_gone() or (self._broken and time.monotonic() - peer.heard > STALE_SECONDS and peer.beats > 0)

    def _missing(self) -> list[int]:
        """Return the ranks of processes that have not started."""
        return [0] if not self._connected else [peer.rank for peer in self._peers.values() if not peer.beats]

    def _warn(self) -> None:
        """Name each process that stands still, once until it goes on."""
        now = time.monotonic()
        for peer in self._peers.values():
            seconds, state = self._silence(peer, now)
            if seconds <= QUIET_SECONDS:
                peer.warned = False
            elif not peer.warned:
                peer.warned = True
                log.warning("process %d of %d %s for %.0f s", peer.rank, self.world_size, state, seconds)

    def _silence(self, peer: _Peer, now: float) -> tuple[float, str]:
        """Return for how long a process has given no sign that it goes on, and what the warning says of it."""
        if not self._connected:  # nothing is known of the others before the first process opens the store
            return (now - self._began if peer.rank == 0 else 0.0), "has not started"
        if now - self._answered > QUIET_SECONDS:  # the store doesn't answer
            return (now - self._answered if peer.rank == 0 else 0.0), "has stood still"
        if not peer.beats:
            return now - self._began, "has not started"
        if now - peer.heard > QUIET_SECONDS:
            return now - peer.heard, "has stood still"
        late = peer.meetings < self._meetings
        return (now - max(self._met, peer.moved) if late else 0.0), "has kept the others waiting"


def tell_others(what: str) -> None:
    """Tell the other processes of this command that this one ends before it has met them.

    The first process, which would hold the store, opens one for some seconds, unless the launcher holds it.
    """
    watch = Watch.of_environment()
    if watch is None or watch._keys != _keys(0):  # the processes have met, and know already
        return
    until = time.monotonic() + TELL_SECONDS
    with contextlib.suppress(RuntimeError):
        holds = watch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = _opened(watch._address) if holds else None
        while store is None and time.monotonic() < until:
            store = _client(watch._address)
            time.sleep(BEAT_SECONDS / 4)
        if store is None:
            return
        _first_lost(store, watch._keys, Lost(watch.rank, what))
        while holds and store.add(f"{watch._keys}told", 0) < watch.world_size - 1 and time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 4)


def _keys(number: int) -> str:
    """Return the beginning of the keys of this interpreter's watch with this number, counted from 0."""
    # A store of torchrun's outlives the processes that it starts again. One in the first process doesn't, and machines
    # that joined later count fewer restarts than the others.
    lasts = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return f"dhkd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if lasts else '0'}/{number}/"


def _what_follows() -> str:
    """Say who starts the processes again: torchrun, if it has restarts left, or else the user."""
    done, most = (os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if done.isdecimal() and most.isdecimal() and int(done) < int(most):
        return f"torchrun starts all of them again (restart {int(done) + 1} of {most})"
    return "start all of them again"


def _first_lost(store: Store, keys: str, lost: Lost | None) -> Lost | None:
    """Store `lost` unless another process was lost before, and return the one that was lost first."""
    key = f"{keys}lost"
    if lost is not None:
        return Lost(**json.loads(store.compare_set(key, "", json.dumps(asdict(lost)))))
    return Lost(**json.loads(store.get(key))) if store.check([key]) else None


def _client(address: tuple[str, int]) -> Store | None:
    """Connect to the store, or return None if nothing listens there; torch itself would wait and complain."""
    try:
        socket.create_connection(address, timeout=BEAT_SECONDS).close()
        return TCPStore(*address, timeout=timedelta(seconds=GRACE_SECONDS), wait_for_workers=False)
    except (OSError, RuntimeError):
        return None


def _opened(address: tuple[str, int]) -> Store:
    return TCPStore(*address, is_master=True, wait_for_workers=False)


def _place() -> str:
    """Return a name of the machine, or of the container, whose numbers of processes this process shares."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()
