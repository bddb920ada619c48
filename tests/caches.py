"""Helpers that build small caches for tests: manifests, writers and readers, in any store and place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dhkd.data.cache.blocks import Block
from dhkd.data.cache.find import read_index
from dhkd.data.cache.index import Index
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import Damage, LogitReader
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import storage_of

IMAGE_BLOCK_ROWS = 10
TEACHER = {"architecture": "resnet8", "sha256": "0" * 64, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def manifest_of(
    samples: int,
    classes: int,
    views: int,
    block_rows: int,
    codec: str | Mapping[str, Any] = "float16",
    *,
    signals: Mapping[str, tuple[str | Mapping[str, Any], tuple[int, ...]]] | None = None,
    seed: int = 0,
    teacher: Mapping[str, Any] = TEACHER,
) -> Manifest:
    """Build a manifest of logits stored with `codec`, or of `signals`: {name: (codec, shape of a row)}."""
    signals = signals or {"logits": (codec, (classes,))}
    tree = {
        "format": 2,
        "identity": {
            "dataset": {
                "name": "random",
                "split": "train",
                "num_samples": samples,
                "num_classes": classes,
                "fingerprint": "f" * 64,
            },
            "recipe": {"kind": "crop-flip", "version": 1, "padding": 1, "flip": True, "seed": seed},
            "signals": {
                name: {
                    "teacher": dict(teacher),
                    "precision": "float32",
                    "codec": {"kind": kind} if isinstance(kind, str) else dict(kind),
                    "row": list(row),
                }
                for name, (kind, row) in signals.items()
            },
        },
        "provenance": {name: {"command": "test"} for name in signals},
        "num_views": views,
        "block_rows": block_rows,
    }
    return Manifest.from_json(tree, "test")


def manifest_of_images(codec: str = "float16", views: int = 2) -> Manifest:
    """Build a manifest of logits of the data set that `make_images` builds, in blocks of `IMAGE_BLOCK_ROWS` rows."""
    return manifest_of(37, 5, views, IMAGE_BLOCK_ROWS, codec)


def writer_at(place: Path | str, manifest: Manifest, store: str = "zarr") -> LogitWriter:
    """Return a writer of all signals of the cache at `place`; a cache that doesn't exist is begun."""
    storage = storage_of(place)
    return LogitWriter(storage, store, begin(storage, store, manifest), manifest.signals)


def opened(place: Path | str) -> tuple[Storage, Index]:
    """Return the storage and the index of the complete cache at `place`, the arguments of `LogitReader`."""
    storage = storage_of(place)
    index = read_index(storage)
    assert index is not None
    return storage, index


def complete(writer: LogitWriter, written: set[Block] | None = None) -> None:
    """Check and finish a cache; fail if any block is damaged."""
    assert not writer.complete(written or set())


def damages_of(reader: LogitReader) -> list[Damage]:
    """Return all damages that a full check of a cache reports."""
    return [result for result in reader.damages() if isinstance(result, Damage)]
