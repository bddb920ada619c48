"""Arrays that take long to make, and are kept in a file of the user's cache folder."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.disk.locks import locked
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]  # Any: of each name, the caller knows the dtype


def kept_arrays(path: Path, names: Sequence[str], make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of these names from the file at `path`, or else make and keep them.

    A damaged file is written anew. If the folder can't be written, the arrays are made each time.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(path) as arrays:
            return {name: arrays[name] for name in names}
        made = make()
        with contextlib.suppress(OSError):
            write_atomically(path, lambda stream: np.savez(stream, allow_pickle=False, **made))
        return made
