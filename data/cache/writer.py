"""Writing a cache: any number of processes and machines write its blocks, in any order, each object as a whole.

The existing objects are the only record of what is done. An existing object is never overwritten unless it has the
wrong size, so if two writers compute the same block, the bytes of the first one stay. When nothing is missing,
everything is read back, checked and indexed; only the index makes a cache complete.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from dhkd.data.cache import codecs
from dhkd.data.cache.blocks import WITNESS, Array, Block, Plan
from dhkd.data.cache.find import StoredCache, find, read_index
from dhkd.data.cache.index import INDEX_KEY, Bound, Index, ObjectMissing
from dhkd.data.cache.layouts import layout_of
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.missing import missing_blocks
from dhkd.data.cache.reader import AGAIN, Damage
from dhkd.data.errors import CacheDamaged, CacheIncomplete, CacheMismatch, ObjectRefused
from dhkd.data.storage.base import Storage, each
from google_crc32c import value as crc32c
from numpy.typing import NDArray

Entries = dict[str, tuple[int, int]]  # size and checksum of each object, by key


@dataclass(frozen=True)
class Checked:
    """The result of reading blocks back.

    `objects` holds the size and checksum of each good object, by key; `bounds` holds the error bound of each signal in
    these blocks.
    """

    objects: Mapping[str, tuple[int, int]]
    bounds: Sequence[tuple[str, Bound]]
    damages: Sequence[Damage]


@dataclass(frozen=True)
class _ReadBack:
    """One block of an array as it is stored; `parts` is None unless all of the block's objects are good."""

    parts: dict[str, Array] | None
    entries: Entries
    damages: list[Damage]


