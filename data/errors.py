"""Every error that a user can cause, and how an unknown name is reported.

Each derives from `DhkdError` and from the builtin that fits, so that a script can catch either. The command line
prints one line and ends with `exit_code`; anything that is not here is a fault of the program's own.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class DhkdError(Exception):
    """Base of all errors that a user can cause; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(DhkdError, ValueError):
    """A preset, an override or an option has an unknown name or an impossible value."""

    exit_code = 2


class DataError(DhkdError, ValueError):
    """A data set's files are missing, damaged or not what their name says."""


class WeightsError(DhkdError, ValueError):
    """A file of weights is missing, damaged or belongs to another architecture."""


class CacheMismatch(DhkdError, ValueError):
    """A cache is of something else than what the experiment expects."""


class CacheIncomplete(DhkdError, ValueError):
    """A cache lacks blocks."""


class CacheDamaged(DhkdError, ValueError):
    """A cache's bytes are not those that were written."""


class StorageError(DhkdError, OSError):
    """A place where caches lie can't be reached, or refuses."""


class RunExists(DhkdError, FileExistsError):
    """The output folder already holds another run."""


class RunMismatch(DhkdError, ValueError):
    """A run's folder lacks what resuming needs, or belongs to another experiment."""


class TrackerError(DhkdError, RuntimeError):
    """A tracker that was asked for can't show a run."""


class NonFiniteLoss(DhkdError, ArithmeticError):
    """A loss or a teacher's logit is not finite."""


def one_of(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry `name` of `table`; an unknown name is a `ConfigError` that gives the nearest valid one."""
    if name in table:
        return table[name]
    raise ConfigError(unknown(kind, name, table))


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """One line that says which name is unknown, which is nearest, and which there are."""
    names = sorted(valid)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}valid are {', '.join(names)}"
