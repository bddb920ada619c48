"""Encoded images in parquet files, read where they lie, without a copy of the set as an Arrow table.

Parquet stores a column in row groups, each of which is read as a whole. Any row is found by its number: the footers say
which rows a group holds. An index, made once, has the size and a checksum of each image.
"""

import hashlib
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dhkd.data.disk.kept_arrays import kept_arrays
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import DataChanged, DataError
from dhkd.data.images.decoding import USUAL, Reading
from dhkd.data.images.encoded import EncodedFiles
from dhkd.data.progress import progress
from dhkd.data.shown import printable_line
from numpy.typing import NDArray

log = logging.getLogger("dhkd")

HELD_BYTES = 256 * 2**20  # of row groups that a process keeps unpacked


class Groups:
    """The row groups of parquet files, numbered through. Every worker has a copy of this object."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self._files: dict[int, Any] = {}  # Any: pyarrow has no types
        places, rows = [], []
        for number in range(len(paths)):
            metadata = self._file(number).metadata
            places += [(number, group) for group in range(metadata.num_row_groups)]
            rows += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.places = places
        self.starts = np.cumsum([0, *rows])
        self.schema = self._file(0).schema_arrow
        for number, path in enumerate(paths):
            if not self._file(number).schema_arrow.equals(self.schema):
                raise DataError(
                    f"huggingface: {path}: expected the columns of {paths[0]}, got others; put it into another folder"
                )

    def __getstate__(self) -> dict[str, object]:
        """Leave out open files."""
        return {**self.__dict__, "_files": {}}

    def of_row(self, row: int) -> tuple[int, int]:
        """Return the group that holds a row, and the row's position in it."""
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        return group, row - int(self.starts[group])

    def column(self, group: int, column: str) -> Any:
        """Read a column of a group, as a chunked array; of a column of images, their bytes."""
        number, inside = self.places[group]
        field = self.schema.field(column).type
        nested = f"{column}.bytes" if hasattr(field, "get_field_index") else column
        try:
            table = self._file(number).read_row_group(inside, columns=[nested], use_threads=False)
        except OSError:
            raise
        except Exception as error:  # pyarrow raises several kinds for a damaged file
            raise DataError(f"{self.paths[number]}: expected a whole parquet file, got: {_short(error)}") from error
        return table.flatten().column(0)

    def _file(self, number: int) -> Any:
        if number not in self._files:
            import pyarrow.parquet as parquet

            try:
                # Without threads, which a process that is forked would lack.
                self._files[number] = parquet.ParquetFile(self.paths[number], pre_buffer=False)
            except Exception as error:
                raise DataError(
                    f"huggingface: {self.paths[number]}: expected a parquet file, got: {_short(error)}"
                ) from error
        return self._files[number]


@dataclass(frozen=True)
class ImageIndex:
    """The size of each image in bytes, -1 for a row without one, and the CRC-32 of its bytes."""

    size_N: NDArray[np.int64]
    crc_N: NDArray[np.uint32]


