"""How much memory stage one, caching, takes, in blocks (a block is a run of samples of one view, written at once)."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
from dhkd.benchmarks.caches import manifest_of, writer_at
from dhkd.benchmarks.figure import Figure
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import MEAN, RECIPE, STD, random_images
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.render import Normalization
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from torch import nn

MEGABYTE = 1e6
FEW, MANY = 2, 8  # views
CLASSES, BATCH, PIXELS = 1000, 256, 8


def memory(setup: Setup) -> list[Figure]:
    """Measure how much resident memory grows while a process caches few views, and while it caches many.

    The size of a block is counted in float32, in which it is computed; it is stored in half as many bytes. How many
    copies of blocks exist at a time depends on how writing and computing overlap, so the growth differs by about a
    block from run to run. The six additional views are twelve blocks.
    """
    megabytes = setup.sizes.block_megabytes
    block_bytes = megabytes * MEGABYTE
    growths = dict(zip((FEW, MANY), _growths(int(block_bytes), (FEW, MANY), setup.folder), strict=True))
    figures = [
        Figure(
            f"memory: growth while caching {views} views",
            growth / block_bytes,
            "blocks",
            f"blocks of {megabytes:g} MB in float32 as computed, two a view: {growth / MEGABYTE:.1f} MB",
            at_most=4,
        )
        for views, growth in growths.items()
    ]
    difference = abs(growths[MANY] - growths[FEW]) / block_bytes
    detail = f"caching {MANY} views against caching {FEW}"
    return [*figures, Figure("memory: difference", difference, "blocks", detail, at_most=1.5)]


def _growths(block_bytes: int, numbers_of_views: Sequence[int], folder: Path) -> list[int]:
    """Return, for each number of views, by how many bytes a process grows while it caches so many views.

    Each number of views is cached in a separate process, whose memory this process watches. A thread inside the
    caching process would have to wait for Python's interpreter lock and could miss the peaks.
    """
    spawn = multiprocessing.get_context("spawn")
    children = []
    for views in numbers_of_views:
        connection, childs_end = spawn.Pipe()
        arguments = (childs_end, block_bytes, views, folder / f"memory-{views}.zarr")
        child = spawn.Process(target=_cache_on_command, args=arguments, daemon=True)
        child.start()
        childs_end.close()
        children.append((child, connection))
    for _, connection in children:
        connection.recv()  # the child is warm
    growths = []
    for child, connection in children:
        process = psutil.Process(child.pid)
        before = peak = process.memory_info().rss
        connection.send("write")
        while not connection.poll(0.001):
            peak = max(peak, process.memory_info().rss)
        connection.recv()  # raises EOFError if the child failed
        child.join()
        growths.append(peak - before)
    return growths


def _cache_on_command(parent: Connection, block_bytes: int, views: int, cache: Path) -> None:
    """Write two blocks per view, with a teacher that needs almost no time or memory."""
    block_rows = block_bytes // (np.dtype(np.float32).itemsize * CLASSES)
    images = random_images(2 * block_rows, CLASSES, size=PIXELS)
    processes = Processes("float32", cpu=True)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * PIXELS * PIXELS, CLASSES))
    renderer = ResidentRenderer(images, RECIPE, processes.device)

    def write(images: ImageSet, views: int, path: Path) -> None:
        teacher = Teacher(network, Normalization(MEAN, STD), processes)  # type: ignore[arg-type]  # logits suffice
        manifest = manifest_of(views, len(images), CLASSES, min(block_rows, len(images)))
        write_blocks(teacher, renderer, writer_at(path, manifest), batch_size=BATCH, processes=processes)

    write(images.first(BATCH), 1, cache.with_suffix(".warm-up.zarr"))
    parent.send("warm")
    parent.recv()
    write(images, views, cache)
    parent.send("written")
