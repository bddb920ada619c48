"""Views of signals in files that are mapped: the same rows as from memory of the process, and damage is noticed."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dhkd.benchmarks.caches import FLOAT16, complete_cache, manifest_of
from dhkd.data.cache.codecs import AnyCodec, Float, Int8, TopK
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.disk import mapped
from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.errors import CacheDamaged
from dhkd.data.storage import sharing
from dhkd.data.stream.held import Held, held_views

CPU = torch.device("cpu")
VIEWS, SAMPLES, CLASSES, BLOCK_ROWS = 3, 50, 12, 20


def cache_at(path: Path, codec: AnyCodec = FLOAT16, store: str = "zarr") -> Path:
    return complete_cache(path, manifest_of(VIEWS, SAMPLES, CLASSES, BLOCK_ROWS, codec), store)


def mapped_bytes(folder: Path) -> int:
    """The bytes of this folder's files that are mapped into this process."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        if path.startswith(str(folder)):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            total += stop - start
    return total


def assert_same(one: Held, other: Held, views: range) -> None:
    view_B = torch.arange(views.start, views.stop).repeat_interleave(SAMPLES)
    index_B = torch.randperm(SAMPLES).repeat(len(views))
    for keys in ((view_B, index_B), (view_B[:0], index_B[:0])):
        rows, others = (held.rows(*keys)["logits"] for held in (one, other))
        assert rows.keys() == others.keys()
        for part, values in rows.items():
            assert values.dtype == others[part].dtype
            assert torch.equal(values, others[part])


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let all of a folder look as if it were on another machine's disk."""

    def put_far(folder: Path) -> None:
        def file_system_of(path: Path) -> str:
            return "nfs4" if Path(path).is_relative_to(folder) else mapped.file_system_of(path)

        monkeypatch.setattr(sharing, "file_system_of", file_system_of)

    return put_far


@pytest.mark.parametrize("views", [range(VIEWS), range(1, 2)], ids=["all", "one"])
@pytest.mark.parametrize("store", ["zarr", "webdataset"])
@pytest.mark.parametrize("codec", [FLOAT16, Float("float32"), Int8(), TopK(3, 4.0)], ids=lambda c: c.kind)
def test_mapped_views_equal_those_in_memory(codec: AnyCodec, store: str, views: range, tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "c", codec, store)
    reader = open_cache(cache)
    in_files = held_views(reader, ["logits"], views, CPU)
    assert mapped_bytes(cache) > 0
    assert_same(in_files, held_views(without_sharing(reader), ["logits"], views, CPU), views)


def without_sharing(reader: LogitReader) -> LogitReader:
    return LogitReader(reader._storage, reader._index)


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_a_damaged_block_is_noticed_before_it_is_mapped(store: str, tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "c", store=store)
    block = sorted(file for file in cache.rglob("*") if file.is_file() and file.stat().st_size > 400)[0]
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 1
    block.write_bytes(content)
    with pytest.raises(CacheDamaged, match="dhkd cache-teacher"):
        held_views(open_cache(cache), ["logits", "witness"], range(VIEWS), CPU)


def test_a_cache_that_is_replaced_stays_as_it_was(tmp_path: Path) -> None:
    """Repairing a cache writes new files; what is mapped are the old ones, even when nobody else has them."""
    cache = cache_at(tmp_path / "c")
    held = held_views(open_cache(cache), ["logits"], range(VIEWS), CPU)
    expected = held_views(without_sharing(open_cache(cache)), ["logits"], range(VIEWS), CPU)
    for file in cache.rglob("c/*/*/*"):
        if file.is_file():
            other = file.with_suffix(".new")
            other.write_bytes(os.urandom(file.stat().st_size))
            other.replace(file)
    assert_same(held, expected, range(VIEWS))


def test_a_cache_on_another_machine_is_mapped_from_copies(far: Callable[[Path], None], tmp_path: Path) -> None:
    cache, copies = cache_at(tmp_path / "far" / "c"), BoundedCopies(tmp_path / "near", 10**9)
    far(tmp_path / "far")
    reader = open_cache(cache, copies)
    held = held_views(reader, ["logits"], range(VIEWS), CPU)
    assert mapped_bytes(cache) == 0
    assert mapped_bytes(copies.folder) > 0
    assert_same(held, held_views(without_sharing(reader), ["logits"], range(VIEWS), CPU), range(VIEWS))
    damaged = sorted(copies.folder.glob("*[!k]"))[0]  # all but the locks
    damaged.unlink()  # not overwritten, since it is mapped
    damaged.write_bytes(b"damaged")
    assert_same(held_views(reader, ["logits"], range(VIEWS), CPU), held, range(VIEWS))
    assert damaged.read_bytes() != b"damaged"


@pytest.mark.parametrize(
    ("keep_bytes", "near", "reason"),
    [
        (100, "near", r"copies on this machine at most 0.0 GB"),
        (10**9, "far/near", r"its file system, nfs4, may be on another machine, and so may .*; set XDG_CACHE_HOME"),
        (None, "near", "without copies"),
    ],
)
def test_why_a_cache_is_not_mapped(
    keep_bytes: int | None, near: str, reason: str, far: Callable[[Path], None], tmp_path: Path
) -> None:
    cache = cache_at(tmp_path / "far" / "c")
    far(tmp_path / "far")
    reader = open_cache(cache, None if keep_bytes is None else BoundedCopies(tmp_path / near, keep_bytes))
    why = reader.why_unmapped(["logits"])
    assert why is not None
    assert re.search(reason, why)
    held_views(reader, ["logits"], range(VIEWS), CPU)
    assert not (tmp_path / near).exists()


def test_copies_that_can_not_be_written_are_left_out(
    far: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_at(tmp_path / "far" / "c")
    far(tmp_path / "far")
    (tmp_path / "near").write_bytes(b"a file in the way")
    reader = open_cache(cache, BoundedCopies(tmp_path / "near", 10**9))
    with caplog.at_level("INFO", "dhkd"):
        held = held_views(reader, ["logits"], range(VIEWS), CPU)
    assert_same(held, held_views(without_sharing(reader), ["logits"], range(VIEWS), CPU), range(VIEWS))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no copies in" in line
    assert "so each process holds its own in memory" in line


def test_too_many_files_are_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_at(tmp_path / "c")
    monkeypatch.setattr(sharing, "MOST_FILES", 8)
    reader = open_cache(cache)
    assert "9 objects, and at most 8" in str(reader.why_unmapped(["logits"]))
    assert reader.why_unmapped(["logits"], 3) is None
    held_views(reader, ["logits"], range(VIEWS), CPU)
    assert mapped_bytes(cache) == 0
