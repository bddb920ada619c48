"""How much memory a cache takes in several processes that train from it at the same time on one machine."""

import multiprocessing
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from dhkd.benchmarks.caches import complete_cache, manifest_of
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import NUM_CLASSES, RECIPE, Loop, random_images, stream_of
from dhkd.data.cache.find import find
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.storage.folder import Folder
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import NoSignals, ResidentSignals
from dhkd.stages.processes import Processes
from torch import Tensor

PROCESSES, STEPS, BATCH = 8, 5, 64
CPU = torch.device("cpu")
ROUNDS = 500  # of gathering
NETWORKS = ("resnet8", "resnet20")
MEMORY = "Pss:"  # the line with the proportional set size: a page that n processes share counts as 1/n in each


def shared_cache(setup: Setup) -> list[Figure]:
    """Measure by how much the memory of eight processes grows when they begin to train from one resident cache.

    Before, each of them trains without a cache. The growth is relative to the size of the cache; it is measured with
    the files mapped, and with a copy in each process.
    """
    if not Path("/proc/self/smaps_rollup").exists():  # only Linux tells the proportional set size
        return []
    samples = setup.sizes.shared_samples
    path = setup.folder / "shared.zarr"
    complete_cache(path, manifest_of(RECIPE.num_crops, samples, NUM_CLASSES, -(-samples // 2)))
    size = open_cache(path).stored_bytes(["logits"])
    figures = []
    for name, shared, target in (("one copy", True, 1.2), ("a copy in each", False, None)):
        growth = _growth(path, samples, shared)
        detail = f"{PROCESSES} processes train from a cache of {size / 1e9:.2f} GB: {growth / 1e9:.2f} GB more in all"
        figures.append(Figure(f"resident cache, {name}", growth / size, "× its size", detail, at_most=target))
    return [*figures, *(_gathering(path, samples, batch_size) for batch_size in (BATCH, 2 * BATCH))]


def _gathering(cache: Path, samples: int, batch_size: int) -> Figure:
    """Compare gathering a batch's rows from mapped files with gathering them from one tensor."""
    readers = {"mapped": open_cache(cache), "own": _reader_without_sharing(cache)}
    signals = {name: ResidentSignals(reader, {"logits": ["logits"]}, CPU) for name, reader in readers.items()}
    generator = torch.Generator().manual_seed(0)
    keys = [  # new ones in each round, whose rows are not in the processor's cache
        [torch.randint(largest, (batch_size,), generator=generator) for largest in (RECIPE.num_crops, samples)]
        for _ in range(ROUNDS)
    ]
    rounds = {name: cycle(keys) for name in signals}
    actions = {name: partial(_gather, held, rounds[name]) for name, held in signals.items()}
    seconds = interleaved(actions, ROUNDS, warm_up=0)
    detail = f"batch {batch_size}, 100 classes in float16: {median(seconds['mapped']) * 1e6:.0f} µs"
    return middle("gathering from mapped files / from one tensor", seconds["mapped"] / seconds["own"], "×", detail)


def _gather(signals: ResidentSignals, keys: Iterator[list[Tensor]]) -> None:
    signals.gather(*next(keys))


def _growth(cache: Path, samples: int, shared: bool) -> int:
    spawn = multiprocessing.get_context("spawn")
    children = []
    for _ in range(PROCESSES):
        connection, childs_end = spawn.Pipe()
        child = spawn.Process(target=_train_on_command, args=(childs_end, cache, samples, shared), daemon=True)
        child.start()
        childs_end.close()
        children.append((child, connection))
    memory = []
    for _ in range(2):  # without the cache, and with it
        for _, connection in children:
            connection.recv()  # raises EOFError if the child failed
        memory.append(sum(_memory(child.pid or 0) for child, _ in children))
        for _, connection in children:
            connection.send("on")
    for child, _ in children:
        child.join()
    return memory[1] - memory[0]


def _memory(pid: int) -> int:
    """Return the proportional set size of a process in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(MEMORY))


def _train_on_command(parent: Connection, cache: Path, samples: int, shared: bool) -> None:
    """Train without the cache, and then from it; after both, say so and wait."""
    processes = Processes("float32", cpu=True)
    renderer = ResidentRenderer(random_images(samples, NUM_CLASSES), RECIPE, processes.device)
    _train("ce", stream_of(renderer, NoSignals(RECIPE.num_crops), BATCH), processes)
    parent.send("trained")
    parent.recv()
    reader = open_cache(cache) if shared else _reader_without_sharing(cache)
    signals = ResidentSignals(reader, {"logits": ["logits"]}, processes.device)
    _train("kd", stream_of(renderer, signals, BATCH), processes)
    parent.send("trained")
    parent.recv()


def _train(objective: str, stream: Stream, processes: Processes) -> None:
    loop = Loop(objective, stream, processes, networks=NETWORKS)
    for _ in range(STEPS):
        loop.step()


def _reader_without_sharing(cache: Path) -> LogitReader:
    storage = Folder(cache)
    existing = find(storage)
    assert existing is not None
    assert existing.index is not None
    return LogitReader(storage, existing.index)
