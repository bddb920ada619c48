"""How fast photographs are decoded, in this process and by a worker.

The photographs are generated JPEG files of 500 × 375 pixels and 100 to 130 kB, which is about the size of ImageNet's
files.
"""

import io
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median
from typing import Literal

import numpy as np
import torch
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.setup import Setup
from dhkd.data.images.decoding_workers import PhotoRenderer
from dhkd.data.images.encoded import EncodedFiles, PhotoSet
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.render import Keys
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
        """Return the encoded bytes of an image."""
        return self._contents[index]

    def name(self, index: int) -> str:
        """Return the number of an image as its name."""
        return str(index)

    def names(self, num_samples: int) -> bytes:
        """Return the numbers of all images, one per line."""
        return b"\n".join(str(index).encode() for index in range(num_samples))

    def expect(self, index_B: Tensor) -> None:
        """Do nothing, because all images are in memory."""


def generated_photographs(number: int, width: int = 500, height: int = 375) -> PhotoSet:
    """Generate different photographs of smooth colours with some noise."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(number):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(smooth, dtype=np.int16) + rng.integers(-24, 25, (height, width, 3), dtype=np.int16)
        stream = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=94)
        contents.append(stream.getvalue())
    labels_N = torch.arange(number) % 10
    return PhotoSet("generated", "train", InMemory(contents), labels_N, 10, MEAN, STD)


def decoding(setup: Setup) -> list[Figure]:
    """Measure how many photographs per second the renderer and a worker decode, crop and resize, relative to Pillow."""
    number = setup.sizes.photographs
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

    # In batches, as in training.
    batches = [(torch.zeros_like(batch_B), batch_B) for batch_B in torch.split(index_B, 64)]
    passes = 4  # of the worker over all photographs, so that starting and ending it count as much as in a short epoch
    actions = {"bare": bare, "renderer": rendered(0, batches), "one worker": rendered(1, passes * batches)}
    seconds = interleaved(actions, setup.sizes.photograph_rounds, warm_up=1)
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
        *(_scaled(setup, images, size) for size in (224, 112)),
        _scaled(setup, generated_photographs(max(4, number // 16), 2000, 1500), 224),
    ]


def _scaled(setup: Setup, images: PhotoSet, size: int) -> Figure:
    """Measure the rate with the decoder "scaled", relative to that with "pillow"."""
    index_B = torch.arange(len(images))
    keys = [(torch.zeros_like(index_B), index_B)]

    def rendered(decoder: Literal["pillow", "scaled"]) -> Callable[[], object]:
        renderer = PhotoRenderer(images, replace(RECIPE, size=size, decoder=decoder), CPU, workers=0)
        return lambda: deque(renderer.render(keys), maxlen=0)

    actions = {"pillow": rendered("pillow"), "scaled": rendered("scaled")}
    seconds = interleaved(actions, setup.sizes.photograph_rounds, warm_up=1, clock=time.process_time)
    rates = {name: len(index_B) / median(values) for name, values in seconds.items()}
    photo = images.files.photo(0)
    detail = f"{len(index_B)} JPEGs, one core: {rates['scaled']:,.0f}, {rates['pillow']:,.0f} images/s"
    name = f"decoder scaled / pillow, {photo.width} × {photo.height} at {size} × {size}"
    return middle(name, seconds["pillow"] / seconds["scaled"], "×", detail)
