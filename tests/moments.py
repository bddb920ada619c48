"""Do something at a chosen moment of this process's work, however fast or slow the machine is.

A thread that watches a folder may be late on a busy machine, when the work is done. An audit hook is not: Python calls
it before each file that the process opens or renames.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_waiting: list[tuple[Callable[[], bool], Callable[[], object]]] = []  # a hook can't be removed, so one serves them all
_hooks: list[Callable[[str, tuple[Any, ...]], None]] = []


@contextmanager
def at_the_moment(condition: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Call `act` once, before the first file is opened or renamed while `condition` holds."""
    if not _hooks:
        _hooks.append(_hook)
        sys.addaudithook(_hook)
    moment = (condition, act)
    _waiting.append(moment)
    try:
        yield
    finally:
        if moment in _waiting:
            _waiting.remove(moment)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _waiting or event not in ("open", "os.rename"):
        return
    moments = _waiting.copy()
    _waiting.clear()  # what a condition itself opens is no moment
    for number, (condition, act) in enumerate(moments):
        if condition():
            _waiting.extend(moments[:number] + moments[number + 1 :])
            act()
            return
    _waiting.extend(moments)
