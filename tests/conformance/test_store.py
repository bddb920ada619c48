"""What every store promises, run on each of them. A new store joins by a line in `STORES`."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dhkd.data.cache.contract import WITNESS, Block, LogitReader, LogitWriter, Plan, read_view
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.zarr_store import ZarrReader, ZarrWriter
from dhkd.data.errors import CacheDamaged, CacheIncomplete, CacheMismatch, NonFiniteLoss

from tests.conftest import files_of

VIEWS, SAMPLES, CLASSES, BLOCK_ROWS = 3, 10, 4, 4

STORES: dict[str, tuple[Callable[[Path, Manifest], LogitWriter], Callable[[Path], LogitReader]]] = {
    "zarr": (ZarrWriter.create, ZarrReader),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> tuple[Callable[..., LogitWriter], Callable[..., LogitReader]]:
    return STORES[request.param]


def manifest_of(dtype: str = "float16", **identity: object) -> Manifest:
    tree = {
        "dataset": {"num_samples": SAMPLES, "num_classes": CLASSES},
        "signals": {"logits": {"dtype": dtype, "row": [CLASSES]}},
        **identity,
    }
    return Manifest(tree, {"command": "test"}, VIEWS, BLOCK_ROWS)


def rows_of(block: Block) -> dict[str, np.ndarray]:
    """Values that tell view, index and class apart."""
    index = np.arange(block.start, block.stop)
    logits = block.view * 100 + index[:, None] + np.arange(CLASSES) / 8
    return {"logits": logits.astype(np.float32), WITNESS: (index * 7 + block.view).astype(np.uint32)}


def write_all(writer: LogitWriter) -> None:
    for block in writer.missing():
        writer.write(block, rows_of(block))
    writer.finish()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_was_written_is_read(store, tmp_path: Path, dtype: str) -> None:
    create, open_reader = store
    write_all(create(tmp_path / "c", manifest_of(dtype)))
    reader = open_reader(tmp_path / "c")
    reader.require_complete()
    for block in reader.plan.blocks():
        expected = rows_of(block)
        logits = reader.read(block, "logits")
        assert logits.dtype == np.dtype(dtype)
        assert (logits == expected["logits"].astype(dtype)).all()
        assert (reader.read(block, WITNESS) == expected[WITNESS]).all()
    assert read_view(reader, 2, "logits").shape == (SAMPLES, CLASSES)
    assert reader.manifest == manifest_of(dtype)


def test_blocks_may_be_written_in_any_order_and_by_several_writers(store, tmp_path: Path) -> None:
    create, _ = store
    first, second = (create(tmp_path / "c", manifest_of()) for _ in range(2))
    blocks = first.missing()
    mixed = [blocks[i] for i in np.random.default_rng(0).permutation(len(blocks))]
    for writer, share in ((first, mixed[::2]), (second, mixed[1::2])):
        for block in share:
            writer.write(block, rows_of(block))
    assert first.missing() == second.missing() == []
    second.finish()
    write_all(create(tmp_path / "in order", manifest_of()))
    assert files_of(tmp_path / "c") == files_of(tmp_path / "in order")


def test_writers_in_threads_do_not_lose_blocks(store, tmp_path: Path) -> None:
    create, _ = store
    writers = [create(tmp_path / "c", manifest_of()) for _ in range(4)]
    blocks = writers[0].missing()

    def work(number: int) -> None:
        for block in blocks[number::4]:
            writers[number].write(block, rows_of(block))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writers[0].missing() == []


def test_the_blocks_that_exist_are_the_journal(store, tmp_path: Path) -> None:
    create, open_reader = store
    writer = create(tmp_path / "c", manifest_of())
    blocks = writer.missing()
    assert len(blocks) == VIEWS * 3
    writer.write(blocks[4], rows_of(blocks[4]))
    assert create(tmp_path / "c", manifest_of()).missing() == [*blocks[:4], *blocks[5:]]
    with pytest.raises(CacheIncomplete, match="1 of 9 blocks are there, the first missing is view 0, rows 0 to 4"):
        writer.finish()
    with pytest.raises(CacheIncomplete, match="1 of 9 blocks"):
        open_reader(tmp_path / "c").require_complete()


def test_a_block_of_zeros_counts_as_written(store, tmp_path: Path) -> None:
    """A witness may be 0, and 0 is the fill value of integers."""
    create, open_reader = store
    writer = create(tmp_path / "c", manifest_of())
    for block in writer.missing():
        zeros = {name: np.zeros_like(values) for name, values in rows_of(block).items()}
        writer.write(block, zeros)
    writer.finish()
    reader = open_reader(tmp_path / "c")
    reader.require_complete()
    assert not read_view(reader, 1, WITNESS).any()


def test_an_unfinished_cache_is_no_cache(store, tmp_path: Path) -> None:
    create, open_reader = store
    writer = create(tmp_path / "c", manifest_of())
    for block in writer.missing():
        writer.write(block, rows_of(block))
    with pytest.raises(CacheIncomplete, match="never finished"):
        open_reader(tmp_path / "c").require_complete()
    with pytest.raises(CacheIncomplete, match="nothing is there"):
        open_reader(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "float32", "got a largest magnitude of nan"),
        (np.inf, "float16", "got a largest magnitude of inf"),
        (1e5, "float16", "use cache.dtype=float32"),
    ],
)
def test_values_that_can_not_be_stored_are_refused(store, tmp_path, value: float, dtype: str, message: str) -> None:
    create, _ = store
    writer = create(tmp_path / "c", manifest_of(dtype))
    block = writer.missing()[1]
    rows = rows_of(block)
    rows["logits"][2, 1] = value
    with pytest.raises(NonFiniteLoss, match=rf"view 0, index {block.start + 2}: .*{message}"):
        writer.write(block, rows)
    assert block in writer.missing()


def test_a_truncated_or_lost_chunk_is_missing_again(store, tmp_path: Path) -> None:
    create, open_reader = store
    write_all(create(tmp_path / "c", manifest_of()))
    before = files_of(tmp_path / "c")
    for damage in (
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
    ):
        chunk = largest_files(tmp_path / "c")[3]
        damage(chunk)
        reader = open_reader(tmp_path / "c")
        with pytest.raises(CacheIncomplete, match="8 of 9 blocks"):
            reader.require_complete()
        with pytest.raises(CacheDamaged, match=r"expected .* bytes, got"):
            read_all(reader)
        writer = create(tmp_path / "c", manifest_of())
        assert len(writer.missing()) == 1
        write_all(writer)
        assert files_of(tmp_path / "c") == before


def test_every_flipped_bit_of_a_chunk_is_noticed(store, tmp_path: Path) -> None:
    create, open_reader = store
    write_all(create(tmp_path / "c", manifest_of()))
    chunk = largest_files(tmp_path / "c")[0]
    good = chunk.read_bytes()
    for position in range(len(good)):
        chunk.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        reader = open_reader(tmp_path / "c")
        with pytest.raises(CacheDamaged):
            read_all(reader)


def test_a_chunk_copied_to_another_view_is_noticed(store, tmp_path: Path) -> None:
    create, open_reader = store
    write_all(create(tmp_path / "c", manifest_of()))
    first, second = largest_files(tmp_path / "c")[:2]
    second.write_bytes(first.read_bytes())
    reader = open_reader(tmp_path / "c")
    with pytest.raises(CacheDamaged, match="not the chunk that was written"):
        read_all(reader)


def test_litter_of_kills_is_ignored(store, tmp_path: Path) -> None:
    create, open_reader = store
    write_all(create(tmp_path / "c", manifest_of()))
    chunk = largest_files(tmp_path / "c")[0]
    chunk.with_name(f"{chunk.name}.0123abcd.partial").write_bytes(b"half a chunk")
    chunk.with_name("9").write_bytes(b"no chunk of this array")
    open_reader(tmp_path / "c").require_complete()


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"chunks": 3}', b'{"structure": {}, "chunks": {"a": 1}}'])
def test_a_damaged_index_is_one_line(store, tmp_path: Path, garbage: bytes) -> None:
    create, open_reader = store
    write_all(create(tmp_path / "c", manifest_of()))
    (tmp_path / "c" / "index.json").write_bytes(garbage)
    with pytest.raises(CacheDamaged, match="the index is damaged"):
        open_reader(tmp_path / "c").require_complete()


def test_a_manifest_edited_by_hand_is_noticed(store, tmp_path: Path) -> None:
    create, open_reader = store
    write_all(create(tmp_path / "c", manifest_of(recipe={"seed": 1})))
    for file, old, new in (("zarr.json", '"seed": 1', '"seed": 2'), ("witness/zarr.json", '"little"', '"big"')):
        path = tmp_path / "c" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(CacheDamaged):
            open_reader(tmp_path / "c").require_complete()
        path.write_text(text)
    open_reader(tmp_path / "c").require_complete()


def test_creation_survives_a_kill_and_refuses_other_folders(store, tmp_path: Path) -> None:
    create, _ = store
    create(tmp_path / "c", manifest_of())
    (tmp_path / "c" / "zarr.json").unlink()  # as a kill before the manifest was written leaves it
    write_all(create(tmp_path / "c", manifest_of()))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(CacheMismatch, match=r"found thesis\.txt; choose another --out"):
        create(tmp_path / "other", manifest_of())
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CacheMismatch, match="got a file"):
        create(tmp_path / "file", manifest_of())
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_chunks_without_a_manifest_are_not_overwritten(store, tmp_path: Path) -> None:
    create, _ = store
    write_all(create(tmp_path / "c", manifest_of()))
    (tmp_path / "c" / "zarr.json").unlink()
    (tmp_path / "c" / "index.json").unlink()
    before = files_of(tmp_path / "c")
    with pytest.raises(CacheMismatch, match="expected an empty folder or a dhkd cache"):
        create(tmp_path / "c", manifest_of())
    assert files_of(tmp_path / "c") == before


@pytest.mark.parametrize(
    ("rows", "bytes_", "expected"),
    [(50_000, 4 << 20, (3, 16_667)), (5_000, 4 << 20, (1, 5_000)), (10, 1, (10, 1)), (7, 3 * 200, (3, 3))],
)
def test_blocks_are_balanced(rows: int, bytes_: int, expected: tuple[int, int]) -> None:
    plan = Plan.balanced(2, rows, 200, bytes_)
    assert (plan.blocks_per_view, plan.block_rows) == expected
    covered = [i for block in plan.blocks_of_view(1) for i in range(block.start, block.stop)]
    assert covered == list(range(rows))


def read_all(reader: LogitReader) -> None:
    for block in reader.plan.blocks():
        reader.read(block, "logits")


def largest_files(folder: Path) -> list[Path]:
    """The chunks of the logits, in the order of their keys."""
    return sorted(f for f in (folder / "signals" / "logits" / "c").rglob("*") if f.is_file())
