"""Copies of remote files, in a size-limited folder that all processes on a machine share.

This module knows a copy only by its name. The caller decides what the copy holds and where the bytes come from.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dhkd.data.disk.atomic import write_atomically
from dhkd.data.disk.locks import lock_of, locked

_NO_COPIES = (".lock", ".partial")  # suffixes of the other files in the folder


@dataclass(frozen=True)
class BoundedCopies:
    """Files in `folder`, limited to about `keep_bytes` bytes in all.

    The least recently used copies are removed first; the newest copy is never removed. `write` puts the bytes of the
    copy `name` into the stream passed to it. `write` is called if there is no copy, by one process or thread at a time;
    if it raises, nothing is left behind. A name must be a valid file name and always stand for the same bytes.
    """

    folder: Path
    keep_bytes: int

    def open(self, name: str, write: Callable[[BinaryIO], object]) -> BinaryIO:
        """Fetch the copy if it is absent, and open it for reading; it can be read even after it is removed."""
        while True:
            path = self.fetch(name, write)
            with contextlib.suppress(FileNotFoundError):  # another process may have removed it in between
                return path.open("rb")

    def fetch(self, name: str, write: Callable[[BinaryIO], object]) -> Path:
        """Fetch the copy if it is absent, and return its path; the file stays until other copies need its space."""
        path = self.folder / name
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if not path.exists():
                write_atomically(path, write)
                self._forget_oldest(path)
        return path

    def forget(self, name: str) -> None:
        """Remove a copy, so that a better one can be fetched."""
        (self.folder / name).unlink(missing_ok=True)

    def _forget_oldest(self, newest: Path) -> None:
        copies = []
        for path in self.folder.iterdir():
            if path.suffix not in _NO_COPIES:
                with contextlib.suppress(FileNotFoundError):  # another process has removed it
                    facts = path.stat()
                    copies.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.keep_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                # A process that is waiting for the lock may fetch the copy a second time, with the same bytes.
                lock_of(path).unlink(missing_ok=True)
                total -= size
