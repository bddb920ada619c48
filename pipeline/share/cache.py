"""Sharing a cache: the same blocks in a folder, with a manifest that says nothing of this machine."""

import logging
from pathlib import Path

from dhkd.data.cache.find import find
from dhkd.data.cache.index import INDEX_KEY
from dhkd.data.cache.layouts import LAYOUTS, layout_of
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import ConfigError, one_of
from dhkd.data.storage.folder import Folder
from dhkd.data.strict_json import canonical
from dhkd.pipeline.results import Shared
from dhkd.pipeline.share.cache_card import cache_card
from dhkd.pipeline.share.folder import (
    MOST_FILES,
    NOT_OURS,
    OF_EVERY_FOLDER,
    Sharing,
    finish,
    require_entries,
    require_number,
    require_ours,
)
from dhkd.pipeline.share.private import changed, public, require_public
from dhkd.stages.cache.convert import convert_blocks

log = logging.getLogger("dhkd")

LARGE = {"zarr": ("signals/**/c/**", "witness/c/**"), "webdataset": ("*.tar",)}  # by store; patterns of git


def share_cache(source: str, folder: Path, options: Sharing) -> Shared:
    """Write the complete cache at a path or URL into the folder, or continue to; every block is checked.

    Raises `CacheIncomplete` or `CacheDamaged` for a cache that is not as it should be, and `ConfigError` for a folder
    that holds something else and for a cache that can't be shared.
    """
    reader = open_cache(source)
    store = options.store or reader.store
    one_of("store", store, LAYOUTS)
    manifest, left_out = _public_manifest(reader, options)
    require_number(_number_of(store, manifest), _remedy(store, manifest))
    keys = _keys(store, manifest)
    require_entries(keys, _remedy(store, manifest))
    require_ours(folder, keys)
    storage = _CacheInFolder(folder)
    _require_same(storage, store, manifest)
    begin(storage, store, manifest)
    convert_blocks(reader, LogitWriter(storage, store, manifest, manifest.signals))
    shared = open_cache(folder)
    sizes = finish(folder, cache_card(shared), LARGE.get(store, ("**",)), options)
    return Shared(
        kind="cache",
        folder=str(folder),
        store=store,
        digest=manifest.digest,
        files=len(sizes),
        bytes=sum(sizes.values()),
        left_out=left_out,
    )


class _CacheInFolder(Folder):
    """A cache in a folder in which the card, and what git keeps there, are none of its objects."""

    def sizes(self) -> dict[str, int]:
        """Return every object's size, by key."""
        sizes = super().sizes()
        return {key: sizes[key] for key in sizes if key not in OF_EVERY_FOLDER and not key.startswith(NOT_OURS)}


def _public_manifest(reader: LogitReader, options: Sharing) -> tuple[Manifest, list[str]]:
    """Return the manifest without anything private, and where its provenance was shortened.

    The identity can't be changed, since it would be another cache's.
    """
    tree = reader.manifest.to_json()
    for key in changed(tree["identity"], public(tree["identity"])):
        raise ConfigError(
            f"cache at {reader.location}: identity.{key}: expected nothing of this machine, got a path; it is part of"
            f" what the cache is, so make the cache again with names and relative paths"
        )
    provenance = public(tree["provenance"])
    left_out = changed(tree["provenance"], provenance, "provenance")
    manifest = Manifest.model_validate({**tree, "provenance": provenance})
    text = canonical(manifest.to_json()).decode()
    require_public(f"cache at {reader.location}, manifest", text, allow_names=options.allow_names)
    return manifest, left_out


def _keys(store: str, manifest: Manifest) -> set[str]:
    """Return the keys of all objects of the cache in this store."""
    layout = layout_of(store, manifest)
    blocks = {key for block in manifest.plan.blocks() for name in manifest.names for key in layout.objects(name, block)}
    return {*layout.structure(), INDEX_KEY, *blocks}


def _number_of(store: str, manifest: Manifest) -> int:
    """Return how many objects the cache's blocks take in this store."""
    objects = sum(LAYOUTS[store].objects_per_block(len(manifest.parts(name))) for name in manifest.names)
    return objects * manifest.plan.num_blocks


def _remedy(store: str, manifest: Manifest) -> str:
    """Return how the cache could be shared in fewer files."""
    number, fewest = min((_number_of(other, manifest), other) for other in LAYOUTS)
    if number < min(MOST_FILES, _number_of(store, manifest)):
        return f"say --store {fewest}, which needs {number:,}"
    return "cache the teacher with larger blocks (cache.block_mb) or fewer views"


def _require_same(storage: Folder, store: str, manifest: Manifest) -> None:
    """Raise `ConfigError` if the folder holds another cache than this one, or one with more views."""
    existing = find(storage)
    if existing is None:
        return
    got = existing.manifest
    same = (existing.store, got.identity, got.provenance, got.block_rows)
    if same != (store, manifest.identity, manifest.provenance, manifest.block_rows) or (
        got.num_views > manifest.num_views
    ):
        raise ConfigError(
            f"{storage.location}: expected a new or empty folder, or one that 'dhkd share' made of this cache, found"
            f" another cache ({existing.store}, {got.digest[:12]}…, {got.num_views} views); choose another folder"
        )
