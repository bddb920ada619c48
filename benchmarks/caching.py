"""What stage one, caching, costs beyond the teacher's forward passes, and how long opening a cache takes."""

from statistics import median

import torch
from dhkd.benchmarks.caches import manifest_of, writer_at
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import MEAN, NUM_CLASSES, RECIPE, STD, TEACHER
from dhkd.data.cache.reader import open_cache
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.render import Normalization
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.models.teacher import Teacher

VIEWS, WARM_UP = 2, 1  # views cached in a repetition; repetitions that don't count


def caching(setup: Setup) -> list[Figure]:
    """Measure the rows per second of stage one, relative to the teacher's forward passes on prepared batches."""
    sizes = setup.sizes
    images, batch_size = setup.images.first(sizes.teacher_rows), sizes.teacher_batch
    network = build_network(TEACHER, NUM_CLASSES)
    normalize = Normalization(MEAN, STD)
    renderer = ResidentRenderer(images, RECIPE, setup.processes.device)
    teacher = Teacher(network, normalize, setup.processes)
    batches = [
        normalize(renderer.pixels(torch.full_like(index_B, view), index_B))
        for view in range(VIEWS)
        for index_B in torch.split(torch.arange(len(images)), batch_size)
    ]
    manifest = manifest_of(VIEWS, len(images), NUM_CLASSES, batch_size)
    numbers = range(WARM_UP + sizes.teacher_rounds)
    writers = iter([writer_at(setup.folder / f"written-{number}.zarr", manifest) for number in numbers])

    @torch.inference_mode()
    def forward() -> None:
        for batch_BCHW in batches:
            network(batch_BCHW)

    def cache() -> None:
        write_blocks(teacher, renderer, next(writers), batch_size=batch_size, processes=setup.processes)

    seconds = interleaved({"forward": forward, "cache": cache}, sizes.teacher_rounds, WARM_UP)
    rate = VIEWS * len(images) / median(seconds["cache"])
    detail = f"{TEACHER}, batch {batch_size}, float32: {rate:,.0f} rows/s into the cache"
    ratios = seconds["forward"] / seconds["cache"]
    return [middle("caching / the teacher's forward", ratios, "×", detail, at_least=0.95)]


def opening(setup: Setup) -> list[Figure]:
    """Measure the seconds it takes to open a complete cache and read its first view into memory."""

    def open_and_read() -> None:
        reader = open_cache(setup.cache)
        reader.require_present()
        reader.read_view(0)

    seconds = interleaved({"open": open_and_read}, setup.sizes.open_rounds, warm_up=1)["open"]
    plan = open_cache(setup.cache).plan
    files = 2 * len(plan.blocks())
    detail = f"{plan.num_views} views × {plan.num_samples:,} rows × {NUM_CLASSES}, {files} files, lately written"
    return [middle("opening a cache, reading a view", seconds, "s", detail, at_most=1.0)]
