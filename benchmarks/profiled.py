"""Where the time of both stages goes, and how close their FLOP/s and bytes/s come to the machine's limits."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count

import numpy as np
import torch
from dhkd.benchmarks.caches import manifest_of, writer_at
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.operators import seconds_by_part
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import MEAN, NUM_CLASSES, RECIPE, STD, STUDENT, TEACHER, Loop, stream_of
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.render import Normalization
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.models.teacher import Teacher
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

MATRIX, COPIED = 2048, 2**28  # rows of a square matrix; bytes to copy

Seconds = Mapping[str, NDArray[np.float64]]  # seconds of every repetition, by action


def profiled(setup: Setup) -> list[Figure]:
    """Measure each kind of operator's share of the time in both stages, and FLOP/s and bytes/s.

    FLOP/s are compared with a matrix product, bytes/s with a memory copy.
    """
    return [*_stages(setup), *_rates(setup)]


def _stages(setup: Setup) -> list[Figure]:
    """Profile both stages: stage one caches one view of as many images as stage two trains on in aligned steps."""
    steps, batch_size, processes = setup.sizes.profile_steps, setup.batch_size, setup.processes
    teacher = Teacher(build_network(TEACHER, NUM_CLASSES), Normalization(MEAN, STD), processes)
    images = setup.images.first(min(len(setup.images), steps * batch_size))
    manifest = manifest_of(1, len(images), NUM_CLASSES, len(images))
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    numbers = count()

    def cache() -> None:
        writer = writer_at(setup.folder / f"profiled-{next(numbers)}.zarr", manifest)
        write_blocks(teacher, renderer, writer, batch_size=batch_size, processes=processes)

    loop = Loop("dhkd", stream_of(setup.renderer(), setup.signals(), batch_size), processes)
    train = partial(_repeat, loop.step, steps)
    return [
        *_shares("stage one", cache, f"{TEACHER}, {len(images):,} rows into a cache, batches of {batch_size}"),
        *_shares("stage two", train, f"{STUDENT}, dhkd, {steps} steps, batches of {batch_size}"),
    ]


def _rates(setup: Setup) -> list[Figure]:
    batch_size, device = setup.batch_size, setup.processes.device
    renderer, resident, normalize = setup.renderer(), setup.signals(), Normalization(MEAN, STD)
    stream = stream_of(renderer, resident, batch_size)
    loop, network = Loop("dhkd", stream, setup.processes), build_network(TEACHER, NUM_CLASSES).eval()
    view_B, index_B = (keys[:batch_size] for keys in stream.keys(0))
    pixels_BCHW = renderer.pixels(view_B, index_B)
    images_BCHW = normalize(pixels_BCHW).to(memory_format=torch.channels_last)
    network.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        network(images_BCHW)

    def fetch() -> None:
        normalize(renderer.pixels(view_B, index_B))
        resident.gather(view_B, index_B)

    flops = {"forward": _flops(forward), "step": _flops(loop.step)}
    matrix = torch.rand(MATRIX, MATRIX, device=device)
    source, target = torch.ones(COPIED, dtype=torch.uint8), torch.empty(COPIED, dtype=torch.uint8)
    actions: dict[str, Callable[[], object]] = {
        "forward": forward,
        "step": loop.step,
        "fetch": fetch,
        "product": lambda: matrix @ matrix,
        "copy": lambda: target.copy_(source),
    }
    seconds = interleaved(actions, setup.sizes.together_rounds)
    # Every pixel is read and written as a byte (1 + 1) and written as a float (4); every logit is read as float16 (2)
    # and written as float32 (4).
    moved = pixels_BCHW.numel() * 6 + batch_size * NUM_CLASSES * 6
    return [*_computing(seconds, flops, batch_size), *_moving(seconds, moved, batch_size)]


def _computing(seconds: Seconds, flops: Mapping[str, int], batch_size: int) -> list[Figure]:
    product = 2 * MATRIX**3 / seconds["product"]
    figures = [middle("bound: a matrix product", product / 1e9, "GFLOP/s", f"{MATRIX} × {MATRIX}, float32")]
    for name, network in (("forward", TEACHER), ("step", STUDENT)):
        rate, detail = flops[name] / seconds[name], f"{network}, batch {batch_size}, {flops[name] / 1e9:.1f} GFLOP"
        figures.append(middle(f"{name}: FLOP/s", rate / 1e9, "GFLOP/s", detail))
        figures.append(middle(f"{name}: FLOP/s / those of the product", rate / product, "×", detail))
    return figures


def _moving(seconds: Seconds, moved: int, batch_size: int) -> list[Figure]:
    copied = 2 * COPIED / seconds["copy"]
    rate, detail = moved / seconds["fetch"], f"a batch of {batch_size}, {moved / 1e6:.2f} MB read and written"
    return [
        middle("bound: copying memory", copied / 1e9, "GB/s", "256 MiB, read and written"),
        middle("rendering and gathering: bytes/s", rate / 1e9, "GB/s", detail),
        middle("rendering and gathering: bytes/s / those of a copy", rate / copied, "×", detail),
        middle("rendering and gathering / a step", seconds["fetch"] / seconds["step"], "×", detail),
    ]


def _repeat(action: Callable[[], None], times: int) -> None:
    for _ in range(times):
        action()


def _flops(action: Callable[[], None]) -> int:
    """Count the FLOP of an action's matrix products and convolutions, after two calls to warm up."""
    _repeat(action, 2)
    with FlopCounterMode(display=False) as flops:
        action()
    return int(flops.get_total_flops())


def _shares(stage: str, action: Callable[[], None], detail: str) -> list[Figure]:
    """Measure the time of each part's operators as a share of the action's elapsed time.

    The shares include operators in other threads, so their sum may exceed 1.
    """
    action()
    seconds, passed = seconds_by_part(action)
    return [Figure(f"{stage}: {part}", of_part / passed, "", detail) for part, of_part in seconds.items()]
