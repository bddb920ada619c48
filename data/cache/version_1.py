"""Caches of format version 1: read as what they mean today, never written.

They were Zarr alone, with one teacher for all signals, and an index that named chunks and not the manifest.
"""

import json
import zlib
from typing import Any

from dhkd.data.cache.index import Index
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.storage.base import Storage
from dhkd.data.errors import CacheDamaged
from pydantic import ValidationError


def read(storage: Storage, index: bytes) -> Index | None:
    """The index of a complete cache of version 1; None where it is one of another version, or none at all.

    Raises `CacheDamaged` where the manifest or an array's metadata were changed since.
    """
    try:
        tree: Any = json.loads(index)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, dict) or set(tree) != {"structure", "chunks"}:
        return None
    try:
        for key, checksum in tree["structure"].items():
            if zlib.crc32(storage.get(key)) != checksum:
                raise ValueError(f"{key} was changed after the cache was finished")
        old = json.loads(storage.get("zarr.json"))["attributes"]["dhkd"]
        if old["format"] != 1:
            raise ValueError(f"a manifest of version {old['format']}")
        return Index(
            store="zarr",
            manifest=Manifest.model_validate(_manifest(old)),
            structure={},
            objects=tree["chunks"],
            bounds={},
            version=1,
        )
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CacheDamaged(f"cache at {storage.location}: {reason}; rebuild it with 'dhkd cache-teacher'") from error


def _manifest(old: dict[str, Any]) -> dict[str, Any]:
    """The manifest as version 2 puts it."""
    identity = old["identity"]
    shared = {"teacher": identity["teacher"], "precision": identity["precision"]}
    signals = {
        name: {**shared, "codec": {"kind": signal["dtype"]}, "row": signal["row"]}
        for name, signal in identity["signals"].items()
    }
    return {
        "format": 2,
        "identity": {"dataset": identity["dataset"], "recipe": identity["recipe"], "signals": signals},
        "provenance": dict.fromkeys(signals, old["provenance"]),
        "num_views": old["num_views"],
        "block_rows": old["block_rows"],
    }
