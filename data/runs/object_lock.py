"""The lock of a run at a URL: at any time, one run trains there, from whichever machine.

It keeps the promises of the lock of a folder (`lock.py`) with objects, which are created by one writer only but can't
grow. The holder creates the object `lock.N`, which says who it is, and replaces a second object every few seconds. The
second object's name has the holder's token, so that a holder that stood still too long can't speak for the next one.
"""

import contextlib
import logging
import time
from collections.abc import Iterator

from dhkd.data.beats import Beats
from dhkd.data.errors import RunTaken, StorageError
from dhkd.data.runs.holder import LOCK, Holder, holder_in, is_gone, locks_among, refusal, this_machine, this_process
from dhkd.data.storage.base import Storage

log = logging.getLogger("dhkd")

# Longer than for a folder, since each beat is a request that is paid for, and a store may refuse some of them.
BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
LOOKS = 10  # how often the second object is looked at while it doesn't change
LARGEST_LOCK = 2**16  # bytes


class ObjectLock:
    """A held lock of a run at a URL."""

    def __init__(self, storage: Storage, key: str, holder: Holder) -> None:
        self._storage, self._key, self._holder = storage, key, holder
        self._number = 0  # of the latest beat
        self._beats = Beats(self._beat, BEAT_SECONDS)

    def require(self) -> None:
        """Raise `RunTaken` if another process has taken the run, which happens if this one was suspended."""
        if _holder_of(self._storage, self._key) != self._holder:
            raise RunTaken(
                f"run at {self._storage.location}: expected its lock {self._key}, found none: another process took the"
                f" run while this one stood still, or the object was deleted; go on with --resume when nobody else"
                f" trains there"
            )

    def end(self) -> None:
        """Let the lock go."""
        self._beats.end()
        with contextlib.suppress(StorageError):  # the store may be out of reach; then the lock is free after a while
            self._storage.delete(_beat_key(self._key, self._holder))
            if _holder_of(self._storage, self._key) == self._holder:
                self._storage.delete(self._key)

    def _beat(self) -> None:
        self._number += 1
        with contextlib.suppress(StorageError):  # which ends the run where it sends its results
            self._storage.put(_beat_key(self._key, self._holder), str(self._number).encode(), replace=True)


@contextlib.contextmanager
def held_at(storage: Storage) -> Iterator[ObjectLock]:
    """Hold the lock of the run whose files are the objects of `storage`.

    Raises `RunTaken` if another process, or another thread of this one, holds the lock, and `StorageError` if the place
    can't be written. If the lock is that of a process on another machine, it may take `SILENT_SECONDS` to find out that
    the process is gone.
    """
    lock = _taken(storage)
    try:
        yield lock
    finally:
        lock.end()


def _taken(storage: Storage) -> ObjectLock:
    dead = locks_among(storage.sizes() or ())
    for number in dead:
        _require_dead(storage, f"{LOCK}.{number}")
    own, holder = max(dead, default=0) + 1, this_process()
    key = f"{LOCK}.{own}"
    if not storage.put(key, holder.line, replace=False):
        raise refusal(storage.location, "another process, which began in the same moment,")
    lock = ObjectLock(storage, key, holder)
    # A process that saw other objects than this one may have made another number. A store that can't create an object
    # only if it is absent may have replaced this one's.
    others = locks_among(storage.sizes() or ()).keys() - set(dead) - {own}
    if others or _holder_of(storage, key) != holder:
        lock.end()
        raise refusal(storage.location, "another process, which began in the same moment,")
    for number in dead:
        old = f"{LOCK}.{number}"
        if (gone := _holder_of(storage, old)) is not None:
            storage.delete(_beat_key(old, gone))
        storage.delete(old)
    return lock


def _require_dead(storage: Storage, key: str) -> None:
    """Return if nobody holds this lock any more; raise `RunTaken` if somebody does."""
    content, machine = _content(storage, key), this_machine()
    if content is None:
        return  # it was let go since it was listed
    holder = holder_in(content)
    if holder is None:
        raise refusal(storage.location, f"a process that says nothing about itself in {key}, which another version has")
    if machine is not None and holder.machine == machine:
        if not is_gone(holder):
            raise refusal(storage.location, str(holder))
        return
    log.info(
        "run at %s: %s has held its lock; looking for up to %.0f s if it still does",
        *(storage.location, holder, SILENT_SECONDS),
    )
    beat = _beat_key(key, holder)
    heard, until = _content(storage, beat), time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until and _holder_of(storage, key) == holder:
        time.sleep(SILENT_SECONDS / LOOKS)
        if _content(storage, beat) != heard:
            raise refusal(storage.location, str(holder))


def _holder_of(storage: Storage, key: str) -> Holder | None:
    return holder_in(_content(storage, key))


def _beat_key(key: str, holder: Holder) -> str:
    return f"{key}.{holder.token}"


def _content(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.get(key, LARGEST_LOCK)
    except FileNotFoundError:
        return None
