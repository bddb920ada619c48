"""Files that are finished or absent: written under another name, flushed to the disk, then renamed.

After a kill or on a full disk, the old file or no file remains, plus at most one `*.partial` file, which nobody reads.
"""

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, replace: bool = True) -> bool:
    """Write to `path` all the bytes that `write` puts into the stream passed to it, or none; return whether it did.

    With `replace`, an existing file is replaced. Without `replace`, an existing file stays and the result is False,
    even if another writer made the file at the same time. Raises the operating system's `OSError` (no space, no
    permission), and then leaves nothing behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each writer uses another name, because threads, processes and machines may write the same path at the same time.
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
    """Give a finished file its name unless the name is taken; return whether it did."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # The file system has no hard links. If another writer makes the file just before the rename, the rename
        # replaces it with the same bytes.
        if path.exists():
            return False
        partial.rename(path)
    return True


def sync_folder(folder: Path) -> None:
    """Make sure that renames inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
