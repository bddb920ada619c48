"""A work as it travels: with the program that it expects, and the own code that it needs.

An engine sends `packed(work)` instead of the work, and its workers begin that. The work itself is unpickled only after
the worker was found to be the same program, since another one may have no such classes.
"""

import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from dhkd.data.errors import ProcessError
from dhkd.data.own_travel import OwnCode, own_code
from dhkd.pipeline.engines.base import Tell, Work
from dhkd.pipeline.engines.same import Program, require_same, this_program

U = TypeVar("U")
R = TypeVar("R")

KNOWN = ("builtins", "dhkd", "torch")  # packages whose exceptions the command can unpickle


@dataclass(frozen=True)
class Packed(Generic[U, R]):
    """A work that begins only in the same program as that of the command, and brings the command's own code along."""

    program: Program
    code: OwnCode
    pickled: bytes

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[U], R]]:
        """Begin the work. Raises `ProcessError`, with this node's name, if this is another program.

        Raises also what loading own code raises, and what the work itself does.
        """
        require_same(self.program)
        with self.code.loaded():
            work: Work[U, R] = pickle.loads(self.pickled)
            with work.begun(tell) as done:
                yield done


def packed(work: Work[U, R]) -> Packed[U, R]:
    """Pack a work in the command, so that engines can send it to workers.

    Raises `ConfigError` if own code has changed since it was loaded.
    """
    return Packed(this_program(), own_code(), pickle.dumps(work))


def portable(error: BaseException) -> Exception:
    """Return an exception that can be sent to the command, with its traceback as a note.

    An exception of another library's class, or of own code's, becomes a `ProcessError` of the same text, because the
    command may not have that class. So does one that would end the command, such as `SystemExit`.
    """
    sent: Exception = ProcessError(f"{type(error).__name__}: {error}")
    if isinstance(error, Exception) and type(error).__module__.partition(".")[0] in KNOWN and _travels(error):
        sent = error
    sent.add_note("".join(traceback.format_exception(error)).rstrip())
    return sent


def _travels(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
