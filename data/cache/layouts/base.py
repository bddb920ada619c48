"""How a cache's blocks are laid out as objects: keys, sizes and bytes, and nothing of where they lie."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from dhkd.data.cache.blocks import Array, Block
from dhkd.data.cache.manifest import Manifest


class Layout(Protocol):
    """How one cache is laid out as objects.

    Arrays go by name: each signal's, and the witness's. The parts of an array are what its codec makes of it.
    """

    manifest_key: ClassVar[str]  # the object that holds the manifest: by it, a cache of this layout is recognised

    def __init__(self, manifest: Manifest) -> None: ...

    @staticmethod
    def manifest_tree(content: bytes) -> object:
        """The manifest in the bytes of `manifest_key`, as plain JSON values.

        None if the object is another program's. Raises `ValueError` or `RecursionError` if it can't be read.
        """

    @staticmethod
    def objects_per_block(num_parts: int) -> int:
        """How many objects hold a block of an array with so many parts."""

    def structure(self) -> dict[str, bytes]:
        """The objects beside the blocks, in the order of writing; the last one holds the manifest."""

    def objects(self, name: str, block: Block) -> dict[str, int]:
        """The objects of a block of an array: their sizes in bytes, by key."""

    def pack(self, name: str, block: Block, parts: Mapping[str, Array]) -> dict[str, bytes]:
        """A block of an array as objects; equal parts give equal bytes, at any time and on any machine."""

    def unpack(self, name: str, block: Block, contents: Mapping[str, bytes]) -> dict[str, Array]:
        """The inverse of `pack`, for contents that passed `checksum`.

        Raises `CacheDamaged` if they hold something else.
        """

    def checksum(self, key: str, content: bytes) -> int:
        """The checksum by which the index knows an object; raises `CacheDamaged` if the bytes contradict themselves."""
