"""How fast images in memory are rendered, compared with torchvision's transforms."""

from itertools import count
from statistics import median

import torch
from dhkd.benchmarks.augmenting import augmenting
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.online import PictureSet
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import MEAN, NUM_CLASSES, RECIPE, STD, random_images
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.render import Normalization
from torch.utils.data import DataLoader

BATCH = 128
RENDERED, LOADED = 20, 1  # batches in a repetition, chosen so that neither side is too short to time


def rendering(setup: Setup) -> list[Figure]:
    """Measure the images per second of the renderer, relative to torchvision's transforms in a single process."""
    images = random_images(setup.sizes.render_samples, NUM_CLASSES)
    renderer, normalize = ResidentRenderer(images, RECIPE, setup.processes.device), Normalization(MEAN, STD)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(PictureSet(images), BATCH, shuffle=True, drop_last=True)
    batches = (batch for _ in count() for batch in loader)

    def render() -> None:
        for _ in range(RENDERED):
            view_B = torch.randint(RECIPE.num_crops, (BATCH,), generator=generator)
            index_B = torch.randint(len(images), (BATCH,), generator=generator)
            normalize(renderer.pixels(view_B, index_B))

    def load() -> None:
        for _ in range(LOADED):
            next(batches)

    seconds = interleaved({"render": render, "load": load}, setup.sizes.render_rounds)
    rate = RENDERED * BATCH / median(seconds["render"])
    detail = f"batch {BATCH} of {len(images):,} images, DataLoader without workers: {rate:,.0f} images/s rendered"
    speed_up = (seconds["load"] / LOADED) / (seconds["render"] / RENDERED)
    figure = middle("rendering / torchvision's transforms", speed_up, "×", detail, at_least=20)
    return [figure, *augmenting(setup, images)]
