"""A cache of each version of the format, as it was once written: read for ever, and the newest written the same."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dhkd.data.cache.reader import Damage, LogitReader, open_cache
from dhkd.data.errors import CacheDamaged, CacheMismatch, DhkdError

from tests.caches import writer_at
from tests.golden import rows
from tests.samples import files_of

GOLDEN = Path(__file__).parents[1] / "golden"
FORMAT = Path(__file__).parents[2] / "docs" / "FORMAT.md"
NEWEST = ["version-2.zarr", "version-2-tar"]


def damages_of(reader: LogitReader) -> list[Damage]:
    return [found for found in reader.damages() if isinstance(found, Damage)]


@pytest.mark.parametrize("name", ["version-1.zarr", *NEWEST])
def test_what_was_written_once_is_read(name: str) -> None:
    reader = open_cache(GOLDEN / name)
    reader.require_present()
    assert damages_of(reader) == []
    for view in range(rows.VIEWS):
        assert (reader.read_view(view) == rows.logits_of(view)).all()
        witness = np.concatenate([reader.witness(block) for block in reader.plan.blocks_of_view(view)])
        assert (witness == rows.witness_of(view)).all()


@pytest.mark.parametrize("name", NEWEST)
def test_every_codec_reads_what_was_written_once(name: str) -> None:
    reader = open_cache(GOLDEN / name)
    for view in range(rows.VIEWS):
        bound = reader.bound("b.logits")
        assert bound is not None
        assert np.abs(reader.read_view(view, "b.logits") - rows.logits_of(view)).max() <= bound.error < 0.01
        assert (reader.read_view(view, "c.logits")[:, 1:] == rows.logits_of(view)[:, 1:]).all(), "the two largest"


@pytest.mark.parametrize("store", rows.STORES)
def test_the_newest_version_is_written_to_the_byte(store: str, tmp_path: Path) -> None:
    rows.write(tmp_path)
    name = rows.STORES[store]
    written, golden = files_of(tmp_path / name), files_of(GOLDEN / name)
    assert written.keys() == golden.keys()
    for key, content in golden.items():
        if key.endswith("zarr.json"):  # zarr's versions lay their JSON out differently
            assert json.loads(written[key]) == json.loads(content), key
        elif key != "index.json":  # which holds the checksums of those
            assert written[key] == content, key


def test_version_1_is_not_written_to(tmp_path: Path) -> None:
    old = shutil.copytree(GOLDEN / "version-1.zarr", tmp_path / "old.zarr")
    manifest = open_cache(old).manifest
    with pytest.raises(CacheMismatch, match="format version expected 2, got 1, which is only read; 'dhkd convert'"):
        writer_at(old, manifest)
    assert files_of(old) == files_of(GOLDEN / "version-1.zarr")


def test_changed_metadata_of_version_1_is_noticed(tmp_path: Path) -> None:
    old = shutil.copytree(GOLDEN / "version-1.zarr", tmp_path / "old.zarr")
    metadata = old / "witness" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"little"', '"big"'))
    with pytest.raises(CacheDamaged, match=r"witness/zarr\.json was changed after the cache was finished"):
        open_cache(old)


@pytest.mark.parametrize("name", NEWEST)
@pytest.mark.parametrize("key", ["index.json", "manifest"])
def test_a_newer_version_is_refused(name: str, key: str, tmp_path: Path) -> None:
    newer = shutil.copytree(GOLDEN / name, tmp_path / name)
    if key == "manifest":
        (newer / "index.json").unlink()
    file = newer / ("index.json" if key == "index.json" else "zarr.json" if name.endswith("zarr") else "manifest.json")
    tree = json.loads(file.read_text())
    (tree["attributes"]["dhkd"] if file.name == "zarr.json" else tree)["format"] = 3
    file.write_text(json.dumps(tree))
    with pytest.raises(DhkdError, match="format version expected 2, got 3; use the version of dhkd that wrote it"):
        open_cache(newer)


def documented(function: str) -> Callable[..., Any]:
    """A function that FORMAT.md shows."""
    (source,) = (
        text for text in re.findall(r"```python\n(.*?)```", FORMAT.read_text(), re.S) if f"def {function}(" in text
    )
    assert len(source.strip().splitlines()) <= 12
    assert "dhkd" not in source
    names: dict[str, Any] = {}
    exec(source, names)
    found: Callable[..., Any] = names[function]
    return found


@pytest.mark.parametrize("signal", ["logits", "b.logits"])
def test_ten_lines_of_zarr_and_numpy_read_a_cache(signal: str) -> None:
    path = GOLDEN / "version-2.zarr"
    for view in range(rows.VIEWS):
        got = documented("read")(path, view, [4, 0, 2], signal)
        assert (got == open_cache(path).read(view, [4, 0, 2], signal)).all()


@pytest.mark.parametrize("signal", ["logits", "b.logits"])
def test_a_few_lines_of_webdataset_read_the_shards(signal: str) -> None:
    path = GOLDEN / "version-2-tar"
    read = list(documented("rows")(path, signal))
    assert [tuple(key) for key, _ in read] == [
        (view, index) for view in range(rows.VIEWS) for index in range(rows.SAMPLES)
    ]
    stored = np.stack([row for _, row in read])
    if signal == "logits":
        assert (stored == np.concatenate([rows.logits_of(view) for view in range(rows.VIEWS)])).all()
    else:
        assert stored.dtype == np.int8