class ParquetRows:
    """The rows of a split in parquet files. Raises `DataError` for files that can't be read or have other columns."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._groups = Groups(paths)

    def __len__(self) -> int:
        return int(self._groups.starts[-1])

    @cached_property
    def features(self) -> Any:
        """The columns and their kinds, as the datasets library calls them."""
        import datasets

        return datasets.Features.from_arrow_schema(self._groups.schema)

    def values(self, column: str) -> list[Any]:
        """Return the values of a column, which is read without the others."""
        groups = range(len(self._groups.places))
        return [value for group in groups for value in self._groups.column(group, column).to_pylist()]

    def images(
        self, where: str, column: str, row_N: NDArray[np.int64], inside: list[Path], reading: Reading
    ) -> "ParquetImages":
        """Return the images of these rows. Raises `DataError` if a row has none."""
        index = index_of(where, self._groups, column)
        lacking = np.flatnonzero(index.size_N < 0)
        if len(lacking):
            raise DataError(
                f"{where}, row {lacking[0]}: expected the bytes of an image, got null; remove the row or fill it, or"
                f" leave out data.options.streaming, if the table names files"
            )
        return ParquetImages(where, self._groups, column, row_N, index, reading)


class ParquetImages(EncodedFiles):
    """Images in the column `column`; sample i is row `row_N[i]`."""

    def __init__(
        self,
        where: str,
        groups: Groups,
        column: str,
        row_N: NDArray[np.int64],
        index: ImageIndex,
        reading: Reading = USUAL,
    ) -> None:
        self._where, self._groups, self._column, self._row_N = where, groups, column, row_N
        self._index, self.reading = index, reading
        self._held: OrderedDict[int, Any] = OrderedDict()  # the groups that were read last

    def __getstate__(self) -> dict[str, object]:
        """Leave out what was read."""
        return {**self.__dict__, "_held": OrderedDict()}

    def read(self, index: int) -> bytes:
        """Return the image's bytes. Raises `DataChanged` if they aren't those that were indexed."""
        row = int(self._row_N[index])
        group, position = self._groups.of_row(row)
        column = self._unpacked(group)
        content = column[position].as_py() if position < len(column) else None
        if content is None or zlib.crc32(content) != int(self._index.crc_N[row]):
            path = self._groups.paths[self._groups.places[group][0]]
            raise DataChanged(
                f"{self.name(index)}: expected the image that was indexed, got another; {path} was replaced: run the"
                f" command again"
            )
        return bytes(content)

    def name(self, index: int) -> str:
        """Return the number of the row."""
        return f"{self._where}, row {self._row_N[index]}"

    def names(self, num_samples: int) -> bytes:
        """Return the size and the checksum of each image."""
        row_N = self._row_N[:num_samples]
        return self._index.size_N[row_N].astype("<i8").tobytes() + self._index.crc_N[row_N].astype("<u4").tobytes()

    def expect(self, index_B: torch.Tensor) -> None:
        """Do nothing, because rows are read where they are."""

    def _unpacked(self, group: int) -> Any:
        """Return the images of a group, and keep the groups that were used last, within `HELD_BYTES`."""
        held = self._held
        if group in held:
            held.move_to_end(group)
        else:
            held[group] = self._groups.column(group, self._column)
            while len(held) > 1 and sum(column.nbytes for column in held.values()) > HELD_BYTES:
                held.popitem(last=False)
        return held[group]


def index_of(where: str, groups: Groups, column: str) -> ImageIndex:
    """Return the index of the images in a column: the stored one if it exists, or else a new one."""

    def make() -> dict[str, NDArray[Any]]:
        log.info("%s: reading the images of %d parquet files, once", where, len(groups.paths))
        sizes, crcs = [], []
        with progress("reading the images of parquet files", len(groups.places), bar=False) as advance:
            for group in range(len(groups.places)):
                for cell in groups.column(group, column):
                    content = cell.as_buffer() if cell.is_valid else None
                    sizes.append(-1 if content is None else len(content))
                    crcs.append(0 if content is None else zlib.crc32(content))
                advance(1)
        return {"size_N": np.array(sizes, dtype=np.int64), "crc_N": np.array(crcs, dtype=np.uint32)}

    return ImageIndex(**kept_arrays(index_path(groups.paths, column), ("size_N", "crc_N"), make))


def index_path(paths: Sequence[str], column: str) -> Path:
    """Return the path of the stored index; its name is a hash of the column and of the files' sizes and times.

    The times include that of the last change of a file's entry, which can't be set back.
    """
    digest = hashlib.sha256(f"{column}\n".encode())
    for path in paths:
        status = os.stat(path)
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(os.fsencode(f"{os.path.abspath(path)} {status.st_size} {times}\n"))
    return user_cache_folder() / "parquet-indices" / f"{digest.hexdigest()[:32]}.npz"


def _short(error: BaseException) -> str:
    return printable_line(" ".join(str(error).split()), 200) or type(error).__name__
