"""Manifests and indices with anything in them are refused in one line, or read as what they say."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from dhkd.data.cache.index import Index
from dhkd.data.cache.reader import Damage, open_cache
from dhkd.data.errors import DhkdError
from dhkd.data.strict_json import canonical
from google_crc32c import value as crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.caches import writer_at
from tests.golden.rows import CLASSES, SAMPLES, STORES

GOLDEN = Path(__file__).parents[2] / "golden"
HEADS = {"zarr": "zarr.json", "webdataset": "manifest.json"}

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10),
    st.sampled_from([2**31, 2**63, 10**400, -1, 0, 1.5, float("nan"), float("inf"), 1e400]),
    st.sampled_from(["", "2", "logits", "../../x", "a/b", "\n", "zarr", "float32", "x" * 5000, "\u0000"]),
    st.sampled_from([[], {}, [[]], [1, 2], {"kind": "int8"}, {"kind": "top-k", "k": 99, "temperature": -1}]),
)


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all nodes below the root."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [node for key, child in children for node in [(*path, key), *nodes(child, (*path, key))]]


@st.composite
def mutations(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one to three nodes removed, replaced, renamed, added or nested deeper."""
    mutant = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = nodes(mutant)
        if not places:
            return mutant
        *above, last = draw(st.sampled_from(places))
        parent = mutant
        for key in above:
            parent = parent[key]
        kind = draw(st.sampled_from(["remove", "replace", "rename", "nest", "deep", "add"]))
        if kind == "remove":
            del parent[last]
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["x", "format", "codec", "kind", "row", "a/../b", "witness"]))] = parent.pop(
                last
            )
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["x", "k", "temperature", "logits_scale", "witness"]))] = draw(ODD)
        elif kind == "nest":
            parent[last] = draw(st.sampled_from([[parent[last]], {"x": parent[last]}]))
        elif kind == "deep":
            parent[last] = json.loads("[" * 400 + "]" * 400)
        else:
            parent[last] = draw(ODD)
    return mutant


def use(path: Path) -> None:
    """All that dhkd does with a cache; anything wrong has to be a `DhkdError` of one line."""
    for action in (read, extend):
        try:
            action(path)
        except DhkdError as error:
            one_line(error)


def one_line(error: DhkdError) -> None:
    assert str(error)
    assert "\n" not in str(error)


def read(path: Path) -> None:
    reader = open_cache(path)
    reader.require_present()
    for view in range(min(reader.plan.num_views, 3)):
        for name, signal in reader.manifest.signals.items():
            values = reader.read_view(view, name)
            assert values.shape == (reader.manifest.num_samples, *signal.row)
            if reader.manifest.signals == open_cache(GOLDEN / STORES[reader.store]).manifest.signals:
                assert values.shape == (SAMPLES, CLASSES)
    for result in reader.damages():
        assert isinstance(result, int | Damage)


def extend(path: Path) -> None:
    """Begin to write, as stage one does, what the golden cache holds."""
    store = "zarr" if (path / "zarr.json").exists() else "webdataset"
    writer_at(path, open_cache(GOLDEN / STORES[store]).manifest, store).missing()


@pytest.mark.parametrize("store", STORES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), finished=st.booleans())
def test_a_mutated_manifest(store: str, data: st.DataObject, finished: bool, tmp_path_factory: Any) -> None:
    path = shutil.copytree(GOLDEN / STORES[store], tmp_path_factory.mktemp("m") / "c")
    head = path / HEADS[store]
    head.write_text(json.dumps(data.draw(mutations(json.loads(head.read_text())))))
    if not finished:
        (path / "index.json").unlink()
    use(path)
    shutil.rmtree(path)


@pytest.mark.parametrize("store", STORES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), sealed=st.booleans())
def test_a_mutated_index(store: str, data: st.DataObject, sealed: bool, tmp_path_factory: Any) -> None:
    """`sealed`: with a checksum that fits, as a forger would make it."""
    path = shutil.copytree(GOLDEN / STORES[store], tmp_path_factory.mktemp("m") / "c")
    tree = json.loads((path / "index.json").read_text())
    body = data.draw(mutations(tree["index"])) if sealed else tree["index"]
    if sealed:
        try:
            tree = {**tree, "index": body, "crc32c": f"{crc32c(canonical(body)):08x}"}
        except ValueError:  # no JSON
            tree = {**tree, "index": body}
    else:
        tree = data.draw(mutations(tree))
    (path / "index.json").write_text(json.dumps(tree))
    use(path)
    shutil.rmtree(path)


@settings(max_examples=25, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_that_are_no_index(content: bytes) -> None:
    with pytest.raises(DhkdError) as caught:
        Index.from_bytes(content, "somewhere")
    assert "\n" not in str(caught.value)
