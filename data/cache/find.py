"""What a place holds: no cache, one under way, a complete one, or one that is being extended."""

from dataclasses import dataclass

from dhkd.data.cache.index import INDEX_KEY, Index
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.storage.base import Storage
from dhkd.data.errors import CacheDamaged, CacheMismatch, DhkdError


@dataclass(frozen=True)
class StoredCache:
    """A cache at a place: `manifest` says what it is to hold, `index` what of it is complete, None if nothing is."""

    store: str
    manifest: Manifest
    index: Index | None


def find(storage: Storage) -> StoredCache | None:
    """The cache at a place; None if there is none.

    The index says what is complete. The manifest beside it may promise more, if the cache is being extended.
    Raises `CacheMismatch` for another format version, and `CacheDamaged` if the index is not as it was written, or if
    there is no index and the manifest can't be read.
    """
    index = read_index(storage)
    try:
        promised = _promised(storage)
    except DhkdError:
        if index is None:
            raise
        promised = None  # the index holds a manifest of its own
    if index is None:
        return promised
    if promised and promised.store == index.store and _extends(promised.manifest, index.manifest):
        return StoredCache(index.store, promised.manifest, index)
    return StoredCache(index.store, index.manifest, index)


def read_index(storage: Storage) -> Index | None:
    """The index of what is complete; None if nothing is."""
    try:
        content = storage.get(INDEX_KEY)
    except FileNotFoundError:
        return None
    return Index.from_bytes(content, storage.location)


def _promised(storage: Storage) -> StoredCache | None:
    """The cache as its manifest object describes it; None if no layout finds its own there."""
    for store, layout in LAYOUTS.items():
        try:
            content = storage.get(layout.manifest_key)
        except FileNotFoundError:
            continue
        try:
            tree = layout.manifest_tree(content)
        except (ValueError, RecursionError) as error:
            raise CacheDamaged(
                f"cache at {storage.location}: {layout.manifest_key} is damaged; restore it, or rebuild the cache"
            ) from error
        if tree is not None:
            return StoredCache(store, Manifest.from_json(tree, f"cache at {storage.location}"), None)
    return None


def _extends(promised: Manifest, complete: Manifest) -> bool:
    """Whether `promised` has all that is complete, and perhaps more."""
    try:
        return complete.extended_by(promised, "") == promised
    except CacheMismatch:
        return False
