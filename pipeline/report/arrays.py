"""The arrays that analyses leave as npz files, by name of what they are of; the page reads them again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dhkd.data.disk.atomic import write_atomically
from dhkd.pipeline.report.panels import TEACHER
from dhkd.stages.report.figures import Matrices, Points
from numpy.typing import NDArray

CORRELATION, TSNE = "correlation.npz", "tsne.npz"
LABELS = "labels"  # in tsne.npz, beside the points


# Any: numpy's types would allow only its own options to be passed by name, not arrays.
def write_arrays(path: Path, arrays: Mapping[str, Any]) -> str:
    """Write arrays, compressed, and return the file's name."""
    write_atomically(path, lambda stream: np.savez_compressed(stream, **arrays))
    return str(path)


def read_correlation(path: Path, order: Sequence[str]) -> Matrices:
    """The students' differences from the teacher, those in `order` first; none if the analysis was not made."""
    arrays = _read(path)
    names = [name for name in dict.fromkeys([*order, *arrays]) if name in arrays and name != TEACHER]
    return Matrices({name: arrays[name] for name in names})


def read_tsne(path: Path, order: Sequence[str]) -> Points:
    """The teacher's points, then the students', those in `order` first; none if the analysis was not made."""
    arrays = _read(path)
    labels_N = arrays.pop(LABELS) if arrays else np.zeros(0, dtype=np.int64)
    names = [name for name in dict.fromkeys([TEACHER, *order, *arrays]) if name in arrays]
    return Points({name: arrays[name] for name in names}, labels_N)


def _read(path: Path) -> dict[str, NDArray[Any]]:  # Any: a file says itself what its arrays hold
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)
