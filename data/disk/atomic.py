"""Files that are finished or absent: written under another name, flushed to the disk, then renamed.

If the process is killed or the disk is full, the path holds the old file or no file. A killed process may also leave a
`*.partial` file, which nobody reads.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

LONGEST_NAME = 255  # bytes of a file's name on nearly every file system

# fsync answers with one of these if data is lost or may be lost. Any other answer means that the file system has no
# fsync for this kind of file (EINVAL from network and FUSE file systems), so there is nothing more to do.
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE)

# Errors of writing that name no file.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, replace: bool = True) -> bool:
    """Call `write` with a stream, and store at `path` all the bytes put into that stream, or none.

    Returns whether this call made the file. With `replace`, an existing file is replaced. Without `replace`, an
    existing file stays and the result is False, even if another writer made the file at the same time. Raises the
    operating system's `OSError` (no space, no permission), which names `path`, and then leaves nothing behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    written = True
    with _errors_name(path, partial):
        try:
            with partial.open("xb") as stream:
                write(stream)
                _flush(stream)
            if replace:
                partial.replace(path)
            else:
                written = _link(partial, path)
                partial.unlink(missing_ok=True)
        except BaseException:
            with contextlib.suppress(OSError):  # the error that is being raised says more
                partial.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)
    return written


def append_durably(path: Path, content: bytes) -> int:
    """Append `content` to a file, flush it to the disk, and return the file's new length in bytes."""
    with _errors_name(path), path.open("ab") as stream:
        stream.write(content)
        _flush(stream)
        return stream.tell()


def _partial(path: Path) -> Path:
    """Return a name for the unfinished file, which nobody else uses and which is not too long if `path` is not."""
    # Each writer uses another name, because threads, processes and machines may write the same path at the same time.
    suffix = f".{secrets.token_hex(8)}.partial"
    return path.with_name(os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - len(suffix)]) + suffix)


@contextlib.contextmanager
def _errors_name(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Let errors of the disk name `path`, which users know, instead of nothing or the unfinished file."""
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None and error.errno in _OF_THE_DISK
        if unnamed or (partial is not None and str(error.filename) == str(partial)):
            error.filename, error.filename2 = str(path), None
        raise


def _flush(stream: BinaryIO) -> None:
    stream.flush()
    _sync(stream.fileno())


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _LOST:
            raise


def _link(partial: Path, path: Path) -> bool:
    """Give the finished file `partial` the name `path` unless that name is taken; return whether it was free."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return False
    except OSError:
        # The file system has no hard links, or it refuses this one. If it can't be written at all, the rename says so.
        # If another writer makes the file just before the rename, the rename replaces it with the same bytes.
        if path.exists():
            return False
        partial.rename(path)
    return True


def sync_folder(folder: Path) -> None:
    """Make sure that renames inside `folder` survive a power failure, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder in which files may be made, but not listed
        return
    try:
        with _errors_name(folder):
            _sync(descriptor)
    finally:
        os.close(descriptor)
