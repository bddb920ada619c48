"""A cache's objects in a folder on the file system."""

import contextlib
import os
import stat
from pathlib import Path

from dhkd.data.disk.atomic import sync_folder, write_atomically


class Folder:
    """A folder on the file system; several machines may share it."""

    streams = 1  # more are no faster from a disk, and would keep more than one block in memory

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path)

    def get(self, key: str) -> bytes:
        """Return the file's bytes; raises `FileNotFoundError` if there is no such file."""
        try:
            return (self.path / key).read_bytes()
        except (NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(f"{self.path / key}: no file") from error

    def size(self, key: str) -> int:
        """Return the file's size in bytes, or -1 if there is no such file."""
        try:
            facts = (self.path / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return -1
        return facts.st_size if stat.S_ISREG(facts.st_mode) else -1

    def sizes(self) -> dict[str, int]:
        """Return every file's size, by its path relative to the folder."""
        sizes: dict[str, int] = {}
        folders = [(str(self.path), "")]
        while folders:
            folder, prefix = folders.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                    else:
                        with contextlib.suppress(FileNotFoundError):  # a put may have renamed its file
                            sizes[prefix + entry.name] = entry.stat().st_size
        return sizes

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Write the file under another name, flush it and rename it; return whether the file was written."""
        return write_atomically(self.path / key, lambda stream: stream.write(content), replace=replace)

    def delete(self, key: str) -> None:
        """Remove the file, if it exists."""
        path = self.path / key
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_folder(path.parent)
