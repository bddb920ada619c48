"""Locks between the processes on one machine."""

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

log = logging.getLogger("dhkd")

# What a file system answers that has no such lock: Lustre and some FUSE file systems without flock, NFS without a
# lock server.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, so that only one process or thread on the machine makes `path` at a time.

    On a file system without locks, two processes may make it at the same time, which costs only time.
    """
    with lock_of(path).open("w") as lock:
        try:
            take_lock(lock, wait=True)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.debug("%s: this file system has no locks (%s)", path.parent, error.strerror)
        yield


# Any: a lock's file may be open for text or for bytes; nothing is read from it.
def take_lock(file: IO[Any], *, wait: bool) -> bool:
    """Lock an open file until it is closed, and return True; without `wait`, return False if another process holds it.

    Raises `OSError` if the file system has neither of the two kinds of lock, flock and fcntl's.
    """
    operation = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    try:
        return _taken(fcntl.flock, file, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return _taken(fcntl.lockf, file, operation)


def _taken(call: Any, file: IO[Any], operation: int) -> bool:  # Any: flock and lockf have different signatures
    try:
        call(file, operation)
    except (BlockingIOError, PermissionError):  # lockf says either
        return False
    return True


def lock_of(path: Path) -> Path:
    """Return the path of the file that is locked while `path` is made."""
    return path.with_suffix(".lock")
