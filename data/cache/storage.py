"""Where a cache's objects lie: named bytes, put whole or not at all. Folders here, buckets and web servers in `bucket`.

An object is finished or absent. What a kill leaves of an unfinished put has another name, which nobody asks for.
"""

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from dhkd.data.files import sync_folder, write_atomically

S = TypeVar("S")
T = TypeVar("T")


class Storage(Protocol):
    """Objects by key, a relative path with slashes.

    `location` is what users call the place: a path or a URL. `streams` says how many objects are best read at a time.
    """

    location: str
    streams: int

    def get(self, key: str) -> bytes:
        """The object's bytes; raises `FileNotFoundError` when there is none."""

    def size(self, key: str) -> int:
        """The object's size in bytes, -1 when there is none."""

    def sizes(self) -> dict[str, int] | None:
        """Every object's size, by its key; None where the storage can't list."""

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Make the object, durable on return. False, and nothing done, where it exists and `replace` doesn't hold."""

    def delete(self, key: str) -> None:
        """Remove the object, if it is there."""


def each(function: Callable[[S], T], items: Iterable[S], streams: int) -> Iterator[T]:
    """What `function` makes of each item, in order; of up to `streams` at a time, in threads."""
    if streams == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(streams, thread_name_prefix="read") as threads:
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) == streams:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class Folder:
    """A folder of the file system; several machines may share it."""

    streams = 1  # a disk is as fast with one, and memory holds one block

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path)

    def get(self, key: str) -> bytes:
        """The file's bytes; raises `FileNotFoundError` when there is none."""
        try:
            return (self.path / key).read_bytes()
        except (NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(f"{self.path / key}: no file") from error

    def size(self, key: str) -> int:
        """The file's size in bytes, -1 when there is none."""
        try:
            facts = (self.path / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return -1
        return facts.st_size if stat.S_ISREG(facts.st_mode) else -1

    def sizes(self) -> dict[str, int]:
        """Every file's size, by its path in the folder."""
        sizes: dict[str, int] = {}
        folders = [(str(self.path), "")]
        while folders:
            folder, prefix = folders.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                    else:
                        with contextlib.suppress(FileNotFoundError):  # it may have been a put under way
                            sizes[prefix + entry.name] = entry.stat().st_size
        return sizes

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Write the file aside, flush it and give it its name."""
        return write_atomically(self.path / key, lambda stream: stream.write(content), replace=replace)

    def delete(self, key: str) -> None:
        """Remove the file, if it is there."""
        path = self.path / key
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_folder(path.parent)
