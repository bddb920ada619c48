"""How a cache's blocks are laid out as objects: keys, sizes and bytes, but not where the objects are kept."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from dhkd.data.cache.blocks import Array, Block
from dhkd.data.cache.manifest import Manifest
from dhkd.data.disk.mapped import Content


class Layout(Protocol):
    """How one cache is laid out as objects.

    An array is a signal (a teacher output such as logits) or the witness (a checksum of each row's rendered pixels),
    and is addressed by its name. The parts of an array are the stored arrays that its codec makes of it.
    """

    manifest_key: ClassVar[str]  # the object that holds the manifest, by which a cache of this layout is recognised

    def __init__(self, manifest: Manifest) -> None: ...

    @staticmethod
    def manifest_tree(content: bytes) -> object:
        """Decode the manifest, as plain JSON values, from the bytes of the object `manifest_key`.

        Returns None if another program wrote the object. Raises `ValueError` or `RecursionError` if the bytes can't be
        decoded.
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

    def unpack(self, name: str, block: Block, contents: Mapping[str, Content]) -> dict[str, Array]:
        """Extract a block's parts from its objects, which `checksum` must have accepted.

        An object may be a file that is mapped into memory. Arrays that lie in it without a copy are shared by the
        processes of the machine.

        Raises `CacheDamaged` if the objects don't hold this block.
        """

    def checksum(self, key: str, content: bytes) -> int:
        """Compute from an object's bytes the checksum to record for it in the index.

        Raises `CacheDamaged` if the bytes contradict the checksum stored in them.
        """
