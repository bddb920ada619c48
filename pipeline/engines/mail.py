"""Records that one process appends to a file and another one reads, on a file system that both see.

The file exists before either looks at it, and each look opens it anew: file systems such as NFS promise that an opened
file shows what was written and closed before, but may hide a new file, or a size that has changed, for a minute.
"""

import os
import pickle
from pathlib import Path

_HEADER = 8  # bytes of a record's length, before its pickle


def create(path: Path) -> Path:
    """Make an empty file of records, and return its path."""
    path.touch(exist_ok=False)
    return path


def repair(path: Path) -> None:
    """Cut off a record that a killed process has not finished."""
    os.truncate(path, complete_bytes(path))


def send(path: Path, record: object) -> None:
    """Append a record to a file that exists; threads and signal handlers may do so at the same time.

    Raises what pickling raises, before anything is written, and `FileNotFoundError` if the file was removed.
    """
    pickled = pickle.dumps(record)
    content = len(pickled).to_bytes(_HEADER) + pickled
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(file, content) < len(content):  # all at once, so that records don't mix
            raise OSError(f"{path}: expected to write {len(content)} bytes, wrote fewer; is the disk full?")
    finally:
        os.close(file)


class Inbox:
    """Reads the records of a file that exists, each once."""

    def __init__(self, path: Path, *, skip: bool = False) -> None:
        """With `skip`, begin after the records that the file has."""
        self._path = path
        self._offset = complete_bytes(path) if skip else 0

    def new(self) -> list[object]:
        """Return the complete records that were not returned before, in order."""
        records = []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while len(header := file.read(_HEADER)) == _HEADER:
                pickled = file.read(int.from_bytes(header))
                if len(pickled) < int.from_bytes(header):
                    break
                records.append(pickle.loads(pickled))
                self._offset += _HEADER + len(pickled)
        return records


def complete_bytes(path: Path) -> int:
    """Return how many bytes of a file are complete records."""
    with path.open("rb") as file:
        end, complete = file.seek(0, os.SEEK_END), 0
        while complete + _HEADER <= end:
            file.seek(complete)
            following = complete + _HEADER + int.from_bytes(file.read(_HEADER))
            if following > end:
                break
            complete = following
    return complete
