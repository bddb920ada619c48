"""What a cache costs in each store (storage format): bytes per row, and the rates of reading, verifying and writing."""

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from dhkd.benchmarks.caches import complete_cache, manifest_of, rows_of, write, writer_at
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.setup import Setup
from dhkd.data.cache.codecs import AnyCodec, Float, Int8, TopK
from dhkd.data.cache.find import find
from dhkd.data.cache.reader import Damage, open_cache
from dhkd.data.storage.places import storage_of

STORES = {"zarr": 0.15, "webdataset": 0.1}  # targets: the least reading rate, relative to numpy.memmap
CODECS: dict[str, AnyCodec] = {
    "float32": Float("float32"),
    "float16": Float("float16"),
    "int8": Int8(),
    "top-20": TopK(20, 4.0),
}
CLASSES = 100
BLOCK_ROWS = 16_667  # as in CIFAR-100's presets, where three blocks hold 50,000 samples
LEAST_ROWS = 1e6  # target: rows per second
WRITING_ROUNDS = 3  # at most, because each round starts processes, which takes longer than writing


def stores(setup: Setup) -> list[Figure]:
    """Measure all figures of both stores, for rows of 100 classes."""
    rounds, num_samples, folder = setup.sizes.store_rounds, setup.sizes.store_rows, setup.folder
    return [
        *_sizes(num_samples, folder),
        *_reading(rounds, num_samples, folder),
        *_writing(min(rounds, WRITING_ROUNDS), num_samples, folder),
    ]


def _sizes(num_samples: int, folder: Path) -> list[Figure]:
    figures = []
    for store in STORES:
        for name, codec in CODECS.items():
            path = folder / f"{store}-{name}"
            manifest = manifest_of(1, num_samples, CLASSES, min(BLOCK_ROWS, num_samples), codec)
            reader = open_cache(complete_cache(path, manifest, store))
            stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            detail = f"{num_samples:,} rows of {CLASSES} classes; the whole folder {stored / num_samples:.1f}"
            figures.append(
                Figure(f"bytes a row: {name}, {store}", reader.stored_bytes(["logits"]) / num_samples, "bytes", detail)
            )
    return figures


def _reading(rounds: int, num_samples: int, folder: Path) -> list[Figure]:
    """Measure the rate of reading whole views in order and blocks in random order, relative to numpy.memmap."""
    num_views = 8
    block_rows = min(BLOCK_ROWS, num_samples)
    raw = folder / "plain.bin"
    paths = {
        store: complete_cache(folder / f"read-{store}", manifest_of(num_views, num_samples, CLASSES, block_rows), store)
        for store in STORES
    }
    one_view = np.concatenate([rows_of(writer_at(paths["zarr"], open_cache(paths["zarr"]).manifest))["logits"]] * 3)
    np.tile(one_view[:num_samples].astype(np.float16), (num_views, 1, 1)).tofile(raw)
    mapped = np.memmap(raw, dtype=np.float16, mode="r", shape=(num_views, num_samples, CLASSES))
    readers = {store: open_cache(path) for store, path in paths.items()}
    plan = readers["zarr"].plan
    out = np.empty((num_samples, CLASSES), np.float16)
    shuffled = [plan.blocks()[i] for i in np.random.default_rng(0).permutation(len(plan.blocks()))]
    orders = {"whole views": plan.blocks(), "blocks shuffled": shuffled}

    def read(store: str, order: str) -> None:
        for block in orders[order]:
            out[block.start : block.stop] = readers[store].stored(block, "logits")[""]

    def read_mapped(order: str) -> None:
        for block in orders[order]:
            out[block.start : block.stop] = mapped[block.view, block.start : block.stop]

    def verify(store: str) -> None:
        assert not any(isinstance(size_or_damage, Damage) for size_or_damage in readers[store].damages())

    figures = []
    num_rows = num_views * num_samples
    for order in orders:
        actions: dict[str, Callable[[], None]] = {store: partial(read, store, order) for store in STORES}
        seconds = interleaved({"memmap": partial(read_mapped, order), **actions}, rounds)
        detail = f"{num_views} views × {num_samples:,} rows × {CLASSES}, float16, lately written"
        for store, least in STORES.items():
            name = f"reading {order}: {store}"
            ratio = seconds["memmap"] / seconds[store]
            figures.append(middle(f"{name} / memmap", ratio, "×", detail, at_least=least))
            figures.append(middle(name, num_rows / seconds[store], "rows/s", detail, at_least=LEAST_ROWS))
    megabytes = num_rows * (2 * CLASSES + 4) / 1e6
    seconds = interleaved({store: partial(verify, store) for store in STORES}, rounds)
    for store in STORES:
        detail = f"{megabytes:,.0f} MB, every byte of it, without a teacher"
        figures.append(middle(f"verifying: {store}", megabytes / seconds[store], "MB/s", detail, at_least=200))
    return figures


def _writing(rounds: int, num_samples: int, folder: Path) -> list[Figure]:
    """Measure the rate at which one and two processes write blocks, flushed to disk, without checks and index."""
    num_views = 4
    manifest = manifest_of(num_views, num_samples, CLASSES, min(BLOCK_ROWS, num_samples))
    megabytes = num_views * num_samples * (2 * CLASSES + 4) / 1e6
    figures = []
    for store in STORES:
        for num_writers in (1, 2):
            rates = []
            for number in range(rounds):
                path = folder / f"write-{store}-{num_writers}-{number}"
                writer_at(path, manifest, store)
                rates.append(megabytes / _seconds_to_write(path, store, num_writers))
            detail = f"{megabytes:,.0f} MB of float16 blocks, flushed"
            writers = "1 writer" if num_writers == 1 else f"{num_writers} writers"
            figures.append(middle(f"writing: {store}, {writers}", rates, "MB/s", detail))
    return figures


def _seconds_to_write(path: Path, store: str, num_writers: int) -> float:
    spawn = multiprocessing.get_context("spawn")
    children = []
    for number in range(num_writers):
        connection, childs_end = spawn.Pipe()
        arguments = (childs_end, path, store, number, num_writers)
        child = spawn.Process(target=_write_share, args=arguments, daemon=True)
        child.start()
        children.append((child, connection))
    for _, connection in children:
        connection.recv()  # the child is ready
    began = time.perf_counter()
    for _, connection in children:
        connection.send("write")
    for child, connection in children:
        connection.recv()
        child.join()
    return time.perf_counter() - began


def _write_share(parent: Connection, path: Path, store: str, number: int, num_writers: int) -> None:
    begun = find(storage_of(path))
    assert begun is not None
    writer = writer_at(path, begun.manifest, store)
    blocks = writer.missing()[number::num_writers]
    parent.send("ready")
    parent.recv()
    write(writer, blocks)
    parent.send("written")
