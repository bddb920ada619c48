"""The standard streams, which may be closed, full, or unable to show some characters."""

import contextlib
import errno
import io
import os
import sys
from typing import TextIO


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that was closed when this process began.

    Otherwise the next file that is opened would get the stream's number, and receive what is printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.dup(number), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold any bytes, and a terminal be of any encoding
            stream.reconfigure(errors="backslashreplace")


def flushed_streams(code: int, reason: OSError | None = None) -> int:
    """Flush the standard streams and return the exit code: `code`, or 1 if the result could not be printed.

    `reason` is an error that printing has raised already. What can't be printed is dropped, so that the interpreter
    doesn't fail on it at its end. A reader that has stopped reading, such as `head`, is no error.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        reason = reason or error
    if reason is not None:
        _drop(sys.stdout)
        if reason.errno != errno.EPIPE:
            line = f"error: standard output: {reason.strerror}; the work is done, but its result was not printed\n"
            with contextlib.suppress(OSError):
                sys.stderr.write(line)
            code = code or 1
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)
    return code


def _drop(stream: TextIO) -> None:
    """Let a stream that can't be written, and everything that it still holds, go to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    stream.flush()