class LogitWriter:
    """Writes the blocks of some signals, and of the witness, into a cache that the function `begin` made or prepared.

    The witness is a checksum of each row's rendered pixels.
    """

    def __init__(self, storage: Storage, store: str, manifest: Manifest, signals: Iterable[str]) -> None:
        self.manifest: Manifest = manifest
        self.plan: Plan = manifest.plan
        self.signals = list(signals)
        self._storage, self._store = storage, store
        self._layout = layout_of(store, manifest)
        self._index = read_index(storage)

    @property
    def location(self) -> str:
        """The cache's path or URL."""
        return self._storage.location

    def missing(self) -> list[Block]:
        """List the stored objects; return the blocks that lack an object of this writer's signals or of the witness."""
        return missing_blocks(self._storage, self._store, self.manifest, [*self.signals, WITNESS])

    def missing_of_others(self) -> list[Block]:
        """Return the blocks that lack an object of another teacher's signals, which other runs write."""
        others = [name for name in self.manifest.signals if name not in self.signals]
        return missing_blocks(self._storage, self._store, self.manifest, others) if others else []

    def has(self, block: Block) -> bool:
        """Return whether the block has been written by now, by any writer."""
        return all(
            self._storage.size(key) == size
            for name in [*self.signals, WITNESS]
            for key, size in self._layout.objects(name, block).items()
        )

    def write(self, block: Block, rows: Mapping[str, NDArray[np.generic]]) -> bool:
        """Write one block durably: every signal, float (rows, …), and the witness, uint32 (rows,).

        Returns False if other writers had written the whole block before. Raises `NonFiniteLoss` for values that can't
        be stored. Raises `CacheMismatch` if the block's stored witness differs from the given one, which means that the
        cached signals were computed from other pixels.
        """
        assert set(rows) == {*self.signals, WITNESS}
        assert all(len(values) == len(block) for values in rows.values())
        # The witness is written first: if it differs from the stored witness, nothing else is written.
        put = self.put(block, WITNESS, {"": rows[WITNESS].astype(np.uint32, copy=False)})
        if not put:
            self._compare_witness(block, rows[WITNESS])
        for name in self.signals:
            values = rows[name].astype(np.float32, copy=False)
            put |= self.put(block, name, codecs.encode(self.manifest.signals[name].codec, name, block, values))
        return put

    def put(self, block: Block, name: str, parts: Mapping[str, Array]) -> bool:
        """Write one encoded block of a signal or of the witness; return False if all of its objects existed."""
        put = False
        for key, content in self._layout.pack(name, block, parts).items():
            made = self._storage.put(key, content, replace=False)
            if not made and self._storage.size(key) not in (-1, len(content)):
                made = self._storage.put(key, content, replace=True)
            put |= made
        return put

    def check(self, blocks: Iterable[Block], written: set[Block]) -> Checked:
        """Read `blocks` back; return their objects' sizes and checksums, the signals' error bounds, and the damages.

        An object is damaged if it is missing, contradicts its own checksum or differs from the index. The blocks in
        `written` may be newer than the index and are not compared with it. Raises `CacheDamaged` if a damaged object
        belongs to another teacher's signal, which this writer can't replace; its own damaged objects are then removed.
        """
        objects: Entries = {}
        bounds: dict[str, Bound] = {}
        damages: list[Damage] = []
        others: list[Damage] = []  # of other teachers' signals

        def read_back(array: tuple[Block, str]) -> tuple[str, _ReadBack, Bound | None]:
            block, name = array
            stored = self._read(name, block, known=block not in written)
            bound = self._bound(name, stored.parts) if name != WITNESS and stored.parts is not None else None
            return name, stored, bound

        arrays = ((block, name) for block in blocks for name in self.manifest.names)
        for name, stored, bound in each(read_back, arrays, self._storage.streams):
            if name in self.manifest.signals and name not in self.signals:
                others += stored.damages
            else:
                damages += stored.damages
            objects |= stored.entries
            if bound is not None:
                bounds[name] = bound.or_worse(bounds.get(name, bound))
        if others:
            # Otherwise, where two teachers' objects are damaged, each run would wait for the other's repair.
            self.discard(damages)
            raise CacheDamaged(
                f"cache at {self.location}: {others[0]}; run 'dhkd cache-teacher' with the teacher of {others[0].name}"
            )
        return Checked(objects, list(bounds.items()), damages)

    def complete(self, written: set[Block]) -> Sequence[Damage]:
        """Check all blocks. If no object is damaged, finish the cache; otherwise remove and return the damaged objects.

        The index of checksums may be older than the blocks in `written`. So these blocks must be readable, but are not
        compared with the index.
        """
        checked = self.check(self.plan.blocks(), written)
        if not checked.damages:
            self.finish([checked])
        self.discard(checked.damages)
        return checked.damages

    def discard(self, damages: Iterable[Damage]) -> None:
        """Remove damaged objects, so that their blocks count as missing."""
        for damage in damages:
            self._storage.delete(damage.key)

    def finish(self, checked: Sequence[Checked]) -> None:
        """Write the index, which makes the cache complete; raises `CacheIncomplete` if an object is missing."""
        objects = {key: entry for part in checked for key, entry in part.objects.items()}
        bounds: dict[str, Bound] = {}
        for part in checked:
            for name, bound in part.bounds:
                bounds[name] = bound.or_worse(bounds.get(name, bound))
        try:
            index = Index.of_entries(self._store, self.manifest, {}, objects, bounds)
        except ObjectMissing as error:
            raise CacheIncomplete(
                f"cache at {self.location}: {error.key} ({error.block}) is missing; {AGAIN}"
            ) from error
        structure = _put_structure(self._storage, self._store, self.manifest)
        _put_if_changed(self._storage, INDEX_KEY, replace(index, structure=structure).to_bytes())

    def _compare_witness(self, block: Block, witness: NDArray[np.generic]) -> None:
        stored = self._read(WITNESS, block, known=True).parts
        if stored is None:  # removed in the meantime, or damaged, which the check at the end detects
            return
        wrong = np.flatnonzero(stored[""] != witness)
        if len(wrong):
            raise CacheMismatch(
                f"cache at {self.location}: pixels differ from those that are cached: {len(wrong)} of {len(block)} rows"
                f" in {block}, first at index {block.start + int(wrong[0])}; the data set, the recipe or a library has"
                f" changed since the cache was begun; write this one to another --out"
            )

    def _read(self, name: str, block: Block, *, known: bool) -> _ReadBack:
        """Read one block of an array as it is stored; with `known`, its objects must also match the index."""
        contents: dict[str, bytes] = {}
        entries: Entries = {}
        damages: list[Damage] = []
        indexed = self._index.known(name, block) if known and self._index else None
        for number, (key, size) in enumerate(self._layout.objects(name, block).items()):
            try:
                content = self._storage.get(key, size)
                if len(content) != size:
                    raise CacheDamaged(f"expected {size} bytes, got {len(content)}")
                entry = (size, self._layout.checksum(key, content))
                if indexed and indexed[number] != entry[1]:
                    raise CacheDamaged("not the block that was written")
                contents[key], entries[key] = content, entry
            except (FileNotFoundError, CacheDamaged, ObjectRefused) as error:
                damages.append(Damage(key, name, block, str(error)))
        if damages:
            return _ReadBack(None, entries, damages)
        try:
            return _ReadBack(self._layout.unpack(name, block, contents), entries, [])
        except CacheDamaged as error:
            return _ReadBack(None, {}, [Damage(key, name, block, str(error)) for key in contents])

    def _bound(self, name: str, parts: Mapping[str, Array]) -> Bound:
        codec = self.manifest.signals[name].codec
        tail_mass = codec.tail_mass(parts)
        return Bound(
            error=float(codec.errors(parts).max()) + self.manifest.error_before(name),
            tail_mass=None if tail_mass is None else float(tail_mass.max()),
        )


