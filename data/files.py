"""Files that are finished or absent: written aside, flushed to the disk, then renamed.

A kill or a full disk leaves the old file or none, plus at most one `*.partial` that nobody reads.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Give `path` the bytes that `write` puts into the stream it is handed, all of them or none.

    Raises `OSError` as the operating system says it (no space, no permission); then nothing stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_cache_folder() -> Path:
    """Where this user's reproducible files live: `$XDG_CACHE_HOME/dhkd`, else `~/.cache/dhkd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dhkd"
