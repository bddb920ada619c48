"""Reading a complete cache from a path or URL. Every object is checked against the index before its values are used."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from dhkd.data.cache import codecs
from dhkd.data.cache.blocks import WITNESS, Array, Block, Plan
from dhkd.data.cache.faults import Fault, describes_another_array, faults, get_object
from dhkd.data.cache.find import find
from dhkd.data.cache.index import LARGEST_INDEX, Bound, Index
from dhkd.data.cache.layouts import layout_of
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.missing import how_many_exist, progress_of
from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.mapped import Content
from dhkd.data.errors import CacheDamaged, CacheIncomplete, CacheMismatch, ObjectRefused
from dhkd.data.storage.base import Storage, each
from dhkd.data.storage.nearby import Nearby
from dhkd.data.storage.places import is_url, storage_of
from dhkd.data.storage.sharing import UNSHARED, Sharing, sharing_of
from google_crc32c import value as crc32c
from numpy.typing import NDArray

UNLIKE_WRITTEN = "its bytes are not those that were written"
AGAIN = "run 'dhkd cache-teacher' again with the same arguments"


@dataclass(frozen=True)
class Damage:
    """An object that is not as it was written.

    `name` and `block` say which array and block the object holds; both are None for metadata.
    """

    key: str
    name: str | None
    block: Block | None
    reason: str

    def __str__(self) -> str:
        return f"{self.key}{f' ({self.block})' if self.block else ''}: {self.reason}"


class LogitReader:
    """A complete cache, or the complete part of a cache that is being extended.

    Blocks are read through `nearby`, which keeps copies on this machine. If `nearby` is None, blocks are read from the
    storage, and no copies are kept. `sharing` says how the processes of this machine can share blocks in memory.
    """

    def __init__(
        self, storage: Storage, index: Index, nearby: Nearby | None = None, sharing: Sharing = UNSHARED
    ) -> None:
        self.manifest: Manifest = index.manifest
        self.plan: Plan = index.manifest.plan
        self._storage, self._index, self._nearby, self._sharing = storage, index, nearby, sharing
        self._layout = layout_of(index.store, index.manifest)

    @property
    def location(self) -> str:
        """The cache's path or URL."""
        return self._storage.location

    @property
    def store(self) -> str:
        """The name of the cache's store, i.e. of the layout of its objects, e.g. zarr."""
        return self._index.store

    def of_first_views(self, num_views: int) -> "LogitReader":
        """Return a reader of the same cache that has only the first `num_views` views."""
        fewer = copy.copy(self)
        fewer.plan = replace(self.plan, num_views=num_views)
        return fewer

    def bound(self, name: str) -> Bound:
        """Return the bound on how far a signal's stored values may lie from the values that the teacher computed.

        Raises `CacheMismatch` if the cache doesn't hold the signal.
        """
        self._require_signal(name)
        return self._index.bounds[name]

    def read(self, view: int, indices: Sequence[int] | NDArray[np.int64], name: str = "logits") -> NDArray[np.float32]:
        """Read a signal's values for the samples `indices` in `view`: float32 (len(indices), …).

        Whole blocks are read, so ask for many rows at a time, or for a whole view with `read_view`. If the teacher has
        a name in the cache, its signals are named TEACHER.SIGNAL. Raises `CacheMismatch` for a signal that the cache
        doesn't have, `IndexError` for such a view or index, and `CacheDamaged` if an object is not as it was written.
        """
        self._require_signal(name)
        index_B = np.asarray(indices, dtype=np.int64)
        if not 0 <= view < self.plan.num_views:
            raise IndexError(f"view {view}: the cache has {self.plan.num_views}")
        if len(index_B) and not 0 <= index_B.min() <= index_B.max() < self.plan.num_samples:
            raise IndexError(
                f"indices {index_B.min()} to {index_B.max()}: the cache has {self.plan.num_samples} samples"
            )
        signal = self.manifest.signals[name]
        values = np.empty((len(index_B), *signal.row), np.float32)
        number_B = index_B // self.plan.block_rows
        for number in np.unique(number_B).tolist():
            in_block = number_B == number
            block = self.plan.block(view, number)
            rows = index_B[in_block] - block.start
            parts = {part: array[rows] for part, array in self.stored(block, name).items()}
            values[in_block] = codecs.decode(signal.codec, parts, signal.row)
        return values

    def read_view(self, view: int, name: str = "logits") -> NDArray[np.float32]:
        """Read a whole view of a signal: float32 (N, …)."""
        return self.read(view, np.arange(self.plan.num_samples), name)

    def witness(self, block: Block) -> NDArray[np.uint32]:
        """Read the block's witness, a checksum of the pixels that the teacher saw in each row: uint32 (rows,)."""
        return self.stored(block, WITNESS)[""].astype(np.uint32, copy=False)

    def stored(self, block: Block, name: str) -> dict[str, Array]:
        """Read one block of a signal or of the witness as its stored parts, read-only arrays (rows, …).

        Raises `CacheMismatch` if the cache doesn't hold the signal, and `CacheDamaged` if an object is not as it was
        written.
        """
        return self._stored(block, name, self._content)

    def mapped(self, block: Block, name: str) -> dict[str, Array]:
        """Read and check a block as `stored` does; the arrays lie in files that all processes of this machine share.

        Where `why_unmapped` gives a reason, the arrays lie in memory of this process.
        """
        return self.stored(block, name) if self._sharing.objects is None else self._stored(block, name, self._mapped)

    def why_unmapped(self, names: Sequence[str], num_blocks: int | None = None) -> str | None:
        """Return why `num_blocks` blocks of these signals are not to be mapped at a time, or None if they are.

        If `num_blocks` is None, all blocks are meant.
        """
        if not names or not self.plan.num_blocks:
            return None
        num_blocks = self.plan.num_blocks if num_blocks is None else num_blocks
        first = self.plan.block(0, 0)
        objects = [size for name in names for size in self._layout.objects(name, first).values()]
        return self._sharing.refusal(num_blocks * len(objects), num_blocks * sum(objects))

    def _stored(self, block: Block, name: str, content_of: Callable[[str, int, int], Content]) -> dict[str, Array]:
        if name != WITNESS:
            self._require_signal(name)
        contents: dict[str, Content] = {}
        for key, entry in self._entries(name, block).items():
            try:
                contents[key] = content_of(key, *entry)
            except Fault as fault:
                raise CacheDamaged(
                    f"cache at {self.location}: {key} ({block}): {fault}; {AGAIN}: it writes just those blocks"
                ) from fault
        return self._unpacked(name, block, contents)

    def stored_each(self, blocks: Iterable[Block], name: str, *, mapped: bool = False) -> Iterator[dict[str, Array]]:
        """Yield the result of `stored`, or of `mapped`, for each block, in order.

        From a URL, several blocks are fetched at a time.
        """
        read = self.mapped if mapped else self.stored
        return each(lambda block: read(block, name), blocks, self._storage.streams)

    def require_present(self) -> None:
        """Raise `CacheIncomplete` if an object is missing or has the wrong size.

        A storage that can't list its objects is not checked.
        """
        sizes = self._storage.sizes()
        if sizes is None:
            return
        missing = [
            block
            for block in self.plan.blocks()
            if any(
                sizes.get(key) != size
                for name in self.manifest.names
                for key, size in self._layout.objects(name, block).items()
            )
        ]
        if missing:
            raise CacheIncomplete(
                f"cache at {self.location}: {how_many_exist(self.plan, missing)}; {AGAIN}: it writes just those"
            )

    def damages(self) -> Iterator[Damage | int]:
        """Read every object from the storage, never from a copy on this machine.

        For each object, yields the object's size in bytes if the object is as it was written, or else a `Damage`.
        """
        yield from self.damages_of_metadata()
        yield from self.damages_of(self.plan.blocks())

    def damages_of_metadata(self) -> Iterator[Damage | int]:
        """Read the objects that belong to no block, as `damages` does."""
        described, promised = self._layout.structure(), cache(self._promised)
        for key, checksum in self._index.structure.items():
            try:
                content = get_object(self._storage, key, LARGEST_INDEX)
                if crc32c(content) != checksum and content != promised().get(key):
                    raise Fault(UNLIKE_WRITTEN)
                if describes_another_array(content, described.get(key, content)):
                    raise Fault("describes another array than the manifest does")
                yield len(content)
            except Fault as fault:
                yield Damage(key, None, None, str(fault))

    def damages_of(self, blocks: Iterable[Block]) -> Iterator[Damage | int]:
        """Read the objects of these blocks, as `damages` does."""
        arrays = ((block, name) for block in blocks for name in self.manifest.names)
        for results in each(lambda array: self._checked(*array), arrays, self._storage.streams):
            yield from results

    def _checked(self, block: Block, name: str) -> list[Damage | int]:
        """Read one block of an array from the storage; return each object's size or damage."""
        results: list[Damage | int] = []
        contents: dict[str, bytes] = {}
        for key, (size, checksum) in self._entries(name, block).items():
            try:
                contents[key] = get_object(self._storage, key, size)
                self._require_intact(key, contents[key], size, checksum)
                results.append(len(contents[key]))
            except Fault as fault:
                results.append(Damage(key, name, block, str(fault)))
        if any(isinstance(result, Damage) for result in results):
            return results
        try:
            self._unpacked(name, block, contents)
        except CacheDamaged as error:
            return [Damage(key, name, block, str(error)) for key in contents]
        return results

    def _unpacked(self, name: str, block: Block, contents: Mapping[str, Content]) -> dict[str, Array]:
        """Return a block's parts; raises `CacheDamaged` if they can't be what the signal's codec stored."""
        parts = self._layout.unpack(name, block, contents)
        if name != WITNESS:
            signal = self.manifest.signals[name]
            reason = signal.codec.impossible(parts, signal.row)
            if reason:
                raise CacheDamaged(f"cache at {self.location}: {name} ({block}): {reason}; {AGAIN}")
        return parts

    def _promised(self) -> dict[str, bytes]:
        """Return the metadata objects that an extension of the cache may have written by now, by key."""
        existing = find(self._storage)
        return layout_of(existing.store, existing.manifest).structure() if existing else {}

    @property
    def num_objects(self) -> int:
        """How many objects `damages` reads: the blocks' objects and the metadata."""
        return self._index.num_objects

    def stored_bytes(self, names: Sequence[str] | None = None) -> int:
        """Return the total size in bytes of all blocks of the arrays `names`; if `names` is None, of every array."""
        return sum(
            size
            for name in names or self.manifest.names
            for block in self.plan.blocks()
            for size in self._layout.objects(name, block).values()
        )

    def _require_signal(self, name: str) -> None:
        if name not in self.manifest.signals:
            raise CacheMismatch(
                f"cache at {self.location}: expected the signal {name}, it holds {', '.join(self.manifest.signals)};"
                f" name one of these (a signal of a teacher with a name is TEACHER.SIGNAL)"
            )

    def _entries(self, name: str, block: Block) -> dict[str, tuple[int, int]]:
        """Return size and checksum of each of the block's objects, by key."""
        checksums = self._index.known(name, block)
        assert checksums is not None  # the reader has the index's manifest
        objects = self._layout.objects(name, block)
        return {key: (size, checksum) for (key, size), checksum in zip(objects.items(), checksums, strict=True)}

    def _content(self, key: str, size: int, checksum: int) -> bytes:
        """Return an object's bytes, from its copy on this machine if copies are kept; raises `Fault`."""
        if self._nearby is None:
            content = get_object(self._storage, key, size)
        else:
            try:
                content = self._nearby.get_checked(
                    key, size, checksum, lambda content: self._is_intact(key, content, size, checksum)
                )
            except FileNotFoundError as error:
                raise Fault(f"expected {size} bytes, got no object") from error
            except ObjectRefused as error:
                raise Fault(str(error)) from error
        self._require_intact(key, content, size, checksum)
        return content

    def _mapped(self, key: str, size: int, checksum: int) -> Content:
        """Return an object's bytes as a file that is mapped into memory, or else as `_content` does."""
        assert self._sharing.objects is not None
        with faults(size):
            content = self._sharing.objects.get_mapped(
                key, size, checksum, lambda content: self._is_intact(key, content, size, checksum)
            )
        if isinstance(content, bytes):  # any bytes; mapped files were intact
            self._require_intact(key, content, size, checksum)
        return content

    def _is_intact(self, key: str, content: bytes, size: int, checksum: int) -> bool:
        try:
            self._require_intact(key, content, size, checksum)
        except Fault:
            return False
        return True

    def _require_intact(self, key: str, content: bytes, size: int, checksum: int) -> None:
        """Raise `Fault`, which says what is wrong, unless an object's bytes are as they were written."""
        if len(content) != size:
            raise Fault(f"expected {size} bytes, got {len(content)}")
        try:
            actual = self._layout.checksum(key, content)
        except CacheDamaged as error:
            raise Fault(UNLIKE_WRITTEN) from error
        if actual != checksum:
            raise Fault("is not the block that was written")  # intact, but another block


def open_cache(location: str | Path, copies: BoundedCopies | None = None) -> LogitReader:
    """Open the complete cache at a path or URL.

    Objects that are fetched from a URL are kept in `copies`, unless `copies` is None. Raises `CacheIncomplete` if there
    is no cache, or if the cache was never finished.
    """
    storage = storage_of(location)
    index = complete_index(storage)
    nearby = Nearby(storage, copies) if copies and is_url(location) else None
    return LogitReader(storage, index, nearby, sharing_of(location, storage, copies))


def complete_index(storage: Storage) -> Index:
    """Read what is complete in a cache; raises `CacheIncomplete` as `open_cache` does."""
    existing = find(storage)
    if existing is None:
        raise CacheIncomplete(
            f"cache at {storage.location}: expected a dhkd cache, found none; make it with 'dhkd cache-teacher'"
        )
    if existing.index is None:
        raise CacheIncomplete(f"cache at {storage.location}: {progress_of(storage, existing)}; {AGAIN}")
    return existing.index
