"""How a cache's blocks are laid out as objects: keys, sizes and bytes, but not where the objects are kept."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from dhkd.data.cache.blocks import Array, Block
from dhkd.data.cache.manifest import Manifest


class Layout(Protocol):
    """How one cache is laid out as objects.

    An array is a signal, or the witness (a checksum of each row's rendered pixels), and is addressed by its name. The
    parts of an array are the stored arrays that its codec makes of it.
    """

    manifest_key: ClassVar[str]  # the object that holds the manifest, by which a cache of this layout is recognised

    def __init__(self, manifest: Manifest) -> None: ...

    @staticmethod
    def manifest_tree(content: bytes) -> object:
        """Return the manifest in the bytes of `manifest_key`, as plain JSON values.

        Returns None if another program wrote the object. Raises `ValueError` or `RecursionError` if the bytes can't be
        read.
        """

    @staticmethod
    def objects_per_block(num_parts: int) -> int:
        """Return how many objects hold a block of an array with `num_parts` parts."""

    def structure(self) -> dict[str, bytes]:
        """Return the metadata objects, in the order of writing; the last one holds the manifest."""

    def objects(self, name: str, block: Block) -> dict[str, int]:
        """Return the sizes in bytes of the objects that hold a block of an array, by key."""

    def pack(self, name: str, block: Block, parts: Mapping[str, Array]) -> dict[str, bytes]:
        """Pack a block of an array into objects; equal parts give equal bytes, at any time and on any machine."""

    def unpack(self, name: str, block: Block, contents: Mapping[str, bytes]) -> dict[str, Array]:
        """Return the parts in objects that `pack` made and that passed `checksum`.

        Raises `CacheDamaged` if the objects hold something else.
        """

    def checksum(self, key: str, content: bytes) -> int:
        """Return the checksum that the index records for an object.

        Raises `CacheDamaged` if the bytes contradict the checksum that they include.
        """
