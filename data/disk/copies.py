"""Copies of what is far away: a bounded folder that all processes of a machine share.

What a copy is of, and where that is fetched from, is its user's affair: here it has a name.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dhkd.data.disk.atomic import write_atomically
from dhkd.data.disk.locks import lock_of, locked

_NO_COPIES = (".lock", ".partial")  # what else lies in the folder


@dataclass(frozen=True)
class BoundedCopies:
    """Files in `folder`, at most about `keep_bytes` of them; the longest unused go first, the newest never.

    `write` puts the bytes of the copy `name` into the stream it is handed. It is called where the copy isn't there, by
    one process or thread at a time, and leaves nothing behind where it raises. A name is that of a file, and is always
    given the same bytes.
    """

    folder: Path
    keep_bytes: int

    def open(self, name: str, write: Callable[[BinaryIO], object]) -> BinaryIO:
        """The copy, to be read, which may be longer than it is kept."""
        while True:
            path = self.fetch(name, write)
            with contextlib.suppress(FileNotFoundError):  # another process may have needed its place in between
                return path.open("rb")

    def fetch(self, name: str, write: Callable[[BinaryIO], object]) -> Path:
        """The copy's path, where it is until others need its place."""
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
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    facts = path.stat()
                    copies.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.keep_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                # Who waits for the lock meanwhile may fetch the copy a second time, and gives it the same bytes.
                lock_of(path).unlink(missing_ok=True)
                total -= size
