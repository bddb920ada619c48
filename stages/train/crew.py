"""Several learners on one device at once.

On a CPU small networks don't fill all cores: a student on each core does more than all cores on one student after
another. So learners go to threads that share the cores out, and with them each one's number of threads is known: a
student ends as it does alone on as many. On a GPU one thread launches them all, each into a stream of its own, so that
their kernels may run beside each other.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

T = TypeVar("T")


class Crew:
    """Does a piece of work for each of `learners` things, as many at a time as fits the device."""

    def __init__(self, learners: int, device: torch.device) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._threads = torch.get_num_threads()
        self._streams: list[torch.cuda.Stream] = []
        if learners > 1 and device.type == "cuda":
            self._streams = [torch.cuda.Stream(device) for _ in range(learners)]  # type: ignore[no-untyped-call]  # torch's
        if learners > 1 and device.type == "cpu" and self._threads > 1:
            each = max(1, self._threads // learners)
            self._pool = ThreadPoolExecutor(
                self._threads // each, "learner", initializer=torch.set_num_threads, initargs=(each,)
            )

    def each(self, work: Callable[[T], object], things: Sequence[T]) -> None:
        """Do `work` on every one of `things`, and wait; what it raised is raised here."""
        if self._streams:
            self._launch(work, things)
            return
        if self._pool is None:
            for thing in things:
                work(thing)
            return
        for done in [self._pool.submit(work, thing) for thing in things]:
            done.result()

    def _launch(self, work: Callable[[T], object], things: Sequence[T]) -> None:
        here = torch.cuda.current_stream()
        ready = here.record_event()
        for thing, stream in zip(things, self._streams, strict=False):
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                work(thing)
        # Only now: whoever is launched next must not wait for those before. What they read, the batch, is of this
        # stream's memory, which is used again for the next one after they are done.
        for stream in self._streams:
            here.wait_stream(stream)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)
