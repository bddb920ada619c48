"""A cache's objects in a folder on the file system."""

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dhkd.data.disk.atomic import sync_folder, write_atomically
from dhkd.data.disk.mapped import Content, mapped
from dhkd.data.errors import ObjectRefused
from dhkd.data.storage.base import LARGEST_OBJECT, require_size


class Folder:
    """A folder on the file system; several machines may share it.

    Links inside the folder are followed only to places inside it, so that nobody who hands over a cache chooses which
    other files are read or written. The folder itself may be reached by a link.
    """

    streams = 1  # more are no faster from a disk, and would keep more than one block in memory

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path)

    def get(self, key: str, largest: int = LARGEST_OBJECT) -> bytes:
        """Return the file's bytes; raises `FileNotFoundError` if there is no such file.

        Raises `ObjectRefused` if the file is larger than `largest` bytes, or if a link leads outside the folder.
        """
        with self._opened(key, largest) as file:
            return file.read(os.fstat(file.fileno()).st_size)

    def get_mapped(self, key: str, size: int, checksum: int, is_intact: Callable[[bytes], bool]) -> Content:
        """Return the file's bytes, mapped into memory if `is_intact` accepts them; raises what `get` raises."""
        with self._opened(key, size) as file:
            # Reading lets other threads work, and brings the pages into memory; mapping alone would do neither.
            content = file.read(size)
            return mapped(file, content) if is_intact(content) else content

    def _opened(self, key: str, largest: int) -> BinaryIO:
        path = self._inside(key)
        try:
            # Without O_NONBLOCK, a named pipe would be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except NotADirectoryError as error:
            raise FileNotFoundError(f"{path}: no file") from error
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise FileNotFoundError(f"{path}: no file")
            require_size(str(path), facts.st_size, largest)
            return open(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def size(self, key: str) -> int:
        """Return the file's size in bytes, or -1 if there is no such file."""
        try:
            facts = self._inside(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return -1
        return facts.st_size if stat.S_ISREG(facts.st_mode) else -1

    def sizes(self) -> dict[str, int]:
        """Return every file's size, by its path relative to the folder.

        Folders behind links are not listed, nor are files outside the folder.
        """
        sizes: dict[str, int] = {}
        folders = [(str(self.path), "")]
        while folders:
            folder, prefix = folders.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                        continue
                    key = prefix + entry.name
                    with contextlib.suppress(FileNotFoundError, ObjectRefused):  # a writer may have renamed it
                        sizes[key] = self.size(key) if entry.is_symlink() else entry.stat(follow_symlinks=False).st_size
        return sizes

    def stamps(self) -> dict[str, str]:
        """Return every file's size, time and number, by its path relative to the folder."""
        stamps = {}
        for key in self.sizes():
            with contextlib.suppress(FileNotFoundError, ObjectRefused):
                facts = self._inside(key).stat()
                stamps[key] = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
        return stamps

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Write the file under another name, flush it and rename it; return whether the file was written."""
        return write_atomically(self._inside(key, follow=False), lambda stream: stream.write(content), replace=replace)

    def delete(self, key: str) -> None:
        """Remove the file, if it exists."""
        path = self._inside(key, follow=False)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_folder(path.parent)

    def _inside(self, key: str, *, follow: bool = True) -> Path:
        """Return the object's path; raises `ObjectRefused` if the key, or a link on the way, leads outside the folder.

        Without `follow`, the object itself may be any link, since it is replaced or removed and not followed.
        """
        path = self.path / key
        actual, root = os.path.realpath(path if follow else path.parent), os.path.realpath(self.path)
        if actual != root and not actual.startswith(root.rstrip(os.sep) + os.sep):
            raise ObjectRefused(
                f"{path}: expected a place inside {self.path}, got {actual}; replace the link by what it leads to"
            )
        return path
