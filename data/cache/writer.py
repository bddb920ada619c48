"""Writing a cache: any number of processes and machines put blocks into it, in any order, each block whole.

The objects that exist are the journal of what is done. An object that exists is never overwritten unless it has the
wrong size, so that two who compute the same block agree on the first one's. When nothing is missing, everything is read
back, checked and indexed; only the index makes a cache complete.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from dhkd.data.cache import codecs
from dhkd.data.cache.blocks import WITNESS, Array, Block, Plan
from dhkd.data.cache.codecs import TopK
from dhkd.data.cache.index import INDEX_KEY, Bound, Index
from dhkd.data.cache.manifest import FORMAT_VERSION, Manifest
from dhkd.data.cache.reader import AGAIN, Damage, missing_blocks
from dhkd.data.cache.storage.base import Storage, each
from dhkd.data.cache.stores import find, layout_of
from dhkd.data.errors import CacheDamaged, CacheIncomplete, CacheMismatch
from google_crc32c import value as crc32c
from numpy.typing import NDArray

Entries = dict[str, tuple[int, int]]  # objects' sizes and checksums, by key


@dataclass(frozen=True)
class Checked:
    """What reading blocks back found: objects for the index, bounds of signals, and what is damaged."""

    objects: Mapping[str, tuple[int, int]]
    bounds: Sequence[tuple[str, Bound]]
    damages: Sequence[Damage]


class LogitWriter:
    """Puts the blocks of some signals, and the witness, into a cache that `begin` made."""

    def __init__(self, storage: Storage, store: str, manifest: Manifest, signals: Iterable[str]) -> None:
        self.manifest: Manifest = manifest
        self.plan: Plan = manifest.plan
        self.signals = list(signals)
        self._storage, self._store = storage, store
        self._layout = layout_of(store, manifest)
        found = find(storage)
        self._known: Mapping[str, tuple[int, int]] = found.index.objects if found and found.index else {}

    @property
    def location(self) -> str:
        """The path or URL of the cache."""
        return self._storage.location

    def missing(self) -> list[Block]:
        """The blocks that lack something of these signals or the witness, by listing what is stored."""
        return missing_blocks(self._storage, self._store, self.manifest, [*self.signals, WITNESS])

    def missing_of_others(self) -> list[Block]:
        """The blocks that lack something that this writer doesn't write: another teacher's signals."""
        others = [name for name in self.manifest.signals if name not in self.signals]
        return missing_blocks(self._storage, self._store, self.manifest, others) if others else []

    def has(self, block: Block) -> bool:
        """Whether the block has been written meanwhile, by whomever."""
        return all(
            self._storage.size(key) == size
            for name in [*self.signals, WITNESS]
            for key, size in self._layout.objects(name, block).items()
        )

    def write(self, block: Block, rows: Mapping[str, NDArray[np.generic]]) -> bool:
        """Put one block: every signal, float (rows, …), and the witness, uint32 (rows,). Durable on return.

        False where others had put all of it before. Raises `NonFiniteLoss` for values that can't be stored and
        `CacheMismatch` where a witness that is there differs: these are other pixels than those that were cached.
        """
        assert set(rows) == {*self.signals, WITNESS}
        self._compare_witness(block, rows[WITNESS])
        put = False
        for name, values in rows.items():
            assert len(values) == len(block)
            put |= self.put(block, name, self._parts(name, block, values))
        return put

    def put(self, block: Block, name: str, parts: Mapping[str, Array]) -> bool:
        """Put one block of a signal or of the witness that is encoded already; False where all of it was there."""
        put = False
        for key, content in self._layout.pack(name, block, parts).items():
            wrong_size = self._storage.size(key) not in (-1, len(content))
            put |= self._storage.put(key, content, replace=wrong_size)
        return put

    def check(self, blocks: Iterable[Block], written: set[Block]) -> Checked:
        """Read blocks back. An object is damaged where it contradicts itself or, but for those of `written`, the index.

        Raises `CacheDamaged` where that is another teacher's, whose signals this writer can't replace.
        """
        objects: Entries = {}
        bounds: dict[str, Bound] = {}
        damages: list[Damage] = []

        def looked_at(place: tuple[Block, str]) -> tuple[str, Bound | None, Entries, list[Damage]]:
            block, name = place
            parts, entries, found = self._read(name, block, known=block not in written)
            bound = self._bound(name, parts) if name != WITNESS and parts is not None else None
            return name, bound, entries, found

        places = ((block, name) for block in blocks for name in self.manifest.names)
        for name, bound, entries, found in each(looked_at, places, self._storage.streams):
            if found and name in self.manifest.signals and name not in self.signals:
                raise CacheDamaged(
                    f"cache at {self.location}: {found[0]}; run 'dhkd cache-teacher' with the teacher of {name}"
                )
            objects |= entries
            damages += found
            if bound is not None:
                bounds[name] = _worse(bounds.get(name), bound)
        return Checked(objects, list(bounds.items()), damages)

    def complete(self, written: set[Block]) -> Sequence[Damage]:
        """Check everything and finish; or remove what is damaged, and say what that was."""
        checked = self.check(self.plan.blocks(), written)
        if not checked.damages:
            self.finish([checked])
        self.discard(checked.damages)
        return checked.damages

    def discard(self, damages: Iterable[Damage]) -> None:
        """Remove damaged objects, which makes their blocks missing."""
        for damage in damages:
            self._storage.delete(damage.key)

    def finish(self, checked: Sequence[Checked]) -> None:
        """Write the index, which makes the cache complete; raises `CacheIncomplete` when an object is missing."""
        objects = {key: entry for part in checked for key, entry in part.objects.items()}
        for block in self.plan.blocks():
            for name in self.manifest.names:
                for key in self._layout.objects(name, block):
                    if key not in objects:
                        raise CacheIncomplete(f"cache at {self.location}: {key} ({block}) is missing; {AGAIN}")
        bounds: dict[str, Bound] = {}
        for part in checked:
            for name, bound in part.bounds:
                bounds[name] = _worse(bounds.get(name), bound)
        structure = put_structure(self._storage, self._store, self.manifest)
        index = Index(store=self._store, manifest=self.manifest, structure=structure, objects=objects, bounds=bounds)
        _put_changed(self._storage, INDEX_KEY, index.to_bytes())

    def _parts(self, name: str, block: Block, values: NDArray[np.generic]) -> dict[str, Array]:
        if name == WITNESS:
            return {"": values.astype(np.uint32, copy=False)}
        return codecs.encode(self.manifest.signals[name].codec, name, block, values.astype(np.float32, copy=False))

    def _compare_witness(self, block: Block, witness: NDArray[np.generic]) -> None:
        parts, _, _ = self._read(WITNESS, block, known=True)
        if parts is None:  # missing, or to be found damaged at the end
            return
        wrong = np.flatnonzero(parts[""] != witness)
        if len(wrong):
            raise CacheMismatch(
                f"cache at {self.location}: pixels differ from those that are cached: {len(wrong)} of {len(block)} rows"
                f" in {block}, first at index {block.start + int(wrong[0])}; the data set, the recipe or a library has"
                f" changed since the cache was begun; write this one to another --out"
            )

    def _read(self, name: str, block: Block, *, known: bool) -> tuple[dict[str, Array] | None, Entries, list[Damage]]:
        """A stored block, None unless all of it is good; its objects' sizes and checksums; what is wrong with them."""
        contents: dict[str, bytes] = {}
        entries: Entries = {}
        damages: list[Damage] = []
        for key, size in self._layout.objects(name, block).items():
            try:
                content = self._storage.get(key)
                if len(content) != size:
                    raise CacheDamaged(f"expected {size} bytes, got {len(content)}")
                entry = (size, self._layout.checksum(key, content))
                if known and self._known.get(key, entry) != entry:
                    raise CacheDamaged("not the block that was written")
                contents[key], entries[key] = content, entry
            except (FileNotFoundError, CacheDamaged) as error:
                damages.append(Damage(key, name, block, str(error)))
        if damages:
            return None, entries, damages
        try:
            return self._layout.unpack(name, block, contents), entries, []
        except CacheDamaged as error:
            return None, {}, [Damage(key, name, block, str(error)) for key in contents]

    def _bound(self, name: str, parts: Mapping[str, Array]) -> Bound:
        signal = self.manifest.signals[name]
        error = float(signal.codec.errors(parts).max()) + self.manifest.error_before(name)
        mass = float(signal.codec.tail_mass(parts).max()) if isinstance(signal.codec, TopK) else None
        return Bound(error=error, tail_mass=mass)


