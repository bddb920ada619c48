"""How a store lays a cache's blocks out as objects."""

from collections.abc import Mapping
from typing import Protocol

from dhkd.data.cache.blocks import Array, Block


class Layout(Protocol):
    """How a store lays one cache's blocks out as objects: keys, sizes and bytes, and nothing of where they lie.

    Arrays go by name: each signal's, and the witness's. An array's parts are what its codec makes of it.
    """

    def structure(self) -> dict[str, bytes]:
        """The objects beside the blocks, in the order of writing; the last holds the manifest."""

    def objects(self, name: str, block: Block) -> dict[str, int]:
        """The objects of a block of an array: their sizes by their keys."""

    def pack(self, name: str, block: Block, parts: Mapping[str, Array]) -> dict[str, bytes]:
        """A block of an array as objects; the same bytes whenever and wherever."""

    def unpack(self, name: str, block: Block, contents: Mapping[str, bytes]) -> dict[str, Array]:
        """The inverse of `pack`, for contents that passed `checksum`."""

    def checksum(self, key: str, content: bytes) -> int:
        """What the index remembers of an object's bytes; raises `CacheDamaged` where they contradict themselves."""
