"""What the benchmark's points (groups of figures) share: how much is measured, and the images and cache."""

from dataclasses import dataclass
from pathlib import Path

from dhkd.benchmarks.caches import complete_cache, manifest_of
from dhkd.benchmarks.steps import NUM_CLASSES, RECIPE, random_images
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.stream.signals import ResidentSignals
from dhkd.stages.processes import Processes


@dataclass(frozen=True)
class Sizes:
    """How much is measured, either in full or in a quick run whose figures mean nothing."""

    samples: int  # in the student's training set and in its cache
    views: int  # in the student's cache
    blocks_per_view: int
    batch_sizes: tuple[int, ...]
    step_rounds: int  # repetitions of one step
    plain_rounds: int  # repetitions of a run of the plain script
    plain_steps: int  # steps in such a run, after the same number of warm-up steps
    pair_rounds: int
    together_rounds: int
    profile_steps: int
    teacher_rows: int  # in a view; every repetition caches two views
    teacher_batch: int
    teacher_rounds: int
    render_samples: int
    render_rounds: int
    open_rounds: int
    store_rounds: int
    store_rows: int  # in a view
    photographs: int
    photograph_rounds: int
    large_samples: int  # in the cache of ImageNet's size
    method_samples: int
    method_rounds: int
    engine_runs: int
    engine_rounds: int
    gpu_steps: int
    gpu_rounds: int
    gpu_samples: int
    shared_samples: int  # in the cache that several processes share
    block_megabytes: float  # size in float32 of the blocks in the measurement of memory


FULL = Sizes(
    samples=5_000,
    views=RECIPE.num_crops,
    blocks_per_view=3,  # gives as many files as a cache of CIFAR-100 with all views and blocks of 4 MiB
    batch_sizes=(64, 128),
    step_rounds=60,
    plain_rounds=3,
    plain_steps=10,
    pair_rounds=7,
    together_rounds=15,
    profile_steps=78,  # an epoch of the 5,000 samples
    teacher_rows=512,
    teacher_batch=256,
    teacher_rounds=10,
    render_samples=50_000,
    render_rounds=20,
    open_rounds=9,
    store_rounds=9,
    store_rows=50_000,
    photographs=256,
    photograph_rounds=9,
    large_samples=1_281_167,
    method_samples=50_000,
    method_rounds=30,
    engine_runs=40,
    engine_rounds=3,
    gpu_steps=400,
    gpu_rounds=5,
    gpu_samples=50_000,
    shared_samples=31_000,  # with all views, 1 GB
    block_megabytes=32.0,
)
QUICK = Sizes(
    samples=500,
    views=8,
    blocks_per_view=1,
    batch_sizes=(16,),
    step_rounds=3,
    plain_rounds=1,
    plain_steps=3,
    pair_rounds=2,
    together_rounds=2,
    profile_steps=4,
    teacher_rows=32,
    teacher_batch=32,
    teacher_rounds=2,
    render_samples=500,
    render_rounds=3,
    open_rounds=3,
    store_rounds=2,
    store_rows=2_000,
    photographs=64,
    photograph_rounds=2,
    large_samples=40_000,
    method_samples=500,
    method_rounds=2,
    engine_runs=4,
    engine_rounds=1,
    gpu_steps=20,
    gpu_rounds=2,
    gpu_samples=2_000,
    shared_samples=500,
    block_megabytes=8.0,
)


@dataclass(frozen=True)
class Setup:
    """A student's random training images, a complete cache of their logits, and a folder for further caches."""

    sizes: Sizes
    folder: Path
    images: ImageSet
    cache: Path
    reader: LogitReader
    processes: Processes

    @property
    def batch_size(self) -> int:
        """The student's batch size in points that measure only one batch size."""
        return self.sizes.batch_sizes[0]

    def renderer(self) -> ResidentRenderer:
        """Build a renderer of the training images."""
        return ResidentRenderer(self.images, RECIPE, self.processes.device)

    def signals(self) -> ResidentSignals:
        """Load the cache's logits into memory."""
        return ResidentSignals(self.reader, {"logits": ["logits"]}, self.processes.device)


def set_up(sizes: Sizes, folder: Path, processes: Processes) -> Setup:
    """Draw the images and write the cache to `folder`."""
    images = random_images(sizes.samples, NUM_CLASSES)
    block_rows = -(-sizes.samples // sizes.blocks_per_view)
    cache = complete_cache(folder / "complete.zarr", manifest_of(sizes.views, sizes.samples, NUM_CLASSES, block_rows))
    return Setup(sizes, folder, images, cache, open_cache(cache), processes)
