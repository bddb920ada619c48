"""Signals that ask a command to end: Ctrl-C, SIGTERM (batch systems, `kill`) and SIGHUP (a lost terminal).

Each becomes an exception in the main thread, so that files are finished or removed and worker processes end. If the
main thread doesn't come back in time, for example because it waits for a dead file system, another thread ends the
process; every file is finished or absent even then.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

GRACE_SECONDS = 20.0  # batch systems kill after about 30 s

_ENDING = (signal.SIGTERM, signal.SIGHUP)

_active = threading.Event()  # set while signals are turned into exceptions


class Stopped(BaseException):
    """A signal asked this process to end. Not an `Exception`, so that code that goes on after errors ends, too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Let the signals that ask for the end raise `Stopped` in the main thread; Ctrl-C raises `KeyboardInterrupt`.

    A second SIGTERM or SIGHUP ends the process at once. Signals that the parent process has ignored (`nohup`) stay
    ignored. Outside the main thread, and in processes forked within the context, signals are not handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    for number in numbers:
        signal.signal(number, stop)
    _active.set()
    try:
        with _watched():
            yield
    finally:
        _active.clear()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """End the process if it still runs `GRACE_SECONDS` after a signal asked it to end."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    # The system's handler writes each signal's number there, even while the main thread waits outside of Python.
    before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    ended = threading.Event()

    def watch() -> None:
        while number := os.read(readable, 1)[0]:
            if number in (signal.SIGINT, *_ENDING):
                if not ended.wait(GRACE_SECONDS):
                    _end_at_once(number)
                return

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        # Closing the pipe would not wake the thread, because forked processes may hold it open.
        with contextlib.suppress(BlockingIOError):
            os.write(writable, bytes([0]))
        thread.join()
        os.close(writable)
        os.close(readable)


def _end_at_once(number: int) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        name = signal.Signals(number).name
        sys.stderr.write(f"error: stopped by {name}, without waiting longer; run the same command again to continue\n")
        sys.stderr.flush()
    os._exit(128 + number)


def _leave_signals_to_the_parent() -> None:
    """In a forked process, let only the parent react to Ctrl-C and a lost terminal, and let SIGTERM end the process."""
    if not _active.is_set():
        return
    signal.set_wakeup_fd(-1)
    for number in _ENDING:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
