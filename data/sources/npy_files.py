"""Lists the arrays in .npy and .npz files, and loads their values.

Python objects in such files are pickles, which could run code; they are never read. A header that announces more values
than its file holds is refused before memory is allocated. A .npy file is memory-mapped; a member of an .npz file is
read into memory, because it may be compressed and has a checksum.
"""

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import psutil
from dhkd.data.disk.regular import open_regular
from dhkd.data.errors import DataError
from numpy.lib import format as npy
from numpy.typing import NDArray

MOST_MEMBERS = 1000
HEADER = 64 * 1024  # bytes that a header may have at most


@dataclass(frozen=True)
class ArrayFile:
    """One array: the file, the member if the file is an .npz archive, and what its header announces."""

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def name(self) -> str:
        """The array's name in messages and options: the member's name or, for .npy, the file's name."""
        return self.path.name if self.member is None else self.member.removesuffix(".npy")

    def load(self) -> NDArray[np.generic]:
        """Return the values, memory-mapped from a .npy file (which is never changed) or unpacked from an archive."""
        with _refused(self.path):
            if self.member is None:
                return cast("NDArray[np.generic]", np.load(self.path, mmap_mode="c", allow_pickle=False))
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                values = npy.read_array(stream, allow_pickle=False, max_header_size=HEADER)
                stream.read()  # to the end, where the checksum is compared
                return cast("NDArray[np.generic]", values)


def arrays_in(path: Path) -> list[ArrayFile]:
    """Return the arrays in a .npy or .npz file. Raises `DataError` for other files, damage and Python objects."""
    with _refused(path), open_regular(str(path)) as stream:
        if path.suffix.lower() == ".npy":
            size = path.stat().st_size
            return [_announced(path, None, stream, size)]
        with zipfile.ZipFile(stream) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(members) > MOST_MEMBERS:
                raise DataError(f"{path}: expected at most {MOST_MEMBERS:,} arrays, got {len(members):,}")
            if sum(info.compress_size for info in members) > path.stat().st_size:
                raise DataError(f"{path}: its members announce more bytes than the file has; it is damaged")
            arrays = []
            for info in members:
                with archive.open(info) as member:
                    arrays.append(_announced(path, info.filename, cast("BinaryIO", member), info.file_size))
            return arrays


def require_memory(arrays: list[ArrayFile]) -> None:
    """Raise `DataError` if those arrays that are members of archives, unpacked, don't fit into the available memory."""
    needed = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays if array.member is not None)
    available = psutil.virtual_memory().available
    if needed > available:
        raise DataError(
            f"{arrays[0].path}: unpacked, {' and '.join(array.name for array in arrays)} take {needed / 1e9:,.1f} GB,"
            f" more than the {available / 1e9:,.1f} GB of memory that are available; store them as .npy files, which"
            f" are memory-mapped"
        )


def _announced(path: Path, member: str | None, stream: BinaryIO, size: int) -> ArrayFile:
    """Read an array's header, and compare the size that it announces with the actual size."""
    where = str(path) if member is None else f"{path}, {member}"
    version = npy.read_magic(stream)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise DataError(f"{where}: expected version 1 or 2 of NumPy's format, got {version}; save it again")
    shape, _, dtype = read_header(stream, max_header_size=HEADER)
    if dtype.hasobject:
        raise DataError(
            f"{where}: expected numbers or text, got Python objects, which could run code; save the array with a dtype"
            f" such as int64"
        )
    announced = math.prod(shape) * dtype.itemsize + stream.tell()
    if announced != size:
        raise DataError(f"{where}: its header announces {announced:,} bytes, got {size:,}; the file is damaged")
    return ArrayFile(path, member, tuple(shape), dtype)


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"{path}: expected a .npy or .npz file, got: {error.strerror or error}; check --data-root"
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: expected a .npy or .npz file, got a damaged or foreign one ({reason})") from error
