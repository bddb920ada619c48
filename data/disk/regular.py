"""Opening of ordinary files, without waiting for a named pipe or a device that stands where a file should be."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# The kinds of things in a folder that are neither files nor folders, by the format bits of their mode.
ODD_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | bytes | Path) -> BinaryIO:
    """Open an ordinary file for reading. Raises `OSError` for anything else, at once."""
    stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    kind = ODD_KINDS.get(stat.S_IFMT(os.fstat(stream.fileno()).st_mode))
    if kind is not None:
        stream.close()
        raise OSError(errno.EINVAL, f"{kind}, not a file", path)
    return stream


def _without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK, a pipe that nobody writes to would block for ever. It changes nothing for ordinary files.
    return os.open(path, flags | os.O_NONBLOCK)
