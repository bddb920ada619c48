"""Encoded images in a column of an Arrow table, which stays on the disk and is memory-mapped.

A worker process inherits the mapping, or maps the same files again if it is spawned; no rows are copied to it.
"""

import hashlib
import os
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dhkd.data.disk.regular import open_regular
from dhkd.data.errors import DataError
from dhkd.data.images.decoding import USUAL, Reading
from dhkd.data.images.encoded import EncodedFiles
from numpy.typing import NDArray

# How many images' bytes are part of a fingerprint, evenly spaced; of the other images, only the sizes are.
HASHED = 1024


@dataclass(frozen=True)
class ArrowRows:
    """The rows of a `datasets.Dataset`."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def features(self) -> Any:
        """The columns and their kinds."""
        return self.dataset.features

    def values(self, column: str) -> list[Any]:
        """Return the values of a column."""
        values: list[Any] = self.dataset.data.column(column).to_pylist()
        return values

    def images(
        self, where: str, column: str, row_N: NDArray[np.int64], inside: list[Path], reading: Reading
    ) -> "ArrowImages":
        """Return the images of these rows. Raises `DataError` if a row has none."""
        images = ArrowImages(where, self.dataset, column, row_N, inside, reading)
        images.require_all()
        return images


class ArrowImages(EncodedFiles):
    """Images in the column `column` of a `datasets.Dataset`, either bytes or a struct of bytes and path.

    Sample i is row `row_N[i]`. If a row has only a path, the file must lie below one of the folders `inside`.
    """

    def __init__(
        self,
        where: str,
        dataset: Any,
        column: str,
        row_N: NDArray[np.int64],
        inside: list[Path],
        reading: Reading = USUAL,
    ) -> None:
        self._where, self._dataset, self._column, self._row_N = where, dataset, column, row_N
        self._inside, self.reading = [os.path.realpath(folder) for folder in inside], reading
        self._parts: tuple[list[int], list[tuple[Any, Any]]] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Leave out the arrays, which would be pickled by value; the data set is pickled as the files it maps."""
        return {**self.__dict__, "_parts": None}

    def read(self, index: int) -> bytes:
        """Return the image's bytes, from the table or from the file that the table names."""
        content, path = self._cell(index)
        if content is not None:
            return bytes(content)
        if path is None:
            raise DataError("no image (null)")
        with open_regular(self._file(path)) as stream:
            return stream.read()

    def name(self, index: int) -> str:
        """Return the number of the row, and the name that the table gives to the image."""
        _, path = self._cell(index)
        return f"{self._where}, row {self._row_N[index]}{f' ({Path(path).name})' if path else ''}"

    def names(self, num_samples: int) -> bytes:
        """Return the size of each image, or its file's name if the table holds no bytes, and a hash of some images."""
        lines, digest = [], hashlib.sha256()
        for index in range(num_samples):
            size, path = self._size(index)
            lines.append(str(size) if size is not None else os.path.basename(path or ""))
        for index in range(0, num_samples, max(1, num_samples // HASHED)):
            content, _ = self._cell(index)
            digest.update(content or b"")
        return "\n".join([*lines, digest.hexdigest()]).encode()

    def expect(self, index_B: torch.Tensor) -> None:
        """Do nothing, because rows are read where they are."""

    def require_all(self) -> None:
        """Raise `DataError` if a row has no image."""
        for index in range(len(self._row_N)):
            size, path = self._size(index)
            if size is None and path is None:
                raise DataError(f"{self.name(index)}: expected an image, got null; remove the row or fill it")

    def _cell(self, index: int) -> tuple[bytes | None, str | None]:
        bytes_of, path_of, row = self._at(index)
        path = path_of[row].as_py() if path_of is not None else None
        return (bytes_of[row].as_py() if bytes_of is not None else None), path

    def _size(self, index: int) -> tuple[int | None, str | None]:
        """Return the size of the bytes without reading them, and the path."""
        bytes_of, path_of, row = self._at(index)
        path = path_of[row].as_py() if path_of is not None else None
        if bytes_of is None or not bytes_of[row].is_valid:
            return None, path
        return len(bytes_of[row].as_buffer()), path

    def _at(self, index: int) -> tuple[Any, Any, int]:
        """Return the arrays of bytes and paths that hold a sample, and its position in them."""
        if self._parts is None:
            chunks = self._dataset.data.column(self._column).chunks
            starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])[:-1].tolist()
            self._parts = (starts, [_fields(chunk) for chunk in chunks])
        starts, arrays = self._parts
        row = int(self._row_N[index])
        chunk = bisect_right(starts, row) - 1
        return *arrays[chunk], row - starts[chunk]

    def _file(self, path: str) -> str:
        target = os.path.realpath(path)
        if not any(os.path.commonpath([target, folder]) == folder for folder in self._inside):
            raise DataError(f"a path that leads outside of the data root, {path}; put the images into the table")
        return target


def _fields(chunk: Any) -> tuple[Any, Any]:
    """Return a chunk's arrays of bytes and of paths; an array that the chunk lacks is None."""
    if not hasattr(chunk, "field"):
        return chunk, None
    names = [field.name for field in chunk.type]
    bytes_of, path_of = (chunk.field(name) if name in names else None for name in ("bytes", "path"))
    return bytes_of, path_of
