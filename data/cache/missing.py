"""Which blocks of a cache are missing, by the sizes of its objects, without reading them."""

from collections.abc import Mapping, Sequence

from dhkd.data.cache.blocks import Block, Plan
from dhkd.data.cache.find import StoredCache
from dhkd.data.cache.layouts import layout_of
from dhkd.data.cache.layouts.base import Layout
from dhkd.data.cache.manifest import Manifest
from dhkd.data.storage.base import Storage


def progress_of(storage: Storage, unfinished: StoredCache) -> str:
    """Describe how much of an unfinished cache exists."""
    sizes = storage.sizes()
    if sizes is None:
        return "it was never finished"
    manifest = unfinished.manifest
    missing = _missing(layout_of(unfinished.store, manifest), manifest.plan, manifest.names, sizes)
    if not missing:
        total = manifest.plan.num_views * manifest.plan.blocks_per_view
        return f"it was never finished, though all {total} blocks are there"
    return how_many_exist(manifest.plan, missing)


def how_many_exist(plan: Plan, missing: Sequence[Block]) -> str:
    """Say how many of a plan's blocks exist, and which is the first of the `missing` ones, of which there are some."""
    total = plan.num_views * plan.blocks_per_view
    return f"{total - len(missing)} of {total} blocks are there, the first missing is {missing[0]}"


def missing_blocks(storage: Storage, store: str, manifest: Manifest, names: Sequence[str]) -> list[Block]:
    """Return the blocks for which an object of the arrays `names` is absent or has the wrong size.

    The storage must be able to list its objects.
    """
    sizes = storage.sizes()
    assert sizes is not None
    return _missing(layout_of(store, manifest), manifest.plan, names, sizes)


def _missing(layout: Layout, plan: Plan, names: Sequence[str], sizes: Mapping[str, int]) -> list[Block]:
    return [
        block
        for block in plan.blocks()
        if any(sizes.get(key) != size for name in names for key, size in layout.objects(name, block).items())
    ]
