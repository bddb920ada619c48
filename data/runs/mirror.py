"""The folder of a run near the process that trains it, and the same run's files at their home.

A run is trained in a folder of its own near the process. Its home is elsewhere: at a URL, or at the end of a channel to
another machine. Before training, what the home has is fetched; whenever the run saved something, what has changed is
sent. The files are sent in such an order that a home which got only some of them holds a run that can be resumed.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import StorageError
from dhkd.data.runs.holder import LOCK
from dhkd.data.runs.names import CHECKPOINT, CLASSES, CONFIG, FAILED, METRICS, RESULT, TRACKED, TRACKING, WEIGHTS

log = logging.getLogger("dhkd")

# What a run is resumed from, the checkpoint last; weights and the trackers' own files are only sent.
RESUMED_FROM = (CLASSES, CONFIG, TRACKED, FAILED, METRICS, RESULT, CHECKPOINT)
# A checkpoint names the length and the checksum of the metrics before it, and training goes on after the weights kept
# before it, so all of these are sent first. A result says that everything else is there.
BEFORE_OTHERS = (CLASSES, CONFIG, METRICS)
AFTER_OTHERS = (CHECKPOINT, "", RESULT, FAILED)  # "" stands for files that are written after the last epoch

UNSENT = ".unsent"  # a file in the folder while the home lacks something of it

Stamp = tuple[int, int, int]


class Home(Protocol):
    """Where a run's files are kept, by their paths relative to the run's folder; every `Storage` is one."""

    def sizes(self) -> Mapping[str, int] | None:
        """Return every file's size in bytes, by name; None if the home can't list them."""

    def get(self, key: str, largest: int) -> bytes:
        """Return the file's bytes, which are at most `largest`; raises `FileNotFoundError` if there is no such file."""

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Write the file as a whole or not at all, and return whether it was written."""

    def delete(self, key: str) -> None:
        """Remove the file, if it exists."""


class Mirror:
    """Keeps the home of one run's files as its folder is. Only one process may train the run, which a lock ensures."""

    def __init__(self, folder: Path, home: Home, require: Callable[[], None] = lambda: None) -> None:
        """`require` is called before anything is sent, and raises if the run is no longer this process's."""
        self.folder, self._home, self._require = folder, home, require
        self._sent: dict[str, Stamp] = {}  # the files that the home has as they are in the folder

    def fetch(self) -> None:
        """Make the folder hold the run as the home has it, as far as resuming needs it.

        The folder may hold an earlier attempt. It is kept if it could not be sent and goes on from what the home has;
        otherwise it is emptied.
        """
        listed = self._home.sizes() or {}
        names = [name for name in RESUMED_FROM if name in listed]
        small = {name: self._home.get(name, listed[name]) for name in names if name != CHECKPOINT}
        self._sent = {}
        if (self.folder / UNSENT).exists() and self._goes_on_from(small):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            content = self._home.get(name, listed[name]) if name == CHECKPOINT else small[name]
            path = self.folder / name
            write_atomically(path, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
            self._sent[name] = _stamp(path)

    def send(self) -> None:
        """Send the files that have changed, and remove those from the home that were removed here.

        Raises what the home raises; what was not sent is sent by the next call.
        """
        self._require()
        (self.folder / UNSENT).touch()  # until everything is sent
        for name in [name for name in self._sent if not (self.folder / name).exists()]:
            self._home.delete(name)
            del self._sent[name]
        for name in sorted(_files(self.folder), key=_place_in_order):
            path = self.folder / name
            stamp = _stamp(path)
            if self._sent.get(name) != stamp:
                self._home.put(name, path.read_bytes(), replace=True)
                self._sent[name] = stamp
        (self.folder / UNSENT).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, unless it holds what could not be sent."""
        if not (self.folder / UNSENT).exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def saved(self) -> None:
        """Send what has changed; a run calls this whenever it saved something.

        If the home can't be reached, training goes on, and the next call sends what this one could not.
        """
        try:
            self.send()
        except StorageError as error:
            log.warning("%s; training goes on, and sends its files later", error)

    def _goes_on_from(self, at_home: Mapping[str, bytes]) -> bool:
        """Return whether the folder holds the home's run, at least as far as the home has it.

        The times in the metrics tell two attempts at the same epochs apart.
        """
        if RESULT in at_home or CONFIG not in at_home or not (self.folder / CHECKPOINT).exists():
            return False
        return (
            _content(self.folder / CONFIG) == at_home[CONFIG]
            and METRICS in at_home
            and _content(self.folder / METRICS).startswith(at_home[METRICS])
        )


def _files(folder: Path) -> Iterator[str]:
    """Yield the paths of a run's files relative to its folder, without its lock and without unfinished files."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix != ".partial":
            name = path.relative_to(folder).as_posix()
            if not name.startswith(f"{LOCK}.") and name != UNSENT:
                yield name


def _place_in_order(name: str) -> tuple[int, int, str]:
    if name in BEFORE_OTHERS:
        return 0, BEFORE_OTHERS.index(name), name
    if name.startswith((f"{WEIGHTS}/", f"{TRACKING}/")):
        return 1, 0, name
    return 2, AFTER_OTHERS.index(name if name in AFTER_OTHERS else ""), name


def _stamp(path: Path) -> Stamp:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
