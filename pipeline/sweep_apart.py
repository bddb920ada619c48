"""`sweep --on` on a worker that doesn't see the sweep's folder: it trains in a private folder and sends files home.

The command puts a file into its folder, the token, which tells whether a worker sees that folder.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import RunTaken
from dhkd.data.runs.lock import RunLock, held
from dhkd.data.runs.mirror import RESUMED_FROM, Mirror
from dhkd.data.runs.place import NearRun, Runs, RunsInFolder, is_elsewhere
from dhkd.pipeline.engines.base import Tell

log = logging.getLogger("dhkd")

VARIABLE = "DHKD_SCRATCH"  # a folder of the node, where runs are to be trained even if the sweep's folder is seen

Files = Mapping[str, bytes]  # contents by the path below a run's folder


@dataclass(frozen=True)
class Apart:
    """The message that a worker doesn't see the sweep's folder, and trains in this one."""

    scratch: str


@dataclass(frozen=True)
class Put:
    """The message that a run's file now has this content; None if it was removed."""

    run: str
    file: str
    content: bytes | None


@dataclass(frozen=True)
class Token:
    """A file that the command has put into the sweep's folder."""

    path: Path
    content: str
    place: str  # the folder's name that is the same for no other folder

    def is_seen(self) -> bool:
        """Return whether this process sees the file, so that the folder is the command's."""
        try:
            return self.path.read_text() == self.content and not os.environ.get(VARIABLE)
        except OSError:
            return False


@contextlib.contextmanager
def token_in(place: Runs) -> Iterator[Token | None]:
    """Put a token into the folder of the runs while the context lasts; a URL needs none, since every worker sees it."""
    if is_elsewhere(place.location):
        yield None
        return
    folder = place.folder
    content = secrets.token_hex(16)
    token = Token(folder / f".command-{content[:8]}", content, f"{socket.gethostname()}:{folder}")
    token.path.write_text(content)
    try:
        yield token
    finally:
        token.path.unlink(missing_ok=True)


# On the worker


def scratch_for(token: Token) -> Path:
    """Return a private folder of this node for the sweep, which is the same for a later worker."""
    base = Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir(), f"dhkd-{os.getuid()}"))
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_uid != os.getuid():  # another user's, who could put files there
        base = Path(tempfile.mkdtemp(prefix="dhkd-"))
    scratch = base / hashlib.sha256(token.place.encode()).hexdigest()[:16]
    scratch.mkdir(mode=0o700, exist_ok=True)
    return scratch


@dataclass(frozen=True)
class RunsApart(RunsInFolder):
    """Runs in a private folder of this node; `files` are those that the command has of each run, by name."""

    files: Mapping[str, Files]
    tell: Tell

    @contextlib.contextmanager
    def trained(self, name: str, *, resume: bool = True, first: bool = True) -> Iterator[NearRun]:
        """Bring a run into the private folder, and send its files home whenever it saved something, and at the end."""
        mirror = Mirror(self.folder / name, _Channel(name, self.files[name], self.tell))
        mirror.fetch()
        with super().trained(name) as near:
            yield replace(near, saved=lambda folder: mirror.saved())
        mirror.send()
        shutil.rmtree(mirror.folder, ignore_errors=True)


class _Channel:
    """The home of a run, at the end of the channel to the command."""

    def __init__(self, run: str, files: Files, tell: Tell) -> None:
        self._run, self._files, self._tell = run, files, tell

    def sizes(self) -> Mapping[str, int]:
        return {name: len(content) for name, content in self._files.items()}

    def get(self, key: str, largest: int) -> bytes:
        return self._files[key]

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        self._tell(Put(self._run, key, content))
        return True

    def delete(self, key: str) -> None:
        self._tell(Put(self._run, key, None))


# In the command


class Received:
    """Puts the files that workers send of their runs into the sweep's folder, and holds the locks of these runs."""

    def __init__(self, out: Path, is_open: Callable[[str], bool]) -> None:
        self._out, self._is_open = out, is_open
        self._held: dict[str, contextlib.ExitStack] = {}
        self._locks: dict[str, RunLock | None] = {}  # None for a run that others train or have ended

    def files_of(self, run: str) -> Files:
        """Return the files from which a worker resumes the run."""
        return {
            name: (self._out / run / name).read_bytes() for name in RESUMED_FROM if (self._out / run / name).exists()
        }

    def take(self, message: Put) -> None:
        """Write or remove a file, unless another process has taken the run, or ended it."""
        if message.run not in self._locks:
            self._locks[message.run] = self._locked(message.run)
        lock = self._locks[message.run]
        if lock is None:
            return
        lock.require()
        path = self._out / message.run / message.file
        content = message.content
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, lambda stream: stream.write(content))

    def release(self, runs: Sequence[str]) -> None:
        """Let go of these runs' locks, because their worker has ended or is lost."""
        for run in runs:
            self._locks.pop(run, None)
            if run in self._held:
                self._held.pop(run).close()

    def _locked(self, run: str) -> RunLock | None:
        stack = contextlib.ExitStack()
        try:
            lock = stack.enter_context(held(self._out / run))
        except RunTaken as error:
            log.info("%s: another process trains it (%s)", run, error)
            return None
        self._held[run] = stack
        return lock if self._is_open(run) else None
