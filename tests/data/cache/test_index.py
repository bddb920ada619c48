"""The index of many objects, which holds packed checksums and no keys."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dhkd.data.cache import index as index_module
from dhkd.data.cache.blocks import WITNESS
from dhkd.data.cache.find import read_index
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import CacheDamaged, CacheMismatch
from dhkd.data.storage.places import storage_of
from dhkd.data.strict_json import canonical
from google_crc32c import value as crc32c

from tests.caches import complete, damages_of, manifest_of, writer_at

STORES = ("zarr", "webdataset")


def write(place: Path, store: str, views: int = 2) -> None:
    writer = writer_at(place, manifest_of(20, 5, views, 6, "int8"), store)
    rows = np.random.default_rng(0).standard_normal((20, 5), dtype=np.float32)
    for block in writer.missing():
        witness = np.arange(block.start, block.stop, dtype=np.uint32)
        writer.write(block, {"logits": rows[block.start : block.stop] + block.view, WITNESS: witness})
    complete(writer)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cache counts as one of many objects."""
    monkeypatch.setattr(index_module, "MOST_LISTED", 0)


@pytest.mark.parametrize("store", STORES)
def test_a_packed_index_says_what_a_listed_one_says(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "listed", store)
    monkeypatch.setattr(index_module, "MOST_LISTED", 0)
    write(tmp_path / "packed", store)
    indices = [read_index(storage_of(tmp_path / name)) for name in ("listed", "packed")]
    listed, packed = [index for index in indices if index is not None]
    assert listed.structure == packed.structure
    assert listed.bounds == packed.bounds
    assert listed.manifest == packed.manifest
    assert listed.num_objects == packed.num_objects
    assert {name: array.tolist() for name, array in listed.checksums.items()} == {
        name: array.tolist() for name, array in packed.checksums.items()
    }
    trees = [json.loads((tmp_path / name / "index.json").read_bytes()) for name in ("listed", "packed")]
    assert [tree["format"] for tree in trees] == [2, 3]
    assert "objects" not in trees[1]["index"]
    assert len(trees[1]["index"]["checksums"]["witness"]) < 100


@pytest.mark.parametrize("store", STORES)
def test_a_large_cache_is_read_extended_and_repaired(store: str, tmp_path: Path, packed: None) -> None:
    write(tmp_path / "c", store)
    before = open_cache(tmp_path / "c").read_view(1)
    write(tmp_path / "c", store, views=3)
    reader = open_cache(tmp_path / "c")
    reader.require_present()
    assert reader.plan.num_views == 3
    assert reader.read_view(1).tolist() == before.tolist()
    assert damages_of(reader) == []
    keys = sorted(
        path
        for path in (tmp_path / "c").rglob("*")
        if path.is_file() and path.suffix != ".json" and {"1", "00001"} & {*path.parts}
    )
    good = keys[0].read_bytes()
    keys[0].write_bytes(keys[1].read_bytes())  # intact, but another block
    assert damages_of(open_cache(tmp_path / "c"))
    writer = writer_at(tmp_path / "c", reader.manifest, store)
    assert writer.complete(set())
    write(tmp_path / "c", store, views=3)
    assert keys[0].read_bytes() == good


def test_a_listed_cache_that_grows_large_gets_a_packed_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "c", "zarr")
    monkeypatch.setattr(index_module, "MOST_LISTED", 0)
    write(tmp_path / "c", "zarr", views=3)
    assert json.loads((tmp_path / "c" / "index.json").read_bytes())["format"] == 3
    assert damages_of(open_cache(tmp_path / "c")) == []


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "too few": lambda body: body["checksums"].update(logits=body["checksums"]["logits"][:-8]),
    "no base64": lambda body: body["checksums"].update(logits="?" * 8),
    "a number": lambda body: body["checksums"].update(logits=5),
    "an array too many": lambda body: body["checksums"].update(x=""),
    "an array too few": lambda body: body["checksums"].pop("witness"),
    "a list": lambda body: body.update(checksums=[]),
    "a list of objects": lambda body: body.update(objects=body.pop("checksums")),
    "many views": lambda body: body["manifest"].update(num_views=50_000),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_packed_index_is_one_line(forgery: str, tmp_path: Path, packed: None) -> None:
    write(tmp_path / "c", "zarr")
    file = tmp_path / "c" / "index.json"
    tree = json.loads(file.read_bytes())
    FORGED[forgery](tree["index"])
    file.write_text(json.dumps({**tree, "crc32c": f"{crc32c(canonical(tree['index'])):08x}"}))
    with pytest.raises(CacheDamaged, match=r"index\.json is damaged") as caught:
        open_cache(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_an_edited_packed_index_is_noticed(tmp_path: Path, packed: None) -> None:
    write(tmp_path / "c", "zarr")
    file = tmp_path / "c" / "index.json"
    tree = json.loads(file.read_bytes())
    packed_text = tree["index"]["checksums"]["witness"]
    tree["index"]["checksums"]["witness"] = packed_text[::-1].lstrip("=")
    file.write_text(json.dumps(tree))
    with pytest.raises(CacheDamaged, match="its checksum is not that of its content"):
        open_cache(tmp_path / "c")


def test_a_version_of_the_future_is_refused(tmp_path: Path, packed: None) -> None:
    write(tmp_path / "c", "zarr")
    file = tmp_path / "c" / "index.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "format": 4}))
    with pytest.raises(CacheMismatch, match="format version expected 2, got 4; use the version of dhkd that wrote it"):
        open_cache(tmp_path / "c")
