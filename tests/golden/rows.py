"""The rows of the golden caches. `python -P -m tests.golden.rows OUT` writes the caches."""

import sys
from pathlib import Path

import numpy as np
from dhkd.data.cache.blocks import WITNESS, Block

from tests.caches import complete, manifest_of, writer_at

SAMPLES, CLASSES, VIEWS, BLOCK_ROWS = 5, 3, 2, 3
SIGNALS = {
    "logits": ("float16", (CLASSES,)),
    "b.logits": ("int8", (CLASSES,)),
    "c.logits": ({"kind": "top-k", "k": 2, "temperature": 4.0}, (CLASSES,)),
}
STORES = {"zarr": "version-2.zarr", "webdataset": "version-2-tar"}


def logits_of(view: int) -> np.ndarray:
    """Return the logits of a view, float32 (SAMPLES, CLASSES); float16 represents all of them exactly."""
    return (view * 10 + np.arange(SAMPLES)[:, None] + np.arange(CLASSES) / 4).astype(np.float32)


def witness_of(view: int) -> np.ndarray:
    """Return made-up witnesses (checksums of rendered pixels) of a view, uint32 (SAMPLES,)."""
    return (1000 * view + np.arange(SAMPLES)).astype(np.uint32)


def rows_of(block: Block) -> dict[str, np.ndarray]:
    """Return a block's rows of each signal and of the witness."""
    rows = slice(block.start, block.stop)
    return {**{name: logits_of(block.view)[rows] for name in SIGNALS}, WITNESS: witness_of(block.view)[rows]}


def write(folder: Path) -> None:
    """Write the golden caches into `folder`, one for each store."""
    for store, name in STORES.items():
        manifest = manifest_of(SAMPLES, CLASSES, VIEWS, BLOCK_ROWS, signals=SIGNALS)
        writer = writer_at(folder / name, manifest, store)
        for block in writer.missing():
            writer.write(block, rows_of(block))
        complete(writer)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
