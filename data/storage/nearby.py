"""Copies of a remote cache's objects, kept in a size-limited folder on this machine."""

import hashlib
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.mapped import Content, mapped
from dhkd.data.storage.base import LARGEST_OBJECT, Storage

C = TypeVar("C", bound=Content)


class Nearby:
    """A storage whose `get_checked` keeps copies of another storage's objects; all other methods ask that storage.

    Any number of processes may share the folder of `copies`, even for different caches. A copy's name is made of the
    storage's location, the key, and the size and checksum in the cache's index. So a replaced object gets another copy,
    and a stale copy is never returned.
    """

    def __init__(self, storage: Storage, copies: BoundedCopies) -> None:
        self.location, self.streams = storage.location, storage.streams
        self._storage, self._copies = storage, copies

    def get_checked(
        self, key: str, size: int, checksum: int, is_intact: Callable[[bytes], bool] = lambda content: True
    ) -> bytes:
        """Return the object's bytes, from its copy or newly fetched from the storage.

        A copy is damaged if its size isn't `size` or if `is_intact` returns False for its bytes; the object is then
        fetched again. Fetched bytes are always returned, and the caller must check them; they are kept as a copy only
        if they have the right size and `is_intact` returns True. `checksum` is only part of the copy's name. Raises
        `FileNotFoundError` if there is no such object, and `OSError` if the copy can't be written.
        """
        return self._checked(key, size, checksum, is_intact, lambda copy, content: content)

    def get_mapped(self, key: str, size: int, checksum: int, is_intact: Callable[[bytes], bool]) -> Content:
        """Return what `get_checked` returns, and of a good copy the file mapped into memory."""
        return self._checked(key, size, checksum, is_intact, mapped)

    def _checked(
        self,
        key: str,
        size: int,
        checksum: int,
        is_intact: Callable[[bytes], bool],
        result: Callable[[BinaryIO, bytes], C],
    ) -> C | bytes:
        """Return the `result` of a good copy and its bytes, or else the object's bytes as they were fetched."""
        name = self._name(key, size, checksum)
        fetched: list[bytes] = []

        def fetch(copy: BinaryIO) -> None:
            fetched.append(self._storage.get(key, size))
            copy.write(fetched[-1])

        for _ in range(2):
            with self._copies.open(name, fetch) as copy:
                content = copy.read()
                if len(content) == size and is_intact(content):
                    return result(copy, content)
            self._copies.forget(name)
            if fetched:
                break
        return fetched[-1] if fetched else self._storage.get(key, size)

    def get(self, key: str, largest: int = LARGEST_OBJECT) -> bytes:
        """Return the object's bytes, from the storage itself; raises `FileNotFoundError` if there is no such object.

        Raises `StorageError` if the object is larger than `largest` bytes.
        """
        return self._storage.get(key, largest)

    def size(self, key: str) -> int:
        """Return the object's size in bytes, or -1 if there is no such object."""
        return self._storage.size(key)

    def sizes(self) -> dict[str, int] | None:
        """Return every object's size, by key; return None if the storage can't list its objects."""
        return self._storage.sizes()

    def stamps(self) -> dict[str, str] | None:
        """Return a text for each object that changes when the object does; None if the storage can't list them."""
        return self._storage.stamps()

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Write the object to the storage; return whether it was written."""
        return self._storage.put(key, content, replace=replace)

    def delete(self, key: str) -> None:
        """Remove the object from the storage, if it exists."""
        self._storage.delete(key)

    def _name(self, key: str, size: int, checksum: int) -> str:
        identity = f"{self.location}\n{key}\n{size}\n{checksum}"
        return hashlib.sha256(identity.encode()).hexdigest()[:32]
