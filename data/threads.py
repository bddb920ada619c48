"""Threads whose work a generator waits for."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def threads_of_generator(number: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Give a generator up to `number` threads, and wait for them at its end, but not if it is dropped before.

    The garbage collector may drop a generator at any moment, even while its thread holds one of the locks that waiting
    takes, and then waiting would never end. Threads that are not waited for finish what was submitted.
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
