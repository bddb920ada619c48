"""A byte of a small cache that is changed at random is noticed, or has no influence on what is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dhkd.data.cache.blocks import WITNESS
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.errors import CacheDamaged, CacheIncomplete, CacheMismatch

from tests.caches import complete, damages_of, manifest_of, writer_at

SAMPLES, CLASSES, VIEWS, BLOCK_ROWS = 10, 4, 2, 4
Noticed = (CacheDamaged, CacheIncomplete, CacheMismatch)


def write(path: Path, store: str, codec: str) -> None:
    writer = writer_at(path, manifest_of(SAMPLES, CLASSES, VIEWS, BLOCK_ROWS, codec), store)
    rng = np.random.default_rng(0)
    for block in writer.missing():
        logits = 4 * rng.standard_normal((len(block), CLASSES), dtype=np.float32)
        writer.write(block, {"logits": logits, WITNESS: rng.integers(2**32, size=len(block), dtype=np.uint32)})
    complete(writer)


def all_that_is_read(reader: LogitReader) -> list[Any]:
    """Everything that dhkd reads from a cache."""
    return [
        reader.manifest.to_json(),
        reader.bound("logits"),
        *(reader.read_view(view).tobytes() for view in range(reader.plan.num_views)),
        *(reader.witness(block).tobytes() for block in reader.plan.blocks()),
    ]


def noticed_by_verify(path: Path) -> bool:
    try:
        return bool(damages_of(open_cache(path)))
    except Noticed:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["float16", "int8"])
@pytest.mark.parametrize("store", ["zarr", "webdataset"])
@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_flipped_byte_is_noticed_or_changes_nothing(store: str, codec: str, flips: int, tmp_path: Path) -> None:
    path = tmp_path / "c"
    write(path, store, codec)
    before = all_that_is_read(open_cache(path))
    assert not noticed_by_verify(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    assert {"index.json"} < {file.name for file in files}
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(1)
    # Half of them anywhere, half in a file that is drawn first: otherwise the largest would get nearly all.
    anywhere = rng.integers(sizes.sum(), size=flips // 2)
    chosen = np.searchsorted(np.cumsum(sizes), anywhere, side="right")
    chosen = np.concatenate([chosen, rng.integers(len(files), size=flips - len(chosen))])
    unnoticed, seen = [], list[str]()
    for number in chosen.tolist():
        file = files[number]
        good = file.read_bytes()
        position, change = int(rng.integers(len(good))), int(rng.integers(1, 256))
        file.write_bytes(good[:position] + bytes([good[position] ^ change]) + good[position + 1 :])
        noticed = noticed_by_verify(path)
        try:
            got = all_that_is_read(open_cache(path))
        except Noticed as error:
            seen.append(str(error))
            if not noticed:
                pytest.fail(f"verify did not notice what reading does: {error}")
        else:
            assert got == before, f"{file}, byte {position}: other values are read"
        if not noticed:
            unnoticed.append((file.name, chr(good[position]), chr(good[position] ^ change)))
        file.write_bytes(good)
    assert not any("\n" in line for line in seen)
    # White space in JSON replaced by other white space: the tree is the same, and the checksum is of the tree.
    assert all(name == "index.json" and f"{old}{new}".isspace() for name, old, new in unnoticed), unnoticed
    assert all_that_is_read(open_cache(path)) == before
