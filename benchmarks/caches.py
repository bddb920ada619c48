"""Caches of random values to be timed: what the values are has no influence on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from dhkd.data.cache.blocks import WITNESS, Block
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.storage.places import storage_of
from dhkd.data.cache.writer import LogitWriter, begin


def manifest_of(
    num_views: int,
    num_samples: int,
    num_classes: int,
    block_rows: int,
    codec: Mapping[str, Any] | None = None,
    signals: Mapping[str, tuple[int, ...]] | None = None,
) -> Manifest:
    """A manifest of logits, or of `signals` with the shape of a row of each, in this codec, by default float16."""
    dataset = {
        "name": "random",
        "split": "train",
        "num_samples": num_samples,
        "num_classes": num_classes,
        "fingerprint": "",
    }
    stored = {"teacher": {}, "precision": "float32", "codec": codec or {"kind": "float16"}}
    rows = signals or {"logits": (num_classes,)}
    said = {name: {**stored, "row": row} for name, row in rows.items()}
    tree = {
        "format": 2,
        "identity": {"dataset": dataset, "recipe": {}, "signals": said},
        "provenance": {},
        "num_views": num_views,
        "block_rows": block_rows,
    }
    return Manifest.from_json(tree, "benchmark")


def writer_at(path: Path, manifest: Manifest, store: str = "zarr") -> LogitWriter:
    """A writer of a cache that is begun where it isn't there."""
    storage = storage_of(path)
    return LogitWriter(storage, store, begin(storage, store, manifest), manifest.signals)


def rows_of(writer: LogitWriter) -> dict[str, np.ndarray[Any, Any]]:
    """As many random rows as a block has at most."""
    rows, generator = writer.plan.block_rows, np.random.default_rng(0)
    values = {
        # Features are small, so that losses whose weights expect that don't diverge.
        name: (3.5 if name == "logits" else 0.1) * generator.standard_normal((rows, *signal.row), dtype=np.float32)
        for name, signal in writer.manifest.signals.items()
    }
    return {**values, WITNESS: np.zeros(rows, dtype=np.uint32)}


def write(writer: LogitWriter, blocks: list[Block]) -> None:
    """Put these blocks."""
    rows = rows_of(writer)
    for block in blocks:
        writer.write(block, {name: values[: len(block)] for name, values in rows.items()})


def complete_cache(path: Path, manifest: Manifest, store: str = "zarr") -> Path:
    """A complete cache at `path`."""
    writer = writer_at(path, manifest, store)
    write(writer, writer.plan.blocks())
    assert not writer.complete(set())
    return path
