"""Turns exceptions in code that a user wrote into one-line errors that name the code, the exception and its place."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhkd.data.errors import DhkdError, OwnCodeError

LONGEST_REASON = 300  # characters of an exception that a message shows

# Where the files of Python, of installed packages and of this program are.
# The folders of the program are listed, because a user's files may lie beside them, in a clone.
_PROGRAM = [f"{Path(__file__).parents[1] / name}{os.sep}" for name in ("data", "pipeline", "stages", "configs")]
_NOT_OWN = (*_PROGRAM, sys.prefix, sys.base_prefix, str(Path(os.__file__).parent))


@contextmanager
def running(what: str) -> Iterator[None]:
    """Turn an exception of own code into an `OwnCodeError` that begins with `what`.

    Errors of the program itself (`DhkdError`) and out-of-memory errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise failed(what, error) from error


def failed(what: str, error: BaseException) -> Exception:
    """Return the one-line error for an exception of own code; a `DhkdError` is returned unchanged."""
    if isinstance(error, DhkdError):
        return error
    reason = " ".join(str(error).split())[:LONGEST_REASON]
    if isinstance(error, SystemExit):
        reason = "it ends the process; put what a script does under if __name__ == '__main__'"
    place = _place_of(error)
    kind = type(error).__name__
    return OwnCodeError(f"{what}: {kind}{f': {reason}' if reason else ''}{place}; --debug shows the traceback")


def _place_of(error: BaseException) -> str:
    """Return file and line of the own code that raised an exception, or an empty text if there is none."""
    if isinstance(error, SyntaxError):
        return ""  # its message has file and line
    frame, place = error.__traceback__, ""
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if not file.startswith(("<frozen", *_NOT_OWN)):
            place = f" ({Path(file).name}, line {frame.tb_lineno})"
        frame = frame.tb_next
    return place
