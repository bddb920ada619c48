"""Caches in each store as they were once written: they can be read for ever, and are written in the same bytes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import CacheMismatch

from tests.caches import damages_of, writer_at
from tests.golden import rows
from tests.samples import files_of

GOLDEN = Path(__file__).parents[1] / "golden"
FORMAT = Path(__file__).parents[2] / "docs" / "FORMAT.md"
NAMES = list(rows.STORES.values())
STORE_OF = {name: store for store, name in rows.STORES.items()}


@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_once_is_read(name: str) -> None:
    reader = open_cache(GOLDEN / name)
    reader.require_present()
    assert damages_of(reader) == []
    for view in range(rows.VIEWS):
        assert (reader.read_view(view) == rows.logits_of(view)).all()
        witness = np.concatenate([reader.witness(block) for block in reader.plan.blocks_of_view(view)])
        assert (witness == rows.witness_of(view)).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_codec_reads_what_was_written_once(name: str) -> None:
    reader = open_cache(GOLDEN / name)
    for view in range(rows.VIEWS):
        error = reader.bound("b.logits").error
        assert np.abs(reader.read_view(view, "b.logits") - rows.logits_of(view)).max() <= error < 0.01
        assert (reader.read_view(view, "c.logits")[:, 1:] == rows.logits_of(view)[:, 1:]).all(), "the two largest"


@pytest.mark.parametrize("store", rows.STORES)
def test_the_same_bytes_are_written(store: str, tmp_path: Path) -> None:
    rows.write(tmp_path)
    name = rows.STORES[store]
    written, golden = files_of(tmp_path / name), files_of(GOLDEN / name)
    assert written.keys() == golden.keys()
    for key, content in golden.items():
        if key.endswith("zarr.json"):  # zarr's versions lay their JSON out differently
            assert json.loads(written[key]) == json.loads(content), key
        elif key != "index.json":  # which holds the checksums of those
            assert written[key] == content, key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["index.json", "manifest"])
@pytest.mark.parametrize("version", [1, 4, "x"])
def test_another_version_is_refused(name: str, key: str, version: object, tmp_path: Path) -> None:
    manifest = open_cache(GOLDEN / name).manifest
    cache = shutil.copytree(GOLDEN / name, tmp_path / name)
    if key == "manifest":
        (cache / "index.json").unlink()
    file = cache / ("index.json" if key == "index.json" else "zarr.json" if name.endswith("zarr") else "manifest.json")
    tree = json.loads(file.read_text())
    (tree["attributes"]["dhkd"] if file.name == "zarr.json" else tree)["format"] = version
    file.write_text(json.dumps(tree))
    before = files_of(cache)
    message = f"format version expected 2, got {version!r}; use the version of dhkd that wrote it"
    for use in (lambda: open_cache(cache), lambda: writer_at(cache, manifest, STORE_OF[name])):
        with pytest.raises(CacheMismatch, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert files_of(cache) == before


def documented(function: str) -> Callable[..., Any]:
    """A function from a code block of FORMAT.md."""
    blocks = re.findall(r"```python\n(.*?)```", FORMAT.read_text(), re.S)
    (source,) = (text for text in blocks if f"def {function}(" in text)
    assert len(source.strip().splitlines()) <= 12
    assert "dhkd" not in source
    names: dict[str, Any] = {}
    exec(source, names)
    documented_function: Callable[..., Any] = names[function]
    return documented_function


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
