"""Generators with threads end at once when they are dropped, whichever lock is held."""

import threading
import time
from collections.abc import Iterator

import pytest
from dhkd.data.storage.base import each
from dhkd.data.threads import threads_of_generator


def doubled(number: int) -> int:
    time.sleep(0.01)
    return 2 * number


def failing(number: int) -> int:
    if number == 2:
        raise ValueError("two")
    return doubled(number)


@pytest.mark.skipif(
    not hasattr(threading, "_shutdown_locks_lock"), reason="this Python joins threads without that lock"
)
def test_a_generator_is_dropped_while_the_lock_of_all_threads_is_held() -> None:
    results = each(doubled, range(8), 2)
    assert next(results) == 0
    dropped = threading.Event()

    def drop() -> None:
        with threading._shutdown_locks_lock:  # type: ignore[attr-defined]  # as when the collector runs as a thread starts
            results.close()  # type: ignore[attr-defined]
            dropped.set()

    threading.Thread(target=drop, daemon=True).start()
    assert dropped.wait(60)


def test_threads_are_waited_for_at_the_end_and_after_an_error() -> None:
    finished = []

    def numbers() -> Iterator[int]:
        with threads_of_generator(1, "test") as threads:
            threads.submit(lambda: (time.sleep(0.05), finished.append(1)))
            yield 1

    assert list(numbers()) == [1]
    assert finished == [1]
    with pytest.raises(ValueError, match="two"):
        list(each(failing, range(5), 2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test")]
