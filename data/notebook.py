"""Progress in a notebook: one line of output for each cell, which is replaced as the work goes on.

A bar would need a terminal, and lines of a log would fill the notebook.
"""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("dhkd")


class ShownAsText:
    """The base of results that a notebook shows as `print` does."""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": str(self)}


class Line:
    """The line of output that is replaced."""

    def __init__(self) -> None:
        self._handle: Any = None  # IPython's
        self._note = self._work = ""
        self._lock = threading.Lock()

    def note(self, text: str) -> None:
        """Show the latest message of the log, and forget the progress before it."""
        self._note, self._work = text, ""
        self._show()

    def work(self, text: str) -> None:
        """Show the progress of the current work, behind the latest message."""
        self._work = text
        self._show()

    def end(self) -> None:
        """Clear the line, since the call's result is shown instead."""
        self._note = self._work = ""
        if self._handle is not None:
            self._show()

    def _show(self) -> None:
        with self._lock:
            content = {"text/plain": " · ".join(text for text in (self._note, self._work) if text)}
            if self._handle is None:
                from IPython.display import display

                self._handle = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]  # IPython's
            else:
                self._handle.update(content, raw=True)


class _ToLine(logging.Handler):
    def __init__(self, line: Line) -> None:
        super().__init__(logging.INFO)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:  # other handlers show warnings and errors
            self._line.note(record.getMessage())


_line: Line | None = None


def line() -> Line | None:
    """Return the line of output of the dhkd call that is running, or None outside of a notebook."""
    return _line


@contextmanager
def shown_in_notebook() -> Iterator[None]:
    """Show progress and log lines in the notebook while the context lasts; elsewhere, do nothing."""
    global _line  # noqa: PLW0603 - a notebook runs one cell at a time
    if not in_notebook() or _line is not None:
        yield
        return
    _line = Line()
    handler, level = _ToLine(_line), log.level
    log.addHandler(handler)
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _line.end()
        _line = None
        log.setLevel(level)
        log.removeHandler(handler)


def in_notebook() -> bool:
    """Return whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return hasattr(shell, "kernel")
