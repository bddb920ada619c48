"""What every storage provides: objects, i.e. named bytes, that are written as a whole or not at all.

An object is finished or absent. An interrupted put leaves behind at most a file with another name, which nobody reads.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Protocol, TypeVar

from dhkd.data.disk.mapped import Content
from dhkd.data.errors import ObjectRefused
from dhkd.data.threads import threads_of_generator

LARGEST_OBJECT = 2**31  # bytes; writers cut blocks of at most half of this

S = TypeVar("S")
T = TypeVar("T")


class Storage(Protocol):
    """Objects of a cache or of runs, whose keys are relative paths with slashes. Threads may share a storage."""

    location: str  # the path or URL by which users know the storage
    streams: int  # how many objects to read at a time for the best speed

    def get(self, key: str, largest: int = LARGEST_OBJECT) -> bytes:
        """Return the object's bytes; raises `FileNotFoundError` if there is no such object.

        Raises `StorageError`, before memory is taken, if the object is larger than `largest` bytes.
        """

    def size(self, key: str) -> int:
        """Return the object's size in bytes, or -1 if there is no such object."""

    def sizes(self) -> dict[str, int] | None:
        """Return every object's size, by key; return None if the storage can't list its objects."""

    def stamps(self) -> dict[str, str] | None:
        """Return a text for each object that changes when the object does, by key; None as `sizes` does."""

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Write the object durably, and return True.

        Without `replace`, an existing object stays as it is, and the result is False.
        """

    def delete(self, key: str) -> None:
        """Remove the object, if it exists."""


class Mappable(Protocol):
    """Objects that are files on this machine, which processes can map into memory and so share."""

    def get_mapped(self, key: str, size: int, checksum: int, is_intact: Callable[[bytes], bool]) -> Content:
        """Return the object's bytes, which the index says have this size and checksum, mapped into memory if possible.

        Bytes that `is_intact` refuses are returned unmapped, and the caller must check those. Raises
        `FileNotFoundError` if there is no such object.
        """


def require_size(where: str, size: int, largest: int) -> None:
    """Raise `ObjectRefused` if an object of `size` bytes is larger than `largest`; `where` names it."""
    if size > largest:
        raise ObjectRefused(f"{where}: expected at most {largest:,} bytes, got {size:,}; copy it again")


def each(function: Callable[[S], T], items: Iterable[S], streams: int) -> Iterator[T]:
    """Yield the function's result for each item, in order, with up to `streams` calls running in threads at a time."""
    if streams == 1:
        yield from map(function, items)
        return
    with threads_of_generator(streams, "read") as threads:
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) == streams:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
