"""What `make bench` measures of photographs: decoding, the workers that do it, and a cache of ImageNet's size.

The photographs are generated, 500 × 375 pixels, as JPEG files of 100 to 130 kB, which is what ImageNet's are like.
"""

import io
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch
from dhkd.benchmarks.caches import complete_cache, manifest_of
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.data.cache.blocks import Plan
from dhkd.data.cache.reader import open_cache
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from dhkd.data.images.decoding_workers import PhotoRenderer
from dhkd.data.images.encoded import EncodedFiles, PhotoSet
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.render import Keys, Normalization
from dhkd.data.sources.image_folder import FolderFiles
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import WindowedSignals
from PIL import Image
from torch import Tensor

RECIPE = RandomResizedCrop(size=224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, seed=0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


class InMemory(EncodedFiles):
    """Encoded images as a list of bytes."""

    def __init__(self, contents: list[bytes]) -> None:
        self._contents = contents

    def read(self, index: int) -> bytes:
        """The image's bytes."""
        return self._contents[index]

    def name(self, index: int) -> str:
        """Its number."""
        return str(index)

    def names(self, num_samples: int) -> bytes:
        """Their numbers."""
        return b"\n".join(str(index).encode() for index in range(num_samples))

    def expect(self, index_B: Tensor) -> None:
        """All are here."""


def generated_photographs(number: int) -> PhotoSet:
    """Smooth colours with some noise, of which no two are alike."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(number):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(smooth, dtype=np.int16) + rng.integers(-24, 25, (375, 500, 3), dtype=np.int16)
        stream = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=94)
        contents.append(stream.getvalue())
    labels_N = torch.arange(number) % 10
    return PhotoSet("generated", "train", InMemory(contents), labels_N, 10, MEAN, STD)


def decoding(rounds: int, number: int) -> list[Figure]:
    """Photographs decoded, cut and resized: by the renderer in this process over bare Pillow, and by one worker."""
    images = generated_photographs(number)
    files = images.files
    assert isinstance(files, InMemory)
    index_B = torch.arange(number)
    keys = [(torch.zeros_like(index_B), index_B)]
    cuts = [RECIPE.cut(draws, 375, 500) for draws in RECIPE.draws(*keys[0]).tolist()]

    def bare() -> None:
        for index, cut in enumerate(cuts):
            with Image.open(io.BytesIO(files.read(index))) as photo:
                np.asarray(photo.crop(cut.box).resize(cut.size, Image.Resampling.BILINEAR))

    def rendered(workers: int, batches: Iterable[Keys]) -> Callable[[], object]:
        renderer = PhotoRenderer(images, RECIPE, CPU, workers=workers)
        return lambda: deque(renderer.render(batches), maxlen=0)

    # As a training step asks for them.
    batches = [(torch.zeros_like(i), i) for i in torch.split(index_B, 64)]
    passes = 4  # of the worker, so that its start and end weigh what they do in a short epoch
    actions = {"bare": bare, "renderer": rendered(0, batches), "one worker": rendered(1, passes * batches)}
    seconds = interleaved(actions, rounds, warm_up=1)
    seconds["one worker"] /= passes
    rates = {name: number / median(values) for name, values in seconds.items()}
    kilobytes = median(len(files.read(index)) for index in range(number)) / 1000
    detail = f"{number} JPEGs of 500 × 375, {kilobytes:.0f} kB: {rates['renderer']:,.0f}, {rates['bare']:,.0f} images/s"
    of_worker = f"{passes * number} in a row, its start and end in the time: {rates['one worker']:,.0f} images/s"
    return [
        middle(
            "decode + crop / bare Pillow, one core", seconds["bare"] / seconds["renderer"], "×", detail, at_least=0.9
        ),
        middle("one DataLoader worker / bare Pillow", seconds["bare"] / seconds["one worker"], "×", of_worker),
    ]


class SheetRenderer:
    """Instead of decoding: every pixel a function of the key."""

    device = CPU
    in_memory = False
    exact = True
    unreadable: Mapping[str, str] = {}

    def __init__(self, images: PhotoSet) -> None:
        self.images = images

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """8 × 8 pixels of one level, from view and index."""
        for view_B, index_B in batches:
            yield ((view_B + index_B) % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def large_index(num_samples: int, folder: Path) -> list[Figure]:
    """A cache of 1,000 classes and two views of so many files: listed, opened, scheduled, shuffled, then read through.

    In a process of its own, whose largest resident memory is measured, the program's imports in it.
    """
    plan = Plan.balanced(2, num_samples, 2000, 16 * 2**20)
    manifest = manifest_of(plan.num_views, num_samples, 1000, plan.block_rows)
    cache = complete_cache(folder / "large.zarr", manifest)

    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    child = spawn.Process(target=_plan_and_read, args=(there, num_samples, cache), daemon=True)
    child.start()
    there.close()
    planned, memory_planned, read, memory_read = here.recv()
    child.join()
    detail = f"{num_samples:,} samples × 2 views × 1,000 classes, blocks of 16 MiB, window 65,536"
    gigabytes = sum(len(block) for block in plan.blocks_of_view(0)) * 2000 / 1e9
    streamed = f"all batches of 256 of an epoch, {gigabytes:.1f} GB of logits lately written"
    return [
        Figure("large cache: plan, open, schedule, shuffle", planned, "s", detail, at_most=10),
        Figure("large cache: memory until then", memory_planned, "GB", "largest resident memory", at_most=2),
        Figure("large cache: an epoch's logits", read, "s", streamed),
        Figure("large cache: memory at the end", memory_read, "GB", "largest resident memory", at_most=2),
    ]


def _plan_and_read(parent: Connection, num_samples: int, cache: Path) -> None:
    number_N = np.arange(num_samples)
    names = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG".encode() for number in number_N.tolist()]
    began = time.perf_counter()
    order = permutations(raw_rows(0, Domain.FILE_ORDER, 0, 0, num_samples)[:, 0])
    files = FolderFiles(Path("nowhere"), np.array(names, dtype=np.bytes_)[order])
    images = PhotoSet("synthetic", "train", files, torch.from_numpy(number_N[order] % 1000), 1000, MEAN, STD)
    images.fingerprint()
    Plan.balanced(2, len(images), 2000, 16 * 2**20)
    reader = open_cache(cache)
    reader.require_present()
    stream = Stream(
        SheetRenderer(images),
        Normalization(MEAN, STD),
        WindowedSignals(reader, {"logits": ["logits"]}, CPU, 65536),
        schedule="block",
        seed=0,
        batch_size=256,
        block_rows=reader.plan.block_rows,
        window=65536,
    )
    batches = stream.epoch(0)
    next(batches)
    planned, memory_planned = time.perf_counter() - began, _memory()
    for _ in batches:
        pass
    parent.send((planned, memory_planned, time.perf_counter() - began - planned, _memory()))


def _memory() -> float:
    """The process's largest resident memory so far, in GB."""
    # Not getrusage's figure, which a new process inherits from the one that started it.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e9
