"""Where the time of both stages goes, and how far they are from what the machine can do."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from dhkd.benchmarks.caches import manifest_of, writer_at
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.operators import seconds_by_part
from dhkd.benchmarks.steps import MEAN, NUM_CLASSES, RECIPE, STD, STUDENT, TEACHER, Loop, stream_of
from dhkd.data.cache.reader import LogitReader
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.render import Normalization
from dhkd.data.stream.signals import ResidentSignals
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

MATRIX, COPIED = 2048, 2**28  # rows of a square matrix, bytes


def profiled(
    steps: int, rounds: int, batch_size: int, images: ImageSet, reader: LogitReader, folder: Path, processes: Processes
) -> list[Figure]:
    """Shares of the operators' own time in both stages, and FLOP/s and bytes/s beside those of the plainest code.

    Stage one writes a view of the images that `steps` batches have, stage two takes so many aligned steps.
    """
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    resident = ResidentSignals(reader, {"logits": ["logits"]}, processes.device)
    stream = stream_of(renderer, resident, batch_size)
    loop = Loop("dhkd", stream, processes)
    normalize = Normalization(MEAN, STD)
    network = build_network(TEACHER, NUM_CLASSES)
    teacher = Teacher(network, normalize, processes)
    rows = images.first(min(len(images), steps * batch_size))
    manifest = manifest_of(1, len(rows), NUM_CLASSES, len(rows))
    source = ResidentRenderer(rows, RECIPE, processes.device)
    numbers = count()

    def cache() -> None:
        writer = writer_at(folder / f"profiled-{next(numbers)}.zarr", manifest)
        write_blocks(teacher, source, writer, batch_size=batch_size, processes=processes)

    view_B, index_B = (keys[:batch_size] for keys in stream.keys(0))
    pixels_BCHW = renderer.pixels(view_B, index_B)
    ready_BCHW = normalize(pixels_BCHW).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        network(ready_BCHW)

    def fetch() -> None:
        normalize(renderer.pixels(view_B, index_B))
        resident.gather(view_B, index_B)

    in_step, in_forward = (_flops(action) for action in (loop.step, forward))
    figures = [
        *_shares("stage one", cache, f"{TEACHER}, {len(rows):,} rows into a cache, batches of {batch_size}"),
        *_shares(
            "stage two", partial(_repeat, loop.step, steps), f"{STUDENT}, dhkd, {steps} steps, batches of {batch_size}"
        ),
    ]
    matrix = torch.rand(MATRIX, MATRIX, device=processes.device)
    block, into = torch.ones(COPIED, dtype=torch.uint8), torch.empty(COPIED, dtype=torch.uint8)
    actions: dict[str, Callable[[], object]] = {
        "forward": forward,
        "step": loop.step,
        "fetch": fetch,
        "product": lambda: matrix @ matrix,
        "copy": lambda: into.copy_(block),
    }
    seconds = interleaved(actions, rounds)
    product = 2 * MATRIX**3 / seconds["product"]
    figures.append(middle("bound: a matrix product", product / 1e9, "GFLOP/s", f"{MATRIX} × {MATRIX}, float32"))
    for name, flops, of in (("forward", in_forward, TEACHER), ("step", in_step, STUDENT)):
        rate, detail = flops / seconds[name], f"{of}, batch {batch_size}, {flops / 1e9:.1f} GFLOP"
        figures.append(middle(f"{name}: FLOP/s", rate / 1e9, "GFLOP/s", detail))
        figures.append(middle(f"{name}: FLOP/s / those of the product", rate / product, "×", detail))
    # Every pixel is read and written as a byte and written as a float; a row of the cache is read and decoded.
    moved = pixels_BCHW.numel() * 6 + batch_size * NUM_CLASSES * 6
    return [*figures, *_beside_a_copy(seconds, moved, batch_size)]


def _beside_a_copy(seconds: Mapping[str, NDArray[np.float64]], moved: int, batch_size: int) -> list[Figure]:
    """How fast a batch is rendered and gathered, `moved` bytes of it, beside a copy of memory and beside a step."""
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
    """What matrix products and convolutions take, once it is warm."""
    _repeat(action, 2)
    with FlopCounterMode(display=False) as flops:
        action()
    return int(flops.get_total_flops())


def _shares(stage: str, action: Callable[[], None], detail: str) -> list[Figure]:
    """Shares of the operators' own time in what the action takes; operators in other threads run beside that."""
    action()
    seconds, passed = seconds_by_part(action)
    return [Figure(f"{stage}: {part}", of_part / passed, "", detail) for part, of_part in seconds.items()]
