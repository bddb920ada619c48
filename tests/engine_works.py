"""Works for the tests of engines. They import no torch, so that workers start fast."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dhkd.data.errors import DataError
from dhkd.pipeline.engines.base import Tell

log = logging.getLogger("dhkd")


@dataclass(frozen=True)
class Unit:
    """What a worker is to do: "square", or to misbehave."""

    number: int
    action: str = "square"


class Strange(Exception):
    """An exception of a class that is not the program's."""


@dataclass(frozen=True)
class Acting:
    """Does units, and leaves a file in `folder` for each beginning and each time that a unit is begun."""

    folder: Path

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[Unit], int]]:
        _leave(self.folder, "work")
        tell("begun")

        def do(unit: Unit) -> int:
            times = _leave(self.folder, f"unit-{unit.number}")
            match unit.action:
                case "kill-once" if times == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "raise":
                    raise FloatingPointError(f"unit {unit.number}")
                case "raise-strange":
                    raise Strange(f"unit {unit.number}")
                case "exit":
                    raise SystemExit(f"unit {unit.number}")
                case "wait":
                    time.sleep(600)
                case "wait-once" if times == 1:
                    time.sleep(600)
            for part in range(3):
                tell((unit.number, part))
            log.info("unit %d: done", unit.number)
            return unit.number**2

        yield do
        _leave(self.folder, "ended")


@dataclass(frozen=True)
class Refusing:
    """Can't begin on any node."""

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[Unit], int]]:
        raise DataError("data set cats: expected a folder, found nothing")
        yield


def _leave(folder: Path, name: str) -> int:
    """Leave a file that names this process, and return how many of this name there are."""
    number = 1
    while True:
        try:
            (folder / f"{name}.{number}").open("x").write(str(os.getpid()))
            return number
        except FileExistsError:
            number += 1


def left(folder: Path, name: str) -> list[int]:
    """Return the processes that left a file of this name, in order."""
    files = sorted(folder.glob(f"{name}.*"), key=lambda file: int(file.suffix[1:]))
    return [int(file.read_text()) for file in files]
