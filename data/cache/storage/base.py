"""Where a cache's objects lie: named bytes, put whole or not at all.

An object is finished or absent. What a kill leaves of an unfinished put has another name, which nobody asks for.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

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
