"""Files that are finished or absent: written aside, flushed to the disk, then renamed.

A kill or a full disk leaves the old file or none, plus at most one `*.partial` that nobody reads.
"""

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, replace: bool = True) -> bool:
    """Give `path` the bytes that `write` puts into the stream it is handed, all of them or none.

    Where `path` exists already, `replace` decides: True replaces it, False leaves it and returns False, whoever else
    wrote it at the same time. Raises `OSError` as the operating system says it (no space, no permission); then nothing
    stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for every writer: threads, processes and machines may write the same path at the same time.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    written = True
    try:
        with partial.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            partial.replace(path)
        else:
            written = _link(partial, path)
            partial.unlink(missing_ok=True)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return written


def _link(partial: Path, path: Path) -> bool:
    """Give a finished file its name unless that is taken."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A file system without hard links: what another writer puts in between is replaced by the same bytes.
        if path.exists():
            return False
        partial.rename(path)
    return True


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
