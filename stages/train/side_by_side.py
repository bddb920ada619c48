"""Several students on one device, side by side.

On a CPU, small networks don't fill all cores: one student on each core does more than all cores on one student after
another. So the students run in threads that share the cores. Each thread uses a fixed number of cores, so a student
ends exactly as it does alone on that many. On a GPU one thread launches all students, each into a stream of its own, so
that their kernels may overlap.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from types import TracebackType
from typing import TypeVar

import torch
from dhkd.data.errors import DhkdError
from dhkd.data.stream.batches import Batch, Stream

K = TypeVar("K")


class SideBySide:
    """Runs the jobs of `students` students, as many at a time as fit the device."""

    def __init__(self, students: int, device: torch.device) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._threads = torch.get_num_threads()
        self._streams: list[torch.cuda.Stream] = []
        if students > 1 and device.type == "cuda":
            self._streams = [torch.cuda.Stream(device) for _ in range(students)]  # type: ignore[no-untyped-call]  # torch's
        if students > 1 and device.type == "cpu" and self._threads > 1:
            threads_each = max(1, self._threads // students)
            self._pool = ThreadPoolExecutor(
                self._threads // threads_each,
                "student",
                initializer=torch.set_num_threads,
                initargs=(threads_each,),
            )

    def run(self, jobs: Mapping[K, Callable[[], object]]) -> dict[K, DhkdError]:
        """Run all jobs and wait for them; the errors of those that failed with a `DhkdError`.

        Any other exception is raised here.
        """
        if self._streams:
            return self._launch(jobs)
        errors: dict[K, DhkdError] = {}
        results = jobs if self._pool is None else {key: self._pool.submit(job).result for key, job in jobs.items()}
        for key, result in results.items():
            try:
                result()
            except DhkdError as error:
                errors[key] = error
        return errors

    def _launch(self, jobs: Mapping[K, Callable[[], object]]) -> dict[K, DhkdError]:
        errors: dict[K, DhkdError] = {}
        current = torch.cuda.current_stream()
        ready = current.record_event()
        for (key, job), stream in zip(jobs.items(), self._streams, strict=False):
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                try:
                    job()
                except DhkdError as error:
                    errors[key] = error
        # The current stream waits only after all jobs are launched; otherwise each would wait for the one before it.
        # It has to wait: the batch that the jobs read is in its memory, which the next batch uses again.
        for stream in self._streams:
            current.wait_stream(stream)
        return errors

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)


def batches_by_stream(streams: Sequence[Stream], epoch: int) -> Iterator[dict[Stream, Batch]]:
    """For each step of an epoch the batch of every stream that still has one.

    A stream that occurs several times makes its batches once, for all students that share it.
    """
    distinct = list(dict.fromkeys(streams))
    for batches in zip_longest(*(stream.epoch(epoch) for stream in distinct)):
        yield {stream: batch for stream, batch in zip(distinct, batches, strict=True) if batch is not None}
