"""Shows the progress of long work: a bar on a terminal, a line every minute in a log, one updated line in a notebook.

Bars and log go to standard error, so that standard output contains only results.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dhkd.data import notebook
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

log = logging.getLogger("dhkd")

LINE_SECONDS = 60.0  # between two lines where there is no terminal
NOTEBOOK_SECONDS = 0.5  # between two changes of a notebook's line

Advance = Callable[[int], None]


@contextmanager
def progress(
    description: str,
    total: int | None,
    *,
    visible: bool = True,
    bar: bool = True,
    line_seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Show the progress of work over `total` things; the yielded callable advances it by a number of things.

    On a terminal, a bar is drawn, unless `bar` is false: only one bar can be drawn at a time. In a notebook, a call of
    the Python interface updates one line. Elsewhere, a line is logged every `line_seconds` by `clock` (None:
    `LINE_SECONDS`). `total` is None if it is unknown. Nothing is shown unless `visible` is true. Threads may share the
    callable.
    """
    line = notebook.line()
    if line is not None:
        yield _Lines(description, total, NOTEBOOK_SECONDS, clock, line.work).advance
    elif not visible or (on_terminal() and not bar):
        yield lambda amount: None
    elif on_terminal():
        with _bar() as drawn:
            task = drawn.add_task(description, total=total)
            yield lambda amount: drawn.advance(task, amount)
    else:
        yield _Lines(description, total, LINE_SECONDS if line_seconds is None else line_seconds, clock).advance


def duration(seconds: float) -> str:
    """Return a duration as text: 40 s, 12 min, 3 h 05 min or 2 d 3 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // (24 * 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02} min" if not days else f"{days} d {hours % 24} h"


def on_terminal() -> bool:
    """Return whether standard error is a terminal on which bars can be drawn."""
    # rich's own answer follows variables such as FORCE_COLOR, and bars in a log would fill it with control characters.
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _Lines:
    """Progress as lines of a log. A line is due at most once in `every` seconds, whenever the work advances."""

    def __init__(
        self,
        description: str,
        total: int | None,
        every: float,
        clock: Callable[[], float],
        show: Callable[[str], None] = log.info,
    ) -> None:
        self._description, self._total, self._every, self._clock, self._show = description, total, every, clock, show
        self._done = self._done_before = 0
        self._before = clock()  # when the last line was logged
        self._lock = threading.Lock()

    def advance(self, amount: int) -> None:
        """Count `amount` things as done, and log a line if it is due."""
        with self._lock:
            self._done += amount
            now = self._clock()
            passed = now - self._before
            if passed < self._every or self._done == self._total:  # the end is reported by whoever did the work
                return
            # The rate since the last line, because what an earlier call has done already is counted in no time.
            rate = (self._done - self._done_before) / passed if passed > 0 else 0.0
            self._before, self._done_before = now, self._done
            line = self._line(rate)
        self._show(line)

    def _line(self, rate: float) -> str:
        rate_text = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        if self._total is None:
            return f"{self._description}: {self._done:,}, {rate_text}"
        left = f", {duration((self._total - self._done) / rate)} left" if rate > 0 else ""
        share = 100 * self._done / max(1, self._total)
        return f"{self._description}: {self._done:,} of {self._total:,} ({share:.1f} %), {rate_text}{left}"


class _Rate(ProgressColumn):
    """Samples per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