def begin(storage: Storage, store: str, wanted: Manifest) -> Manifest:
    """Make an empty cache, or prepare the existing cache for an extension; return the cache's manifest.

    The cache can then hold what `wanted` describes, besides what it holds already. Raises `CacheMismatch` if the place
    holds other files or a cache that can't be extended by `wanted`. Raises `ConfigError` for an unknown store.
    """
    layout_of(store, wanted)  # an unknown store is refused before anything is read
    existing = find(storage) or _begin_new(storage, store, wanted)
    if existing is None:
        return wanted
    if existing.store != store:
        raise CacheMismatch(
            f"cache at {storage.location}: store expected {existing.store}, as it was begun with, got {store};"
            f" use --set cache.store={existing.store}, or another --out"
        )
    manifest = existing.manifest.extended_by(wanted, storage.location)
    _put_structure(storage, store, manifest)
    return manifest


def _begin_new(storage: Storage, store: str, wanted: Manifest) -> StoredCache | None:
    """Make an empty cache and return None, or return the cache that another run began at the same moment.

    The manifest is written last. A place without a manifest may hold only objects that an interrupted `begin` wrote.
    """
    sizes = storage.sizes()
    if sizes is None:
        raise CacheMismatch(f"cache at {storage.location}: a web server is only read; choose another --out")
    *others, (manifest_key, manifest) = layout_of(store, wanted).structure().items()
    foreign = sorted(key for key in sizes if key not in dict(others) and not key.endswith(".partial"))
    if not foreign:
        for key, content in others:
            if key in sizes or not storage.put(key, content, replace=False):
                _put_if_changed(storage, key, content)
        if storage.put(manifest_key, manifest, replace=False):
            return None
    existing = find(storage)
    if existing is None and foreign:
        raise CacheMismatch(
            f"cache at {storage.location}: expected an empty folder or a dhkd cache, found {foreign[0]};"
            f" choose another --out"
        )
    if existing is None:
        raise CacheMismatch(
            f"cache at {storage.location}: another run began it just now, and it is gone; run the same command again"
        )
    return existing


def _put_structure(storage: Storage, store: str, manifest: Manifest) -> dict[str, int]:
    """Write those metadata objects that are missing or differ; return the crc32c of every metadata object, by key.

    The manifest is written first, because the new manifest explains both old and new versions of the other objects.
    """
    *others, head = layout_of(store, manifest).structure().items()
    return {key: _put_if_changed(storage, key, content) for key, content in [head, *others]}


def _put_if_changed(storage: Storage, key: str, content: bytes) -> int:
    """Write an object unless it has this content already; return its crc32c."""
    try:
        existing = storage.get(key)
    except FileNotFoundError:
        existing = None
    if existing != content:
        storage.put(key, content, replace=True)
    return int(crc32c(content))