def begin(storage: Storage, store: str, wanted: Manifest) -> Manifest:
    """Make an empty cache, or make the one that is there ready to hold what is wanted as well; its manifest.

    Raises `CacheMismatch` when another cache, or anything else, is there.
    """
    found = find(storage)
    if found is None:
        if _begun(storage, store, wanted):
            return wanted
        found = find(storage)
    if found is None:
        raise CacheMismatch(
            f"cache at {storage.location}: another run began it just now, and it is gone; run the same command again"
        )
    if found.index and found.index.version != FORMAT_VERSION:
        raise CacheMismatch(
            f"cache at {storage.location}: format version expected {FORMAT_VERSION}, got {found.index.version},"
            f" which is only read; 'dhkd convert' makes a new one of it"
        )
    if found.store != store:
        raise CacheMismatch(
            f"cache at {storage.location}: store expected {found.store}, as it was begun with, got {store};"
            f" use --set cache.store={found.store}, or another --out"
        )
    manifest = found.manifest.extended_by(wanted, storage.location)
    put_structure(storage, store, manifest)
    return manifest


def put_structure(storage: Storage, store: str, manifest: Manifest) -> dict[str, int]:
    """Put what isn't there of the objects beside the blocks of a cache that was begun; the crc32c of each.

    The manifest comes first: it explains the others, of which each may still be the old one or already the new.
    """
    *others, head = layout_of(store, manifest).structure().items()
    return {key: _put_changed(storage, key, content) for key, content in [head, *others]}


