"""What every cache promises, tested on every layout: in a folder, in a bucket and through a web server."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from dhkd.data.cache import codecs
from dhkd.data.cache.blocks import WITNESS, Block, Plan
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import LogitReader
from dhkd.data.cache.writer import LogitWriter
from dhkd.data.errors import CacheDamaged, CacheIncomplete, CacheMismatch, ConfigError, NonFiniteLoss
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import storage_of

from tests import caches
from tests.caches import complete, damages_of, writer_at
from tests.conformance.places import Place
from tests.few import few

VIEWS, SAMPLES, CLASSES, BLOCK_ROWS = 3, 10, 4, 4
# A request of a bucket takes the test's server some milliseconds: what rewrites a cache many times does so elsewhere.
without_s3 = pytest.mark.parametrize(
    "place",
    few(
        [f"{layout}{way}" for layout in LAYOUTS for way in ("", " over S3", " over HTTP")],
        ["zarr", "webdataset", "webdataset over HTTP"],
    ),
    indirect=True,
)
CODECS = {
    "float16": {"kind": "float16"},
    "float32": {"kind": "float32"},
    "int8": {"kind": "int8"},
    "top-k": {"kind": "top-k", "k": 2, "temperature": 4.0},
}


def manifest_of(codec: str = "float16", *, views: int = VIEWS, seed: int = 0, **signals: str) -> Manifest:
    described = {name: (CODECS[kind], (CLASSES,)) for name, kind in ({"logits": codec} | signals).items()}
    return caches.manifest_of(SAMPLES, CLASSES, views, BLOCK_ROWS, signals=described, seed=seed)


def logits_of(block: Block) -> np.ndarray:
    """Values that differ by view, index and class, and that float16 represents exactly."""
    index = np.arange(block.start, block.stop)
    return (block.view * 100 + index[:, None] + np.arange(CLASSES) / 8).astype(np.float32)


def rows_of(block: Block, *signals: str) -> dict[str, np.ndarray]:
    witness = np.arange(block.start, block.stop) * 7 + block.view
    values = {name: logits_of(block) * (number + 1) for number, name in enumerate(signals or ["logits"])}
    return {**values, WITNESS: witness.astype(np.uint32)}


def write_all(writer: LogitWriter) -> None:
    for block in writer.missing():
        writer.write(block, rows_of(block, *writer.signals))
    complete(writer)


def read_all(reader: LogitReader) -> None:
    for block in reader.plan.blocks():
        for name in reader.manifest.names:
            reader.stored(block, name)


# what was written is read


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_written_is_read(place: Place, codec: str) -> None:
    manifest = manifest_of(codec)
    write_all(place.writer(manifest))
    reader = place.reader()
    reader.require_present()
    assert reader.manifest == manifest
    signal = manifest.signals["logits"]
    for block in reader.plan.blocks():
        expected = codecs.encode(signal.codec, "logits", block, logits_of(block))
        stored = reader.stored(block, "logits")
        assert stored.keys() == expected.keys()
        for part, values in expected.items():
            assert stored[part].dtype == values.dtype
            assert (stored[part] == values).all()
        assert (reader.witness(block) == rows_of(block)[WITNESS]).all()
        values = reader.read(block.view, range(block.start, block.stop))
        assert values.dtype == np.float32
        assert (values == codecs.decode(signal.codec, expected, signal.row)).all()
    assert damages_of(reader) == []


def test_rows_are_read_in_any_order(place: Place) -> None:
    write_all(place.writer(manifest_of()))
    reader = place.reader()
    indices = [9, 0, 5, 5, 3]
    assert (reader.read(1, indices)[:, 0] == [109, 100, 105, 105, 103]).all()
    assert reader.read(1, []).shape == (0, CLASSES)
    assert reader.read_view(2).shape == (SAMPLES, CLASSES)
    for view, wrong in ((VIEWS, [0]), (-1, [0]), (0, [SAMPLES]), (0, [-1])):
        with pytest.raises(IndexError):
            reader.read(view, wrong)


def test_all_stores_give_the_same_numbers(tmp_path: Path) -> None:
    for codec in CODECS:
        values = []
        for store in LAYOUTS:
            local = Place(store, str(tmp_path / store), str(tmp_path / store))
            write_all(local.writer(manifest_of(codec), codec))
            values.append([local.reader(codec).read_view(view) for view in range(VIEWS)])
        assert len(values) > 1
        assert all((np.stack(other) == np.stack(values[0])).all() for other in values), codec


@without_s3
def test_the_index_tells_how_exact_a_signal_is(place: Place) -> None:
    for codec in CODECS:
        write_all(place.writer(manifest_of(codec), codec))
        reader = place.reader(codec)
        bound = reader.bound("logits")
        expected = np.concatenate([logits_of(block) for block in reader.plan.blocks_of_view(2)])
        if codec == "top-k":
            assert bound.tail_mass is not None
            assert 0 < bound.tail_mass < 1
        else:
            assert bound.tail_mass is None
            assert np.abs(reader.read_view(2) - expected).max() <= bound.error
        assert (bound.error == 0) == (codec == "float32")


# writing: whole blocks, in any order, by any writer


def test_blocks_may_be_written_in_any_order_and_by_several_writers(place: Place) -> None:
    first, second = (place.writer(manifest_of()) for _ in range(2))
    blocks = first.missing()
    mixed = [blocks[i] for i in np.random.default_rng(0).permutation(len(blocks))]
    for writer, share in ((first, mixed[::2]), (second, mixed[1::2])):
        for block in share:
            assert writer.write(block, rows_of(block))
    assert first.missing() == second.missing() == []
    complete(second)
    write_all(place.writer(manifest_of(), "in order"))
    assert place.contents() == place.contents("in order")


def test_writers_in_threads_share_every_block_and_agree(place: Place) -> None:
    writers = [place.writer(manifest_of()) for _ in range(4)]
    blocks = writers[0].missing()
    put: list[bool] = []

    def work(writer: LogitWriter) -> None:
        put.extend(writer.write(block, rows_of(block)) for block in blocks)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writers[0].missing() == []
    assert len(put) == 4 * len(blocks)
    assert sum(put) >= len(blocks)
    complete(writers[1])
    write_all(place.writer(manifest_of(), "alone"))
    assert place.contents() == place.contents("alone")


def test_the_first_writer_of_a_block_wins(place: Place) -> None:
    """Two machines may compute a block with different last bits; the index must be that of the stored one."""
    writer = place.writer(manifest_of())
    block = writer.missing()[0]
    other = rows_of(block)
    other["logits"] = other["logits"] + 1
    assert writer.write(block, rows_of(block))
    assert not place.writer(manifest_of()).write(block, other)
    write_all(writer)
    assert (place.reader().read(block.view, range(block.start, block.stop)) == logits_of(block)).all()


def test_the_blocks_that_exist_are_the_journal(place: Place) -> None:
    writer = place.writer(manifest_of())
    blocks = writer.missing()
    assert len(blocks) == VIEWS * 3
    assert not writer.has(blocks[4])
    writer.write(blocks[4], rows_of(blocks[4]))
    assert writer.has(blocks[4])
    assert place.writer(manifest_of()).missing() == [*blocks[:4], *blocks[5:]]
    with pytest.raises(CacheIncomplete, match=r"view 0, rows 0 to 4\) is missing"):
        writer.finish([writer.check([blocks[4]], set())])
    if place.written_at == place.read_at:
        with pytest.raises(CacheIncomplete, match="1 of 9 blocks are there, the first missing is view 0, rows 0 to 4"):
            place.reader()


def test_a_block_of_zeros_counts_as_written(place: Place) -> None:
    """A witness may be 0, and 0 is the fill value of integers."""
    writer = place.writer(manifest_of())
    for block in writer.missing():
        zeros = {name: np.zeros_like(values) for name, values in rows_of(block).items()}
        writer.write(block, zeros)
    complete(writer)
    reader = place.reader()
    reader.require_present()
    assert not any(reader.witness(block).any() for block in reader.plan.blocks())


def test_an_unfinished_cache_is_no_cache(place: Place) -> None:
    writer = place.writer(manifest_of())
    for block in writer.missing():
        writer.write(block, rows_of(block))
    with pytest.raises(CacheIncomplete, match="never finished"):
        place.reader()
    with pytest.raises(CacheIncomplete, match="expected a dhkd cache, found none"):
        place.reader("nowhere")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "got a largest magnitude of nan"), (np.inf, "got a largest magnitude of inf")],
)
def test_values_that_can_not_be_stored_are_refused(tmp_path: Path, codec: str, value: float, message: str) -> None:
    writer = writer_at(tmp_path / "c", manifest_of(codec))
    block = writer.missing()[1]
    rows = rows_of(block)
    rows["logits"][2, 1] = value
    with pytest.raises(NonFiniteLoss, match=rf"view 0, index {block.start + 2}: .*{message}"):
        writer.write(block, rows)
    assert block in writer.missing()


# what is damaged is noticed, and written again


@without_s3
def test_a_truncated_or_lost_object_is_missing_again(place: Place) -> None:
    manifest = manifest_of()
    write_all(place.writer(manifest))
    before, raw = place.contents(), place.raw()
    key = place.key(manifest, manifest.plan.block(1, 0))
    for damaged in (None, before[key][:-1], b"", before[key] + b"0"):
        raw.delete(key)
        if damaged is not None:
            raw.put(key, damaged, replace=True)
        reader = place.reader()
        if place.raw().sizes() is not None and place.written_at == place.read_at:
            with pytest.raises(
                CacheIncomplete, match="8 of 9 blocks are there, the first missing is view 1, rows 0 to"
            ):
                reader.require_present()
        with pytest.raises(CacheDamaged, match=r"expected (at most )?[\d,]+ bytes, got"):
            read_all(reader)
        assert [damage.key for damage in damages_of(reader)] == [key]
        writer = place.writer(manifest)
        assert [str(block) for block in writer.missing()] == ["view 1, rows 0 to 4"]
        write_all(writer)
        assert place.contents() == before


@without_s3
@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_every_flipped_bit_of_a_block_is_noticed(place: Place, codec: str) -> None:
    manifest = manifest_of(codec)
    write_all(place.writer(manifest))
    raw, block = place.raw(), manifest.plan.block(2, 1)
    for name in ("logits", WITNESS):
        for key in place.layout(manifest).objects(name, block):
            good = raw.get(key)
            for position in range(0, len(good), max(1, len(good) // 15)):
                raw.put(key, good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :], replace=True)
                with pytest.raises(CacheDamaged, match="view 2, rows 4 to 8"):
                    place.reader().stored(block, name)
            raw.put(key, good, replace=True)
            place.reader().stored(block, name)


@without_s3
@pytest.mark.parametrize("name", ["logits", WITNESS])
def test_a_block_copied_to_another_view_is_noticed_and_written_again(place: Place, name: str) -> None:
    manifest = manifest_of()
    write_all(place.writer(manifest))
    before = place.contents()
    first, second = (place.key(manifest, manifest.plan.block(view, 0), name) for view in (0, 1))
    place.raw().put(second, before[first], replace=True)
    reader = place.reader()
    with pytest.raises(CacheDamaged, match="is not the block that was written"):
        read_all(reader)
    assert [damage.key for damage in damages_of(reader)] == [second]
    writer = place.writer(manifest)
    assert writer.missing() == [], "listing alone can't see it"
    (damage,) = writer.complete(set())
    assert damage.key == second
    assert [str(block) for block in writer.missing()] == ["view 1, rows 0 to 4"]
    write_all(writer)
    assert place.contents() == before


def test_litter_of_kills_is_ignored(place: Place) -> None:
    manifest = manifest_of()
    writer = place.writer(manifest)
    key = place.key(manifest, manifest.plan.block(0, 0))
    place.raw().put(f"{key}.0123abcd.partial", b"half a block", replace=True)
    place.raw().put(f"{key[: key.rindex('/')]}/9x", b"no block", replace=True)
    write_all(writer)
    reader = place.reader()
    reader.require_present()
    assert damages_of(reader) == []


GARBAGE = [b"", b"{", b"[]", b'{"chunks": 3}', b'{"format": 2}', b'{"format": 2, "index": {}, "crc32c": "00000000"}']


@pytest.mark.parametrize("garbage", [*GARBAGE, b"[" * 100_000], ids=range(len(GARBAGE) + 1))
def test_a_damaged_index_is_one_line_and_can_be_made_anew(tmp_path: Path, garbage: bytes) -> None:
    local = Place("zarr", str(tmp_path), str(tmp_path))
    write_all(local.writer(manifest_of()))
    before = local.contents()
    local.raw().put("index.json", garbage, replace=True)
    with pytest.raises(CacheDamaged, match=r"index\.json is damaged .*delete it, then run") as caught:
        local.reader()
    assert "\n" not in str(caught.value)
    local.raw().delete("index.json")
    write_all(local.writer(manifest_of()))
    assert local.contents() == before


def test_an_edited_index_is_noticed(place: Place) -> None:
    write_all(place.writer(manifest_of()))
    content = place.raw().get("index.json")
    for old, new in (
        (b'"seed": 0', b'"seed": 1'),
        (b'"num_views": 3', b'"num_views": 2'),
        (b'"error": 0', b'"error": 1'),
    ):
        assert content.count(old) == 1, old
        place.raw().put("index.json", content.replace(old, new), replace=True)
        with pytest.raises(CacheDamaged, match="its checksum is not that of its content"):
            place.reader()


@without_s3
def test_an_edited_manifest_changes_nothing_and_is_noticed(place: Place) -> None:
    """The index says what is complete; the manifest beside it is what other programs see."""
    manifest = manifest_of()
    write_all(place.writer(manifest))
    before = place.contents()
    head = list(place.layout(manifest).structure())[-1]
    for old, new in ((b'"seed": 0', b'"seed": 5'), (b'"num_views": 3', b'"num_views": 2'), (b'"float32"', b'"bf16"')):
        assert old in before[head]
        place.raw().put(head, before[head].replace(old, new), replace=True)
        reader = place.reader()
        assert reader.manifest == manifest
        assert [damage.key for damage in damages_of(reader)] == [head]
        write_all(place.writer(manifest))
        assert place.contents() == before


@without_s3  # which takes about a second for each of some thirty rewritten caches
def test_damaged_metadata_is_noticed_and_written_again(place: Place) -> None:
    manifest = manifest_of("int8")
    write_all(place.writer(manifest))
    before, raw = place.contents(), place.raw()
    for key in place.layout(manifest).structure():
        for damaged in (None, b"", b"{}", before[key][:-3], before[key].replace(b"3", b"4", 1)):
            raw.delete(key)
            if damaged is not None:
                raw.put(key, damaged, replace=True)
            reader = place.reader()
            read_all(reader)
            assert [damage.key for damage in damages_of(reader)] == [key]
            write_all(place.writer(manifest))
            assert place.contents() == before


# beginning


def test_creation_survives_a_kill_and_refuses_other_folders(place: Place) -> None:
    manifest = manifest_of()
    structure = place.layout(manifest).structure()
    for number, (key, content) in enumerate(list(structure.items())[:-1]):  # the manifest comes last
        place.raw(f"killed {number}").put(key, content, replace=True)
        write_all(place.writer(manifest, f"killed {number}"))
    place.raw("other").put("thesis.txt", b"precious", replace=True)
    with pytest.raises(CacheMismatch, match=r"found thesis\.txt; choose another --out"):
        place.writer(manifest, "other")
    assert place.contents("other") == {"thesis.txt": b"precious"}


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises((CacheMismatch, OSError)):
        writer_at(tmp_path / "file", manifest_of())
    assert (tmp_path / "file").read_text() == "precious"


def test_blocks_without_a_manifest_are_not_overwritten(place: Place) -> None:
    manifest = manifest_of()
    write_all(place.writer(manifest))
    place.raw().delete(list(place.layout(manifest).structure())[-1])
    place.raw().delete("index.json")
    before = place.contents()
    with pytest.raises(CacheMismatch, match="expected an empty folder or a dhkd cache"):
        place.writer(manifest)
    assert place.contents() == before


def test_an_unknown_store_is_refused_with_the_valid_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unknown store 'zar': did you mean 'zarr'\? valid are webdataset, zarr$"):
        writer_at(tmp_path / "c", manifest_of(), "zar")
    assert not (tmp_path / "c").exists()


def test_a_layout_says_how_many_objects_a_block_has(place: Place) -> None:
    manifest = manifest_of("int8")
    layout, block = place.layout(manifest), manifest.plan.block(0, 0)
    for name in manifest.names:
        assert len(layout.objects(name, block)) == layout.objects_per_block(len(manifest.parts(name)))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (manifest_of(seed=7), "recipe.seed expected 7, got 0"),
        (manifest_of("float32"), "signals.logits.codec.kind expected float32, got float16"),
        (manifest_of(views=2), "views expected at least 3, as it was begun with, got 2"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_cache_is_not_mixed_in(place: Place, other: Manifest, says: str, finished: bool) -> None:
    writer = place.writer(manifest_of())
    if finished:
        write_all(writer)
    before = place.contents()
    with pytest.raises(CacheMismatch, match=f"{says}.*another --out"):
        place.writer(other)
    assert place.contents() == before


# extending


def test_views_are_added_while_the_old_ones_are_read(place: Place) -> None:
    write_all(place.writer(manifest_of(views=1)))
    old, old_bytes = place.reader(), place.contents()
    writer = place.writer(manifest_of(views=3))
    assert [block.view for block in writer.missing()] == [1, 1, 1, 2, 2, 2]
    for block in writer.missing()[:4]:
        writer.write(block, rows_of(block))
    for reader in (old, place.reader()):  # opened before, and in the middle, where a kill may leave it for ever
        assert reader.plan.num_views == 1
        reader.require_present()
        read_all(reader)
        assert damages_of(reader) == []
    write_all(place.writer(manifest_of(views=3)))
    assert place.reader().plan.num_views == 3
    for key, content in place.contents().items():
        assert not ("/c/" in key or "shards/" in key) or old_bytes.get(key, content) == content
    write_all(place.writer(manifest_of(views=3), "at once"))
    assert place.contents() == place.contents("at once")


def test_signals_are_added_and_pixels_compared(place: Place) -> None:
    write_all(place.writer(manifest_of()))
    before = place.contents()
    added = caches.manifest_of(SAMPLES, CLASSES, VIEWS, BLOCK_ROWS, signals={"b.logits": (CODECS["int8"], (CLASSES,))})
    other = place.writer(added)
    assert set(other.manifest.signals) == {"logits", "b.logits"}
    blocks = other.missing()
    assert len(blocks) == VIEWS * 3
    drifted = rows_of(blocks[0], "b.logits")
    drifted[WITNESS] = drifted[WITNESS] + np.array([0, 1, 0, 0], np.uint32)
    with pytest.raises(CacheMismatch, match=r"pixels differ from those that are cached: 1 of 4 rows .* index 1"):
        other.write(blocks[0], drifted)
    assert place.reader().manifest == manifest_of()
    for block in blocks:
        other.write(block, rows_of(block, "b.logits"))
    complete(other)
    reader = place.reader()
    assert set(reader.manifest.signals) == {"logits", "b.logits"}
    read_all(reader)
    assert np.abs(reader.read_view(1, "b.logits") - reader.read_view(1)).max() < 0.01
    for key, content in place.contents().items():
        assert not ("/c/" in key or "shards/" in key) or before.get(key, content) == content


def test_damage_of_another_teachers_signal_is_not_repaired_by_this_one(place: Place) -> None:
    wanted = manifest_of(**{"b.logits": "float16"})
    write_all(place.writer(wanted))
    key = place.key(wanted, wanted.plan.block(0, 1), "b.logits")
    content = place.raw().get(key)
    place.raw().put(key, content[:40] + b"x" + content[41:], replace=True)
    writer = LogitWriter(place.raw(), place.store, wanted, ["logits"])
    with pytest.raises(CacheDamaged, match=r"with the teacher of b\.logits"):
        writer.complete(set())
    writer_of_b = LogitWriter(place.raw(), place.store, wanted, ["b.logits"])
    assert [damage.key for damage in writer_of_b.complete(set())] == [key]


# the plan


@pytest.mark.parametrize(
    ("rows", "bytes_", "expected"),
    [(50_000, 4 << 20, (3, 16_667)), (5_000, 4 << 20, (1, 5_000)), (10, 1, (10, 1)), (7, 3 * 200, (3, 3))],
)
def test_blocks_are_balanced(rows: int, bytes_: int, expected: tuple[int, int]) -> None:
    plan = Plan.balanced(2, rows, 200, bytes_)
    assert (plan.blocks_per_view, plan.block_rows) == expected
    covered = [i for block in plan.blocks_of_view(1) for i in range(block.start, block.stop)]
    assert covered == list(range(rows))


def test_reading_needs_the_index_and_no_listing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a cache can be read where nothing can be listed, as on a web server."""
    write_all(place.writer(manifest_of()))
    layout = place.layout(manifest_of())
    arrays = [(name, block) for block in manifest_of().plan.blocks() for name in manifest_of().names]
    listed = json.loads(place.raw().get("index.json"))["index"]["objects"]
    assert set(listed) == {key for name, block in arrays for key in layout.objects(name, block)}

    def sizes(self: Storage) -> dict[str, int]:
        pytest.fail("the place was listed")

    for storage in (place.raw(), storage_of(place.read_at)):
        monkeypatch.setattr(type(storage), "sizes", sizes)
    reader = place.reader()
    read_all(reader)
    assert damages_of(reader) == []
