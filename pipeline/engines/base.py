"""What an engine does: it carries units of work to workers, and brings home what ended, what failed and what is told.

An engine keeps no truth. The truth is what is stored: the blocks of a cache, the folders of runs. Units are named by
what they are, and computing one again is harmless. So an engine gives the unit of a lost worker to another worker.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

U = TypeVar("U")
R = TypeVar("R")
U_contra = TypeVar("U_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

Tell = Callable[[object], None]  # sends a message home; a message is any value that can be pickled
Hear = Callable[[str, object], None]  # takes the name of a node and a message from there


@dataclass(frozen=True)
class Needs:
    """What one worker takes up on its node while it works; `gpus` and `cpus` may be fractions."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float | None = None


class Work(Protocol[U_contra, R_co]):
    """What all units of a command have in common. A work is pickled and sent to every worker."""

    def begun(self, tell: Tell) -> AbstractContextManager[Callable[[U_contra], R_co]]:
        """Prepare one worker, for example load the teacher; the context gives the function that does one unit.

        `tell` sends a message home from this worker, at any time until the context ends. Raises `DhkdError` if this
        node can't take part, for example because it lacks the data.
        """


@dataclass(frozen=True)
class Ended(Generic[U, R]):
    """A unit that no worker needs to do again: its result, or the exception that its function raised, and its node."""

    unit: U
    outcome: R | Exception
    node: str


class Engine(Protocol):
    """Runs units on workers. An engine is used as a context manager, which starts it and ends what still runs."""

    @property
    def has_gpus(self) -> bool:
        """Whether its nodes have GPUs, as far as it knows."""

    def run(self, work: Work[U, R], units: Sequence[U], needs: Needs, hear: Hear) -> Iterator[Ended[U, R]]:
        """Yield every unit as it ends, in any order, and pass each worker's messages to `hear`, in the caller's thread.

        A unit whose worker was lost goes to another worker; a unit that has lost several workers ends with a
        `ProcessError`. Workers may join while units are left. If a worker can't begin, its node is told once and gets
        no more units; if no node can begin, the first error is raised.
        """
