"""How the processes of a machine share a cache's objects in memory: as files on this machine that they map.

A cache on a disk of this machine is mapped where it lies. Objects from elsewhere are mapped from their copies here.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.mapped import LOCAL, Content, file_system_of
from dhkd.data.errors import ObjectRefused, StorageError
from dhkd.data.storage.base import Mappable, Storage
from dhkd.data.storage.folder import Folder
from dhkd.data.storage.nearby import Nearby
from dhkd.data.storage.places import is_url

log = logging.getLogger("dhkd")

MOST_FILES = 4096  # that are mapped at a time; each takes one of the files that a process may open


@dataclass(frozen=True)
class Sharing:
    """The objects as files on this machine, of which at most `room` bytes can be mapped; None for no limit.

    If there are no such files, `reason` says why.
    """

    objects: Mappable | None
    room: int | None = None
    reason: str = ""

    def refusal(self, num_objects: int, num_bytes: int) -> str | None:
        """Return why so many objects are not mapped at a time, or None if they are."""
        if self.objects is None:
            return self.reason
        if num_objects > MOST_FILES:
            return f"it is read as {num_objects:,} objects, and at most {MOST_FILES:,} are mapped"
        if self.room is not None and num_bytes > self.room:
            return f"it takes {num_bytes / 1e9:.1f} GB, and copies on this machine at most {self.room / 1e9:.1f} GB"
        return None


UNSHARED = Sharing(None, reason="it was opened without copies on this machine")


def sharing_of(location: str | Path, storage: Storage, copies: BoundedCopies | None) -> Sharing:
    """Find out how objects of the storage at `location` can be mapped, if need be by means of `copies`."""
    if not is_url(location):
        place = file_system_of(Path(location))
        if place in LOCAL:
            return Sharing(Folder(Path(location)))
        why = f"its file system, {place}, may be on another machine"
    else:
        why = "it is on another machine"
    if copies is None:
        return UNSHARED
    place = file_system_of(copies.folder)
    if place not in LOCAL:
        return Sharing(None, reason=f"{why}, and so may {copies.folder} ({place}); set XDG_CACHE_HOME to a local disk")
    if is_url(location):
        return Sharing(Nearby(storage, copies), copies.keep_bytes)
    return Sharing(_CopiesIfPossible(storage, copies), min(copies.keep_bytes, _free(copies.folder) // 2))


class _CopiesIfPossible:
    """Maps copies of a storage's objects, or reads from the storage itself where no copy can be written."""

    def __init__(self, storage: Storage, copies: BoundedCopies) -> None:
        self._storage, self._nearby, self._folder, self._told = storage, Nearby(storage, copies), copies.folder, False

    def get_mapped(self, key: str, size: int, checksum: int, is_intact: Callable[[bytes], bool]) -> Content:
        try:
            return self._nearby.get_mapped(key, size, checksum, is_intact)
        except (FileNotFoundError, ObjectRefused, StorageError):
            raise
        except OSError as error:
            if not self._told:
                self._told = True
                log.info(
                    "%s: no copies in %s (%s), so each process holds its own in memory",
                    *(self._storage.location, self._folder, error.strerror),
                )
            return self._storage.get(key, size)


def _free(folder: Path) -> int:
    """Return how many bytes are free where `folder` is, or will be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
