"""Locks between the processes on one machine."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, so that only one process or thread on the machine makes `path` at a time."""
    with lock_of(path).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lock_of(path: Path) -> Path:
    """Return the path of the file that is locked while `path` is made."""
    return path.with_suffix(".lock")
