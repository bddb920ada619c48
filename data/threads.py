"""Threads for a generator that waits for their results."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def threads_of_generator(number: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Give a generator up to `number` threads, and wait for them when it ends, but not if it is dropped before.

    The garbage collector may drop a generator at any moment, even while the current thread holds a lock that waiting
    needs; waiting would then never end. Threads that are not waited for still finish the submitted work.
    """
    threads = ThreadPoolExecutor(number, thread_name_prefix=name)
    try:
        yield threads
    except GeneratorExit:
        raise
    except BaseException:
        threads.shutdown(cancel_futures=True)
        raise
    threads.shutdown()
