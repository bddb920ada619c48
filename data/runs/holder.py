"""Which process holds a run's lock, and whether that process is gone; both kinds of locks ask this."""

import json
import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dhkd.data.errors import RunTaken

LOCK = "lock"  # the files or objects of a lock are lock.1, lock.2, …


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock: its host and number, and what tells it from a later process of that number.

    `machine` is the same for two processes only if the numbers of processes mean the same to both; None if unknown.
    `started` is when the process began, in ticks since the machine's start.
    """

    token: str
    host: str
    pid: int
    machine: str | None
    started: int | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def line(self) -> bytes:
        """The first line of a lock, which `holder_in` reads."""
        return json.dumps(asdict(self)).encode() + b"\n"


def holder_in(content: bytes | None) -> Holder | None:
    """Return the holder that a lock's content names; None if there is no content, or only a part of it."""
    try:
        holder = Holder(**json.loads((content or b"").splitlines()[0]))
    except (ValueError, TypeError, IndexError, RecursionError):
        return None
    return holder if type(holder.pid) is int and holder.pid > 0 else None


def locks_among(names: Iterable[str]) -> dict[int, str]:
    """Return the names of a run's lock among those of its files, by number; several are there only for moments."""
    numbers = {name: name.removeprefix(f"{LOCK}.") for name in names if name.startswith(f"{LOCK}.")}
    return {int(number): name for name, number in sorted(numbers.items()) if number.isdecimal()}


def this_process() -> Holder:
    """Return this process as the holder of a new lock."""
    pid = os.getpid()
    state = _state(pid)
    return Holder(secrets.token_hex(8), socket.gethostname(), pid, this_machine(), state[1] if state else None)


def is_gone(holder: Holder) -> bool:
    """Return whether a process of this machine has ended, even if another process has its number by now."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is another user's
        pass
    state = _state(holder.pid)
    if state is None or holder.started is None:
        return False
    letter, started = state
    return letter in "ZX" or started != holder.started


def _state(pid: int) -> tuple[str, int] | None:
    """Return a process's state (Z or X: dead) and the time at which it began; None where the system doesn't tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the program's name before may hold anything
    return fields[0], int(fields[19])


def this_machine() -> str | None:
    """Name the running machine, and the namespace in which its processes have their numbers; None if unknown.

    Containers of one machine, and hosts with equal names, have other names here.
    """
    try:
        if int(os.readlink("/proc/self")) != os.getpid():  # /proc is that of another namespace
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except (OSError, ValueError):
        return None


def refusal(run: Path | str, who: str) -> RunTaken:
    """Build the error that names who trains the run at the moment."""
    return RunTaken(
        f"run at {run}: expected nobody to train there, got {who}; wait until it has ended, or choose another --out"
    )
