"""The arrays that analyses save as npz files, by kind of run; the page reads these files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dhkd.data.disk.atomic import write_atomically
from dhkd.pipeline.report.panels import TEACHER
from dhkd.stages.report.figures import Matrices, Points
from numpy.typing import NDArray

CORRELATION, TSNE = "correlation.npz", "tsne.npz"
LABELS = "labels"  # name of the labels' array in tsne.npz


# Any: numpy's type hints let only numpy's own options be passed by name, not arrays.
def write_arrays(path: Path, arrays: Mapping[str, Any]) -> str:
    """Write arrays, compressed, and return the file name."""
    write_atomically(path, lambda stream: np.savez_compressed(stream, **arrays))
    return str(path)


def read_correlation(path: Path, order: Sequence[str]) -> Matrices:
    """Read, for each kind of student, the teacher's logit correlation minus the student's; kinds in `order` come first.

    Returns no matrices if there is no file.
    """
    arrays = _read(path)
    names = [name for name in dict.fromkeys([*order, *arrays]) if name in arrays and name != TEACHER]
    return Matrices({name: arrays[name] for name in names})


def read_tsne(path: Path, order: Sequence[str]) -> Points:
    """Read the teacher's points, then the points of each kind of student, with the kinds in `order` first.

    Returns no points if there is no file.
    """
    arrays = _read(path)
    labels_N = arrays.pop(LABELS) if arrays else np.zeros(0, dtype=np.int64)
    names = [name for name in dict.fromkeys([TEACHER, *order, *arrays]) if name in arrays]
    return Points({name: arrays[name] for name in names}, labels_N)


def _read(path: Path) -> dict[str, NDArray[Any]]:  # Any: each array's dtype is stored in the file
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)
