"""Where a cache's objects lie: named bytes, put whole or not at all. Folders here, buckets and web servers in `bucket`.

An object is finished or absent. What a kill leaves of an unfinished put has another name, which nobody asks for.
"""

import contextlib
import os
from pathlib import Path
from typing import Protocol

from dhkd.data.files import sync_folder, write_atomically


class Storage(Protocol):
    """Objects by key, a relative path with slashes. `location` is what users call the place: a path or a URL."""

    location: str

    def get(self, key: str) -> bytes:
        """The object's bytes; raises `FileNotFoundError` when there is none."""

    def size(self, key: str) -> int:
        """The object's size in bytes, -1 when there is none."""

    def sizes(self) -> dict[str, int] | None:
        """Every object's size, by its key; None where the storage can't list."""

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Make the object, durable on return. False, and nothing done, where it exists and `replace` doesn't hold."""

    def delete(self, key: str) -> None:
        """Remove the object, if it is there."""


class Folder:
    """A folder of the file system; several machines may share it."""

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path)

    def get(self, key: str) -> bytes:
        """The file's bytes; raises `FileNotFoundError` when there is none."""
        try:
            return (self.path / key).read_bytes()
        except (NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(f"{self.path / key}: no file") from error

    def size(self, key: str) -> int:
        """The file's size in bytes, -1 when there is none."""
        try:
            return (self.path / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return -1

    def sizes(self) -> dict[str, int]:
        """Every file's size, by its path in the folder."""
        sizes: dict[str, int] = {}
        folders = [(str(self.path), "")]
        while folders:
            folder, prefix = folders.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                    else:
                        with contextlib.suppress(FileNotFoundError):  # it may have been a put under way
                            sizes[prefix + entry.name] = entry.stat().st_size
        return sizes

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Write the file aside, flush it and give it its name."""
        return write_atomically(self.path / key, lambda stream: stream.write(content), replace=replace)

    def delete(self, key: str) -> None:
        """Remove the file, if it is there."""
        path = self.path / key
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_folder(path.parent)
