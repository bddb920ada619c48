"""An engine without a cluster: its workers take turns in the test's process, and are lost and refused as told.

A process can hold one worker at a time. So each begins, does a few units and ends, and then it is the next one's turn.
Works, units and results are pickled on their way, as on a cluster.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, TypeVar

from dhkd.data.errors import DhkdError, ProcessError
from dhkd.pipeline.engines.base import Ended, Hear, Needs, Work
from dhkd.pipeline.engines.schedule import Schedule

U = TypeVar("U")
R = TypeVar("R")


class Lost(BaseException):
    """Raised inside a worker: it is lost, and so is its unit."""


@dataclass
class Turns:
    """The engine. `on_node` gives the context in which the workers of a node run, such as other environment variables.

    `done` lists what happened: the kind of work, the node and the unit; `refused` the error of each refused node.
    """

    nodes: Sequence[str] = ("one", "two", "three")
    units_each: int = 3
    on_node: Callable[[str], AbstractContextManager[object]] = lambda node: nullcontext()
    has_gpus: bool = False
    done: list[tuple[str, str, Any]] = field(default_factory=list)
    needs: dict[str, Needs] = field(default_factory=dict)
    refused: dict[str, list[DhkdError]] = field(default_factory=dict)
    turns: Iterator[int] = field(default_factory=count)

    def run(self, work: Work[U, R], units: Sequence[U], needs: Needs, hear: Hear) -> Iterator[Ended[U, R]]:
        """Yield every unit as it ends, as the contract says."""
        kind = type(work).__name__
        self.needs[kind] = needs
        schedule: Schedule[U] = Schedule(units)
        refused: dict[str, DhkdError] = {}
        while not schedule.is_done:
            nodes = [node for node in self.nodes if node not in refused]
            if not nodes:
                raise next(iter(refused.values()))
            node = nodes[next(self.turns) % len(nodes)]
            try:
                with self.on_node(node), copied(work).begun(partial(_tell, hear, node)) as function:
                    yield from self._turn(kind, node, function, schedule)
            except DhkdError as error:
                refused[node] = error
                self.refused.setdefault(node, []).append(error)

    def _turn(self, kind: str, node: str, function: Callable[[U], R], schedule: Schedule[U]) -> Iterator[Ended[U, R]]:
        for _ in range(self.units_each):
            unit = schedule.give(node)
            if unit is None:
                return
            self.done.append((kind, node, unit))
            outcome: R | Exception
            try:
                outcome = copied(function(copied(unit)))
            except Lost:
                given_up = schedule.lose(node)
                if given_up is not None:
                    yield Ended(given_up, ProcessError("expected a worker to end it, got lost workers"), node)
                return
            except Exception as error:
                outcome = error
            yield Ended(schedule.end(node), outcome, node)


def _tell(hear: Hear, node: str, message: object) -> None:
    hear(node, copied(message))


def copied(value: Any) -> Any:
    """Return the value as it arrives elsewhere."""
    return pickle.loads(pickle.dumps(value))
