"""What every storage promises: named bytes, put whole or not at all.

An object is finished or absent. If a put is interrupted, what it leaves behind has another name, which nobody reads.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class Storage(Protocol):
    """A cache's objects by key, a relative path with slashes. Threads may share a storage."""

    location: str  # the path or URL that users know it by
    streams: int  # how many objects are best read at a time

    def get(self, key: str) -> bytes:
        """The object's bytes; raises `FileNotFoundError` if there is no such object."""

    def size(self, key: str) -> int:
        """The object's size in bytes, -1 if there is no such object."""

    def sizes(self) -> dict[str, int] | None:
        """Every object's size, by key; None if the storage can't list its objects."""

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Make the object, durably before returning. Without `replace`, an existing object stays: then False."""

    def delete(self, key: str) -> None:
        """Remove the object, if it exists."""


def each(function: Callable[[S], T], items: Iterable[S], streams: int) -> Iterator[T]:
    """The function's result for each item, in order, with up to `streams` calls at a time in threads."""
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
