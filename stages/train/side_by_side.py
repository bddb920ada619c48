"""Training of several students side by side on one device.

On a CPU, a small network doesn't keep all cores busy: training one student per core is faster than training one student
after another on all cores. So the students run in threads that share the cores. Each thread uses a fixed number of
cores, so a student ends with the same weights as if it trained alone on that number of cores. On a GPU, one thread
launches the work of all students, with a separate CUDA stream for each, so that their kernels may overlap.
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
    """A runner of jobs, such as one training step for each of `students` students.

    It runs as many jobs at a time as the device allows.
    """

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
        """Run all jobs and wait for them. Return each `DhkdError` that a job raised, under the key of the job.

        On a GPU, the current CUDA stream waits instead of the host. Any other exception is raised.
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
        # The current stream waits only after all jobs are launched; otherwise each job would wait for the previous job.
        # The current stream has to wait because the jobs read a batch whose memory the next batch reuses.
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
    """Yield, for each step of an epoch, the batch of every data stream that still has batches.

    A stream that occurs several times in `streams` makes each batch only once, for all students that share the stream.
    """
    distinct = list(dict.fromkeys(streams))
    for batches in zip_longest(*(stream.epoch(epoch) for stream in distinct)):
        yield {stream: batch for stream, batch in zip(distinct, batches, strict=True) if batch is not None}
