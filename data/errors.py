"""All errors that a user can cause, and the message for an unknown name.

Each class derives from `DhkdError` and from the builtin that fits, so that a script can catch either. The command line
prints such an error in one line and exits with its `exit_code`. Any other exception is a bug in the program.
"""

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from dhkd.data.shown import shown

T = TypeVar("T")

LONGEST_NAME = 100  # characters of an unknown name that a message shows


class DhkdError(Exception):
    """Base of all errors that a user can cause; `exit_code` is the command line's exit code.

    The message as text has neither secrets nor control characters, whoever wrote what it quotes.
    """

    exit_code = 1

    def __str__(self) -> str:
        return shown(super().__str__())


class ConfigError(DhkdError, ValueError):
    """A preset, an override or an option has an unknown name or an impossible value."""

    exit_code = 2


class DataError(DhkdError, ValueError):
    """A data set's files are missing, damaged or of another kind than expected."""


class DataChanged(DataError):
    """A data set's files changed after they were listed."""


class WeightsError(DhkdError, ValueError):
    """A weights file is missing, damaged or belongs to another architecture."""


class CacheMismatch(DhkdError, ValueError):
    """A cache doesn't hold what the experiment expects; it may belong to another data set or teacher."""


class CacheIncomplete(DhkdError, ValueError):
    """A cache has missing blocks."""


class CacheDamaged(DhkdError, ValueError):
    """A cache's bytes differ from those that were written."""


class StorageError(DhkdError, OSError):
    """A place where caches are stored can't be reached, or refuses access."""


class ObjectRefused(StorageError):
    """An object that is not read or written: it is too large, or it lies outside its cache."""


class RunExists(DhkdError, FileExistsError):
    """The output folder already holds another run."""


class RunTaken(DhkdError, BlockingIOError):
    """Another process trains in the output folder at this moment."""


class RunMismatch(DhkdError, ValueError):
    """A run can't be resumed, because its folder lacks something or belongs to another experiment."""


class TrackerError(DhkdError, RuntimeError):
    """A chosen tracker can't show a run."""


class ProcessError(DhkdError, RuntimeError):
    """Processes that work together were told different things, or one of them ended before the others."""


class NonFiniteLoss(DhkdError, ArithmeticError):
    """A loss or a teacher's logit is not finite."""


class OwnCodeError(DhkdError, RuntimeError):
    """Code that a user wrote raised an exception or returned an unexpected value."""


def error_line(text: str) -> str:
    """Return the line that the command line prints for an error; it names the process if there are several."""
    rank = os.environ.get("RANK")
    prefix = f"error (process {rank})" if rank is not None else "error"
    return f"{prefix}: {' '.join(text.split())}"


def one_of(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return the entry `name` of `table`. If the table lacks this name, raises `ConfigError` with the nearest name."""
    if name in table:
        return table[name]
    raise ConfigError(unknown(kind, name, table))


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return a one-line message with the unknown name, the nearest valid name and all valid names."""
    names = sorted(valid)
    name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}valid are {', '.join(names)}"