def _begun(storage: Storage, store: str, wanted: Manifest) -> bool:
    """Make an empty cache; False where another run began one at the same time, whose manifest then holds.

    The manifest comes last: without it there may be what an interrupted beginning left, and nothing else.
    """
    sizes = storage.sizes()
    if sizes is None:
        raise CacheMismatch(f"cache at {storage.location}: a web server is only read; choose another --out")
    *others, (head, manifest) = layout_of(store, wanted).structure().items()
    foreign = sorted(key for key in sizes if key not in dict(others) and not key.endswith(".partial"))
    if foreign and find(storage) is None:
        raise CacheMismatch(
            f"cache at {storage.location}: expected an empty folder or a dhkd cache, found {foreign[0]};"
            f" choose another --out"
        )
    if foreign:
        return False
    for key, content in others:
        _put_changed(storage, key, content)
    return storage.put(head, manifest, replace=False)


def _put_changed(storage: Storage, key: str, content: bytes) -> int:
    """Put an object unless it is there as it should be; its crc32c."""
    try:
        there = storage.get(key)
    except FileNotFoundError:
        there = None
    if there != content:
        storage.put(key, content, replace=True)
    return int(crc32c(content))


def _worse(one: Bound | None, other: Bound) -> Bound:
    if one is None:
        return other
    masses = [bound.tail_mass for bound in (one, other) if bound.tail_mass is not None]
    return Bound(error=max(one.error, other.error), tail_mass=max(masses) if masses else None)
