"""A cache of ImageNet's size: the time until an epoch begins, the time to read the epoch, and the memory for both."""

import multiprocessing
import time
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from dhkd.benchmarks.caches import complete_cache, manifest_of
from dhkd.benchmarks.figure import Figure
from dhkd.data.cache.blocks import Plan
from dhkd.data.cache.reader import open_cache
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.unaugmented import AsTheyAre
from dhkd.data.render import Keys, Normalization
from dhkd.data.sources.image_folder import FolderFiles
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import WindowedSignals
from torch import Tensor

if TYPE_CHECKING:  # the modules that this import loads would count as memory of the measured process
    from dhkd.benchmarks.setup import Setup

CLASSES, WINDOW, BLOCK_BYTES = 1000, 65536, 16 * 2**20
ROW_BYTES = 2 * CLASSES  # size of a row of logits in float16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


class SheetRenderer:
    """A stand-in for decoding: all pixels of an image have the same value, which depends on the key (view, index)."""

    device = CPU
    in_memory = False
    exact = True
    recipe = AsTheyAre()
    unreadable: Mapping[str, str] = {}

    def __init__(self, images: PhotoSet) -> None:
        self.images = images

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """Yield batches of images of 8 × 8 pixels."""
        for view_B, index_B in batches:
            yield ((view_B + index_B) % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)

    def render_twice(self, batches: Iterable[Keys], other: Recipe | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pixels of each batch twice, whatever the other recipe is."""
        return ((pixels_BCHW, pixels_BCHW) for pixels_BCHW in self.render(batches))


def large_cache(setup: "Setup") -> list[Figure]:
    """Measure a cache of two views: list image files, open the cache, schedule and shuffle an epoch, then read it.

    A separate process does this. The largest resident memory of that process includes the program's imports.
    """
    num_samples = setup.sizes.large_samples
    plan = Plan.balanced(2, num_samples, ROW_BYTES, BLOCK_BYTES)
    cache = complete_cache(
        setup.folder / "large.zarr", manifest_of(plan.num_views, num_samples, CLASSES, plan.block_rows)
    )
    spawn = multiprocessing.get_context("spawn")
    connection, childs_end = spawn.Pipe()
    child = spawn.Process(target=_plan_and_read, args=(childs_end, num_samples, cache), daemon=True)
    child.start()
    childs_end.close()
    planned, memory_planned, read, memory_read = connection.recv()
    child.join()
    detail = f"{num_samples:,} samples × 2 views × 1,000 classes, blocks of 16 MiB, window 65,536"
    gigabytes = sum(len(block) for block in plan.blocks_of_view(0)) * ROW_BYTES / 1e9
    streamed = f"all batches of 256 of an epoch, {gigabytes:.1f} GB of logits lately written"
    return [
        Figure("large cache: plan, open, schedule, shuffle", planned, "s", detail, at_most=10),
        Figure("large cache: memory until then", memory_planned, "GB", "largest resident memory", at_most=2),
        Figure("large cache: an epoch's logits", read, "s", streamed),
        Figure("large cache: memory at the end", memory_read, "GB", "largest resident memory", at_most=2),
    ]


def _plan_and_read(parent: Connection, num_samples: int, cache: Path) -> None:
    """Send the seconds until the first batch and for the other batches, and the memory (GB) after each part."""
    number_N = np.arange(num_samples)
    names = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG".encode() for number in number_N.tolist()]
    began = time.perf_counter()
    order = permutations(raw_rows(0, Domain.FILE_ORDER, 0, 0, num_samples)[:, 0])
    files = FolderFiles(Path("nowhere"), np.array(names, dtype=np.bytes_)[order])
    images = PhotoSet("synthetic", "train", files, torch.from_numpy(number_N[order] % 1000), CLASSES, MEAN, STD)
    images.fingerprint()
    Plan.balanced(2, len(images), ROW_BYTES, BLOCK_BYTES)
    reader = open_cache(cache)
    reader.require_present()
    stream = Stream(
        SheetRenderer(images),
        Normalization(MEAN, STD),
        WindowedSignals(reader, {"logits": ["logits"]}, CPU, WINDOW),
        schedule="block",
        seed=0,
        batch_size=256,
        block_rows=reader.plan.block_rows,
        window=WINDOW,
    )
    batches = stream.epoch(0)
    next(batches)
    planned, memory_planned = time.perf_counter() - began, _memory()
    for _ in batches:
        pass
    parent.send((planned, memory_planned, time.perf_counter() - began - planned, _memory()))


def _memory() -> float:
    """Return the largest resident memory of this process so far, in GB."""
    # getrusage would be wrong: a new process inherits the parent's maximum.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e9
