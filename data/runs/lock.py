"""The lock of a run's folder: at any time, one run trains in a folder, whichever machines share the folder.

The kernel's locks (flock, lockf) are left out on purpose: clusters' file systems lack them or hold them on one machine
only, and processes that outlive a killed run may keep them. Here a lock is a file `lock.N`. Its first line says which
process made it, and the process appends a byte every few seconds. If the process was killed, the file stays, but the
lock is free: on the same machine the process is gone, and from elsewhere the file is seen not to grow.

Nobody deletes a dead lock to make it again under the same name, because a second process that does the same could
delete the first one's new lock. Instead, the next process makes the file with the next number, which only one can do.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dhkd.data.beats import Beats
from dhkd.data.errors import RunTaken
from dhkd.data.runs.holder import LOCK, Holder, holder_in, is_gone, locks_among, refusal, this_machine, this_process

log = logging.getLogger("dhkd")

BEAT_SECONDS = 3.0  # between two bytes that a holder appends
SILENT_SECONDS = 30.0  # a holder on another machine that is silent for so long is dead


class RunLock:
    """A held lock of a run's folder."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path, self._holder = path, holder
        self._beats = Beats(self._beat, BEAT_SECONDS)

    def require(self) -> None:
        """Raise `RunTaken` if another process has taken the folder, which happens if this one was suspended."""
        if holder_in(_content(self._path)) != self._holder:
            raise RunTaken(
                f"run at {self._path.parent}: expected its lock {self._path.name}, found none: another process took the"
                f" folder while this one stood still, or the file was deleted; go on with --resume when nobody else"
                f" trains there"
            )

    def end(self) -> None:
        """Let the lock go."""
        self._beats.end()
        with contextlib.suppress(OSError):  # the folder may be out of reach, which is told elsewhere
            if holder_in(_content(self._path)) == self._holder:
                self._path.unlink()

    def _beat(self) -> None:
        # An error, such as that of a full disk, ends the run where it writes its results.
        with contextlib.suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(file, b".")
            finally:
                os.close(file)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[RunLock]:
    """Hold the lock of a run's folder, which is made if it is absent; an empty folder is removed again.

    Raises `RunTaken` if another process, or another thread of this one, holds the lock. If the lock is that of a
    process on another machine, it may take `SILENT_SECONDS` to find out that the process is gone.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = _taken(folder)
        try:
            yield lock
        finally:
            lock.end()
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty, as a rule
                folder.rmdir()


def _taken(folder: Path) -> RunLock:
    dead = {}
    for number, path in _locks(folder).items():
        _require_dead(path)
        dead[number] = path
    path = folder / f"{LOCK}.{max(dead, default=0) + 1}"
    holder = this_process()
    try:
        with path.open("xb") as stream:
            stream.write(holder.line)
    except FileExistsError:
        raise refusal(folder, "another process, which began in the same moment,") from None
    lock = RunLock(path, holder)
    # A process that saw other files than this one may have made a file with another number.
    if others := _locks(folder).keys() - dead.keys() - {max(dead, default=0) + 1}:
        lock.end()
        raise refusal(folder, f"another process, which made {LOCK}.{min(others)} in the same moment,")
    for old in dead.values():
        old.unlink(missing_ok=True)
    return lock


def _locks(folder: Path) -> dict[int, Path]:
    """Return the files of the folder's lock, by number; more than one is there only for moments."""
    return {
        number: folder / name for number, name in locks_among(path.name for path in folder.glob(f"{LOCK}.*")).items()
    }


def _require_dead(path: Path) -> None:
    """Return if nobody holds this file's lock any more; raise `RunTaken` if somebody does."""
    content = _content(path)
    holder = holder_in(content)
    who = str(holder) if holder else "a process that says nothing about itself"
    machine = this_machine()
    if holder is not None and machine is not None and holder.machine == machine:
        if not is_gone(holder):
            raise refusal(path.parent, who)
        return
    log.info(
        "run at %s: %s has held its lock; looking for up to %.0f s if it still does", path.parent, who, SILENT_SECONDS
    )
    until = time.monotonic() + SILENT_SECONDS
    while content is not None and time.monotonic() < until:
        time.sleep(BEAT_SECONDS / 10)
        if (now := _content(path)) != content and now is not None:
            raise refusal(path.parent, who)
        content = now


def _content(path: Path) -> bytes | None:
    # The file is opened anew each time, because NFS looks for changes when a file is opened.
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
