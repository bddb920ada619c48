"""The stores by name, and what a place holds: no cache, one under way, a complete one, or one being extended."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from dhkd.data.cache import version_1
from dhkd.data.cache.index import INDEX_KEY, Index
from dhkd.data.cache.layouts import tar_shards as tar_layout
from dhkd.data.cache.layouts import zarr_chunks as zarr_layout
from dhkd.data.cache.layouts.base import Layout
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.storage.base import Storage
from dhkd.data.errors import CacheDamaged, CacheMismatch, DhkdError, one_of

LAYOUTS: dict[str, Callable[[Manifest], Layout]] = {
    "zarr": zarr_layout.ZarrLayout,
    "webdataset": tar_layout.TarLayout,
}
_HEADS: dict[str, ModuleType] = {"zarr": zarr_layout, "webdataset": tar_layout}


@dataclass(frozen=True)
class Found:
    """A cache: what it is to be, and the index of what is complete of it, if anything is."""

    store: str
    manifest: Manifest
    index: Index | None


def layout_of(store: str, manifest: Manifest) -> Layout:
    """How the store lays this cache out."""
    return one_of("store", store, LAYOUTS)(manifest)


def find(storage: Storage) -> Found | None:
    """The cache at a place; None where there is none.

    The index tells the truth about what is complete; the manifest beside it may promise more, which then is under way.
    Raises `CacheDamaged` for an index that isn't as it was written, or where neither can be read.
    """
    index = read_index(storage)
    try:
        head = _head(storage)
    except DhkdError:
        if index is None:
            raise
        head = None  # the index knows all that it knew
    if index is None:
        return head
    if head and head.store == index.store and _extends(head.manifest, index.manifest):
        return Found(index.store, head.manifest, index)
    return Found(index.store, index.manifest, index)


def read_index(storage: Storage) -> Index | None:
    """The index of what is complete; None where nothing is."""
    try:
        content = storage.get(INDEX_KEY)
    except FileNotFoundError:
        return None
    old = version_1.read(storage, content)
    return old or Index.from_bytes(content, storage.location)


def _head(storage: Storage) -> Found | None:
    for store, module in _HEADS.items():
        try:
            content = storage.get(module.MANIFEST_KEY)
        except FileNotFoundError:
            continue
        try:
            tree = module.manifest_tree(content)
        except (ValueError, RecursionError) as error:
            raise CacheDamaged(
                f"cache at {storage.location}: {module.MANIFEST_KEY} is damaged; restore it, or rebuild the cache"
            ) from error
        if tree is not None:
            return Found(store, Manifest.from_json(tree, f"cache at {storage.location}"), None)
    return None


def _extends(head: Manifest, complete: Manifest) -> bool:
    """Whether `head` promises all that is complete, and perhaps more."""
    try:
        return complete.extended_by(head, "") == head
    except CacheMismatch:
        return False
