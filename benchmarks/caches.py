"""Caches of random values for timing, which doesn't depend on the values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from dhkd.data.cache.blocks import WITNESS, Array, Block
from dhkd.data.cache.codecs import AnyCodec, Float
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.storage.places import storage_of

FLOAT16 = Float("float16")


def manifest_of(
    num_views: int,
    num_samples: int,
    num_classes: int,
    block_rows: int,
    codec: AnyCodec = FLOAT16,
    signals: Mapping[str, tuple[int, ...]] | None = None,
) -> Manifest:
    """Build a cache manifest for logits, or for `signals` (teacher outputs), which maps each name to its row shape."""
    dataset = {
        "name": "random",
        "split": "train",
        "num_samples": num_samples,
        "num_classes": num_classes,
        "fingerprint": "",
    }
    stored = {"teacher": {}, "precision": "float32", "codec": asdict(codec)}
    rows = signals or {"logits": (num_classes,)}
    tree = {
        "format": 2,
        "identity": {
            "dataset": dataset,
            "recipe": {},
            "signals": {name: {**stored, "row": row} for name, row in rows.items()},
        },
        "provenance": {},
        "num_views": num_views,
        "block_rows": block_rows,
    }
    return Manifest.from_json(tree, "benchmark")


def writer_at(path: Path, manifest: Manifest, store: str = "zarr") -> LogitWriter:
    """Open a writer of the cache at `path`; create the cache if it doesn't exist."""
    storage = storage_of(path)
    return LogitWriter(storage, store, begin(storage, store, manifest), manifest.signals)


def rows_of(writer: LogitWriter) -> dict[str, Array]:
    """Draw random rows for the largest block (a run of consecutive samples of one view, the unit of storage)."""
    rows, generator = writer.plan.block_rows, np.random.default_rng(0)
    values = {
        # Features are small, so that losses whose weights are meant for small features don't diverge.
        name: (3.5 if name == "logits" else 0.1) * generator.standard_normal((rows, *signal.row), dtype=np.float32)
        for name, signal in writer.manifest.signals.items()
    }
    return {**values, WITNESS: np.zeros(rows, dtype=np.uint32)}


def write(writer: LogitWriter, blocks: Sequence[Block]) -> None:
    """Write random rows to these blocks."""
    rows = rows_of(writer)
    for block in blocks:
        writer.write(block, {name: values[: len(block)] for name, values in rows.items()})


def complete_cache(path: Path, manifest: Manifest, store: str = "zarr") -> Path:
    """Write a complete cache at `path` and return the path."""
    writer = writer_at(path, manifest, store)
    write(writer, writer.plan.blocks())
    assert not writer.complete(set())
    return path
