"""Training a run that lies at a URL: in a folder on this machine, whose files are sent to the URL as they are saved."""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import ConfigError, DhkdError, StorageError
from dhkd.data.runs.folder import Saved
from dhkd.data.runs.mirror import Mirror
from dhkd.data.runs.names import CONFIG, RESULT
from dhkd.data.runs.near import near_folder
from dhkd.data.runs.object_lock import held_at
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import storage_of

log = logging.getLogger("dhkd")


@dataclass(frozen=True)
class NearRun:
    """A run to be trained in `folder`. `saved` is to be called with the folder whenever the run saved something."""

    folder: Path
    saved: Saved


@contextlib.contextmanager
def trained_at(url: str, *, resume: bool, first: bool = True) -> Iterator[NearRun]:
    """Hold the run at `url`, and yield a folder that holds what it has so far; its files are sent while it trains.

    A run that is only read needs no lock: a finished one, one that may not be resumed, and that of a process which is
    not the `first` of several. Raises `RunTaken` if another process trains the run, and `StorageError` if the place
    can't be written. Errors and log lines name the URL and not the folder.
    """
    home = storage_of(url)
    listed = home.sizes()
    if listed is None:
        raise ConfigError(f"--out {url}: expected a folder or a bucket (s3://, gs://, az://), got a web server")
    if not first or RESULT in listed or (CONFIG in listed and not resume):
        with _read_only(home) as folder, named_as(folder, home.location):
            yield NearRun(folder, lambda folder: None)
        return
    with held_at(home) as lock:
        mirror = Mirror(near_folder("training", home.location), home)

        def saved(_: Path) -> None:
            try:
                lock.require()
                mirror.send()
            except StorageError as error:
                log.warning("%s; training goes on, and sends its files later", error)

        with named_as(mirror.folder, home.location):
            mirror.fetch()
            yield NearRun(mirror.folder, saved)
        try:
            lock.require()
            mirror.send()
        except StorageError as error:
            raise StorageError(
                f"{error}; what this run has saved since is in {mirror.folder} and is sent when it goes on here with"
                f" --resume"
            ) from error
        shutil.rmtree(mirror.folder.parent, ignore_errors=True)


@contextlib.contextmanager
def named_as(folder: Path, location: str) -> Iterator[None]:
    """Let errors and log lines name the `location` that users know, in place of a folder near the process."""

    def named(record: logging.LogRecord) -> bool:
        if str(folder) in (text := record.getMessage()):
            record.msg, record.args = text.replace(str(folder), location), ()
        return True

    log.addFilter(named)
    try:
        yield
    except DhkdError as error:
        rename(error, folder, location)
        raise
    finally:
        log.removeFilter(named)


def rename(error: DhkdError, folder: Path, location: str) -> None:
    """Let an error name `location` in place of `folder`."""
    error.args = tuple(
        argument.replace(str(folder), location) if isinstance(argument, str) else argument for argument in error.args
    )


@contextlib.contextmanager
def _read_only(home: Storage) -> Iterator[Path]:
    """Yield a folder of this process with the run, which is removed at the end."""
    parent = user_cache_folder() / "training"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as place:
        folder = Path(place) / home.location.rpartition("/")[2]
        Mirror(folder, home).fetch()
        yield folder
