"""Where a folder of runs is: on a file system, or at a URL. Commands read and train runs without asking which."""

import contextlib
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.disk.writable import PROBE, require_writable_folder
from dhkd.data.errors import ConfigError, StorageError
from dhkd.data.runs.folder import Saved
from dhkd.data.runs.lock import RunLock, held
from dhkd.data.runs.mirror import Mirror
from dhkd.data.runs.names import CONFIG, RESULT
from dhkd.data.runs.near import NearRuns, near_folder
from dhkd.data.runs.object_lock import held_at
from dhkd.data.runs.renamed import named_as, rename
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import storage_of


@dataclass(frozen=True)
class NearRun:
    """A run to be trained in `folder`, which nobody else trains at the moment.

    `saved` is to be called with the folder whenever the run saved something. `lock` is the folder's lock if it is held
    already; otherwise training takes it. `location` is where the run lies if that is elsewhere, else None.
    """

    folder: Path
    saved: Saved = lambda folder: None
    lock: RunLock | None = None
    location: str | None = None

    def rename(self, error: Exception) -> None:
        """Let an error name the run's location."""
        if self.location is not None:
            rename(error, self.folder, self.location)


class Runs(Protocol):
    """A folder of runs. `folder` shows them on this machine, as they were when `refresh` was last called.

    Only small files and those of the weights asked for are shown in full. A place can be pickled.
    """

    @property
    def location(self) -> str:
        """The path or URL by which users know the place."""

    @property
    def folder(self) -> Path:
        """A folder with the runs, of which results, tables and reports are read, and into which they are written."""

    def refresh(self, weights: Sequence[str] = ()) -> None:
        """Make `folder` show what the place has now, with the weights files whose names match one of `weights`."""

    def send(self, *names: str) -> None:
        """Bring files, or all files of folders, that were written into `folder` to the place."""

    def trained(self, name: str, *, resume: bool = True, first: bool = True) -> AbstractContextManager[NearRun]:
        """Hold the lock of the run `name`, and yield where it is trained; "" is the run that is the place itself.

        Raises `RunTaken` if another process trains it. A process that is not the `first` of several takes no lock.
        """

    def require_writable(self, what: str, name: str = "") -> None:
        """Raise `StorageError` unless files can be written into the place, or its subfolder `name`.

        `what` names the place in the message.
        """

    def named(self) -> AbstractContextManager[None]:
        """Let errors and log lines name the `location`, in place of `folder`."""

    def shown(self, text: str) -> str:
        """Return a text with the location in place of `folder`."""


def is_elsewhere(location: str | Path) -> bool:
    """Return whether a location is a URL and not a path."""
    return "://" in str(location)


def runs_at(location: str | Path) -> Runs:
    """Return the place of a folder of runs; raises `ConfigError` for a URL where runs can't be kept."""
    if not is_elsewhere(location):
        return RunsInFolder(Path(location))
    place = RunsAtUrl(str(location).rstrip("/"))
    assert place.storage  # raises `ConfigError` for a URL that is wrong
    return place


@dataclass(frozen=True)
class RunsInFolder:
    """Runs in a folder on the file system."""

    folder: Path

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def refresh(self, weights: Sequence[str] = ()) -> None:
        """Do nothing: the folder is the place."""

    def send(self, *names: str) -> None:
        """Do nothing: the folder is the place."""

    @contextlib.contextmanager
    def trained(self, name: str, *, resume: bool = True, first: bool = True) -> Iterator[NearRun]:
        """Hold the lock of the run's folder."""
        with held(self.folder / name) as lock:
            yield NearRun(self.folder / name, lock=lock)

    def require_writable(self, what: str, name: str = "") -> None:
        """Write a file, and remove it again."""
        require_writable_folder(self.folder / name, what)

    def named(self) -> AbstractContextManager[None]:
        """Do nothing: errors name the folder."""
        return contextlib.nullcontext()

    def shown(self, text: str) -> str:
        """Return the text."""
        return text


@dataclass(frozen=True)
class RunsAtUrl:
    """Runs at the URL of a bucket's folder."""

    location: str

    @cached_property
    def storage(self) -> Storage:
        """The objects at the URL."""
        return storage_of(self.location)

    @property
    def folder(self) -> Path:
        """The near folder that shows the runs."""
        return near_folder("runs", self.location)

    def refresh(self, weights: Sequence[str] = ()) -> None:
        """Fetch what has changed."""
        NearRuns(self.storage).refresh(weights)

    def send(self, *names: str) -> None:
        """Put files from the near folder to the URL."""
        for name in names:
            path = self.folder / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    self.storage.put(file.relative_to(self.folder).as_posix(), file.read_bytes(), replace=True)

    @contextlib.contextmanager
    def trained(self, name: str, *, resume: bool = True, first: bool = True) -> Iterator[NearRun]:
        """Hold the run's lock at its URL, and yield a folder with what the run has so far.

        The run's files are sent whenever it saved something, and at the end. A run that is only read needs no lock: a
        finished one, and one that may not be resumed. Errors and log lines name the URL.
        """
        home = storage_of(f"{self.location}/{name}" if name else self.location)
        listed = home.sizes()
        if listed is None:
            raise ConfigError(
                f"--out {home.location}: expected a folder or a bucket (s3://, gs://, az://), got a web server"
            )
        if not first or RESULT in listed or (CONFIG in listed and not resume):
            with _only_read(home) as folder, named_as(folder, home.location):
                yield NearRun(folder, location=home.location)
            return
        with held_at(home) as lock:
            mirror = Mirror(near_folder("training", home.location), home, lock.require)
            try:
                with named_as(mirror.folder, home.location):
                    mirror.fetch()
                    yield NearRun(mirror.folder, lambda folder: mirror.saved(), location=home.location)
                _send_the_rest(mirror)
            finally:
                mirror.remove()

    def require_writable(self, what: str, name: str = "") -> None:
        """Write a file, and remove it again."""
        key = f".dhkd-{secrets.token_hex(8)}.partial"
        self.storage.put(key, PROBE, replace=True)
        self.storage.delete(key)

    def named(self) -> AbstractContextManager[None]:
        """Let errors and log lines name the URL."""
        return named_as(self.folder, self.location)

    def shown(self, text: str) -> str:
        """Return the text with the URL in place of the near folder."""
        return text.replace(str(self.folder), self.location)


def _send_the_rest(mirror: Mirror) -> None:
    """Send what has not been sent; the error for a home that can't be reached says where it is."""
    try:
        mirror.send()
    except StorageError as error:
        raise StorageError(
            f"{error}; the run's files are in {mirror.folder}, and are sent when it goes on here with --resume"
        ) from error


@contextlib.contextmanager
def _only_read(home: Storage) -> Iterator[Path]:
    """Yield a folder of this process with the run, which is removed at the end."""
    parent = user_cache_folder() / "training"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as place:
        folder = Path(place) / home.location.rpartition("/")[2]
        Mirror(folder, home).fetch()
        yield folder
