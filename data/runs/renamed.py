"""Errors and log lines that name the place of a run that users know, in place of the folder in which it is near."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from dhkd.data.errors import DhkdError

log = logging.getLogger("dhkd")


@contextlib.contextmanager
def named_as(folder: Path, location: str) -> Iterator[None]:
    """Let errors and log lines name the `location` in place of `folder`."""

    def named(record: logging.LogRecord) -> bool:
        if str(folder) in (text := record.getMessage()):
            record.msg, record.args = text.replace(str(folder), location), ()
        return True

    log.addFilter(named)
    try:
        yield
    except DhkdError as error:
        rename(error, folder, location)
        raise
    finally:
        log.removeFilter(named)


def rename(error: Exception, folder: Path, location: str) -> None:
    """Let an error name `location` in place of `folder`."""
    error.args = tuple(
        argument.replace(str(folder), location) if isinstance(argument, str) else argument for argument in error.args
    )
