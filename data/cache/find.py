"""What a place (a path or URL) holds: no cache, an unfinished one, a complete one, or one that is being extended."""

from dataclasses import dataclass

from dhkd.data.cache.index import INDEX_KEY, LARGEST_INDEX, Index
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.data.cache.manifest import Manifest
from dhkd.data.errors import CacheDamaged, CacheMismatch, DhkdError
from dhkd.data.storage.base import Storage


@dataclass(frozen=True)
class StoredCache:
    """A cache at a place.

    `store` is the name of the cache's layout, e.g. zarr. `manifest` describes the cache as it will be when it is
    finished. `index` lists what is complete so far; it is None while nothing is complete.
    """

    store: str
    manifest: Manifest
    index: Index | None


def find(storage: Storage) -> StoredCache | None:
    """Find the cache at a place; return None if there is no cache.

    The index lists what is complete. While a cache is being extended, the manifest object beside the index may describe
    more views or signals, and the result then has that manifest. Raises `CacheMismatch` for another format version.
    Raises `CacheDamaged` if the index is not as it was written, or if there is no index and the manifest can't be read.
    """
    index = read_index(storage)
    try:
        promised = _promised(storage)
    except DhkdError:
        if index is None:
            raise
        promised = None  # the index's copy of the manifest is used instead
    if index is None:
        return promised
    if promised and promised.store == index.store and _extends(promised.manifest, index.manifest):
        return StoredCache(index.store, promised.manifest, index)
    return StoredCache(index.store, index.manifest, index)


def read_index(storage: Storage) -> Index | None:
    """Read the index of what is complete; return None if nothing is complete."""
    try:
        content = storage.get(INDEX_KEY, LARGEST_INDEX)
    except FileNotFoundError:
        return None
    return Index.from_bytes(content, storage.location)


def _promised(storage: Storage) -> StoredCache | None:
    """Return the cache as its manifest object describes it, or None if no layout recognises a manifest object."""
    for store, layout in LAYOUTS.items():
        try:
            content = storage.get(layout.manifest_key, LARGEST_INDEX)
        except FileNotFoundError:
            continue
        try:
            tree = layout.manifest_tree(content)
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CacheDamaged(
                f"cache at {storage.location}: {layout.manifest_key} is damaged ({reason}); restore it, or rebuild the"
                f" cache"
            ) from error
        if tree is not None:
            return StoredCache(store, Manifest.from_json(tree, f"cache at {storage.location}"), None)
    return None


def _extends(promised: Manifest, complete: Manifest) -> bool:
    """Return whether `promised` has everything that `complete` has, and perhaps more."""
    try:
        return complete.extended_by(promised, "") == promised
    except CacheMismatch:
        return False
