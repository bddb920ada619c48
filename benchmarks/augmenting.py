"""How fast views with operations are rendered, beside torchvision's transforms and bare Pillow.

On one thread, every operation alone, whole recipes of images in memory, and photographs.
"""

import io
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import torch
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.photographs import MEAN, RECIPE, STD, InMemory, generated_photographs
from dhkd.benchmarks.pillow_steps import changed_by_pillow
from dhkd.benchmarks.setup import Setup
from dhkd.data.images.decoding_workers import PhotoRenderer
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.augmented import Augmented
from dhkd.data.recipes.base import ENDLESS, Render
from dhkd.data.recipes.operations import OPERATIONS, build_operations
from dhkd.data.recipes.operations.policies.batched_steps import BatchedSteps
from dhkd.data.recipes.operations.policies.magnitudes import NAMES, usual
from dhkd.data.recipes.operations.policies.rand_augment import RandAugment
from dhkd.data.recipes.operations.policies.steps import Step
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

BATCH = 128
RENDERED = 8  # batches in a repetition
MAGNITUDE, BINS = 9, 31
CPU = torch.device("cpu")
Transform = Callable[[Image.Image], Image.Image]

CROP_FLIP: Mapping[str, object] = {"padding": 4, "flip": True, "seed": 0}
CROP, FLIP = v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()
# Settings of `views`, and torchvision's transforms for the same. The rate of the second has a target.
RECIPES: dict[str, tuple[Mapping[str, object], Sequence[Transform], float | None]] = {
    "crop-flip": ({}, [CROP, FLIP], None),
    "crop-flip + randaugment": ({"policy": "randaugment"}, [CROP, FLIP, v2.RandAugment()], 8),
    "crop-flip + trivialaugment": ({"policy": "trivialaugment"}, [CROP, FLIP, v2.TrivialAugmentWide()], None),
    "crop-flip + autoaugment": (
        {"policy": {"name": "autoaugment", "table": "cifar10"}},
        [CROP, FLIP, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)],
        None,
    ),
}
# An example of each operation in `views`, with torchvision's transform for the same.
EXAMPLES: dict[str, tuple[object, Transform]] = {
    "vertical_flip": (0.5, v2.RandomVerticalFlip()),
    "rotation": (15.0, v2.RandomRotation(15)),
    "affine": (
        {"degrees": 15.0, "translate": [0.1, 0.1], "scale": [0.8, 1.2]},
        v2.RandomAffine(15, (0.1, 0.1), (0.8, 1.2)),
    ),
    "policy": ("randaugment", v2.RandAugment()),
    "color_jitter": (
        {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    ),
    "grayscale": (0.2, v2.RandomGrayscale(0.2)),
    "blur": (0.5, v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5)),
    "solarize": (0.5, v2.RandomSolarize(128, 0.5)),
    "random_erasing": (0.5, v2.Compose([v2.PILToTensor(), v2.RandomErasing(0.5)])),
}


class Pictures(Dataset[Tensor]):
    """Images as Pillow's, transformed one at a time, as a data set of torchvision gives them."""

    def __init__(self, images: ImageSet, transforms: Sequence[Transform]) -> None:
        self._pixels = images.images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        self._transform = v2.Compose([*transforms, v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        pixels: Tensor = self._transform(Image.fromarray(self._pixels[index]))
        return pixels


def augmenting(setup: Setup, images: ImageSet) -> list[Figure]:
    """Measure recipes, operations and photographs on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*_recipes(setup, images), *_operations(setup, images), *_steps(setup, images), _photographs(setup)]
    finally:
        torch.set_num_threads(threads)


def _compared(
    name: str,
    render: Callable[[], object],
    load: Callable[[], object],
    setup: Setup,
    images: tuple[int, int],
    target: float | None = None,
) -> Figure:
    """Measure the rate of `render` relative to that of `load`, of which each call handles so many images."""
    seconds = interleaved({"render": render, "load": load}, setup.sizes.render_rounds)
    rates = [number / median(seconds[side]) for side, number in zip(("render", "load"), images, strict=True)]
    detail = f"one thread: {rates[0]:,.0f} images/s; torchvision, Pillow's images: {rates[1]:,.0f}"
    ratio = (seconds["load"] / images[1]) / (seconds["render"] / images[0])
    return middle(f"{name} / torchvision's", ratio, "×", detail, at_least=target)


def _recipes(setup: Setup, images: ImageSet) -> list[Figure]:
    figures = []
    for name, (settings, transforms, target) in RECIPES.items():
        recipe = build_recipe("crop-flip", {**CROP_FLIP, **settings})
        rendered = recipe.without_end().resident(images.images_NCHW)
        loader = DataLoader(Pictures(images, transforms), BATCH, shuffle=True, drop_last=True)
        batches = (batch for _ in count() for batch in loader)
        generator = torch.Generator().manual_seed(0)

        def render(rendered: Render = rendered, generator: torch.Generator = generator) -> None:
            for _ in range(RENDERED):
                view_B, index_B = (
                    torch.randint(most, (BATCH,), generator=generator) for most in (ENDLESS, len(images))
                )
                rendered(view_B, index_B)

        figures.append(_compared(name, render, partial(next, batches), setup, (RENDERED * BATCH, BATCH), target))
    return figures


def _operations(setup: Setup, images: ImageSet) -> list[Figure]:
    """Measure each operation of `views` alone, without its draws."""
    index_B = torch.arange(BATCH)
    pixels_BCHW, pictures = _first(images)
    figures = []
    for name in (name for name in OPERATIONS if name in EXAMPLES):
        setting, transform = EXAMPLES[name]
        operation = build_operations({name: setting})[name]
        draws_BD = operation.draws(0, index_B, index_B)
        figures.append(
            _compared(
                f"operation {name}",
                partial(operation.apply, pixels_BCHW, draws_BD),
                partial(_each, transform, pictures),
                setup,
                (BATCH, len(pictures)),
            )
        )
    return figures


def _steps(setup: Setup, images: ImageSet) -> list[Figure]:
    """Measure each operation of the policies alone, for a whole batch."""
    pixels_BCHW, pictures = _first(images)
    height, width = pixels_BCHW.shape[2:]
    step_B1 = torch.zeros(BATCH, 1, dtype=torch.int64)
    figures = []
    for name in (*NAMES, "Invert"):
        step = usual(height, width, BINS).step(name, MAGNITUDE)
        compiled = BatchedSteps([step], height, width, CPU)
        seconds = interleaved(
            {
                "ours": partial(compiled.apply, pixels_BCHW, step_B1),
                "pillow": partial(_each, partial(_array_by_pillow, step), pictures),
            },
            setup.sizes.render_rounds,
        )
        rates = BATCH / median(seconds["ours"]), len(pictures) / median(seconds["pillow"])
        detail = f"one thread: {rates[0]:,.0f} images/s; bare Pillow: {rates[1]:,.0f}"
        ratio = (seconds["pillow"] / len(pictures)) / (seconds["ours"] / BATCH)
        figures.append(middle(f"policies' {name} / bare Pillow", ratio, "×", detail))
    return figures


def _first(images: ImageSet) -> tuple[Tensor, list[Image.Image]]:
    pixels_BCHW = images.images_NCHW[:BATCH].contiguous()
    return pixels_BCHW, [Image.fromarray(pixels) for pixels in pixels_BCHW[:32].permute(0, 2, 3, 1).numpy()]


def photographs(number: int) -> PhotoSet:
    """Return photographs of the folder that DHKD_TEST_PHOTOS names, or generated ones."""
    folder = os.environ.get("DHKD_TEST_PHOTOS")
    files = sorted(Path(folder).glob("*/*.JPEG"))[:number] if folder else []
    if not files:
        return generated_photographs(number)
    contents = [file.read_bytes() for file in files]
    return PhotoSet("photographs", "train", InMemory(contents), torch.arange(len(files)) % 10, 10, MEAN, STD)


def _photographs(setup: Setup) -> Figure:
    """Measure photographs with RandAugment, relative to bare Pillow: decoding, the same boxes, the same operations."""
    images = photographs(setup.sizes.photographs)
    files, index_B = images.files, torch.arange(len(images))
    policy = RandAugment()
    recipe = Augmented(RECIPE, {"policy": policy}, RECIPE.seed)
    assert isinstance(files, InMemory)
    view_B = torch.zeros_like(index_B)
    boxes = RECIPE.draws(view_B, index_B).tolist()
    step_BS = policy.chosen(policy.draws(RECIPE.seed, view_B, index_B)).tolist()
    steps = policy.steps(224, 224)

    def bare() -> None:
        for index, numbers in enumerate(step_BS):
            with Image.open(io.BytesIO(files.read(index))) as opened:
                photo = opened.convert("RGB")
            cut = RECIPE.cut(boxes[index], photo.height, photo.width)
            view = photo.crop(cut.box).resize(cut.size, Image.Resampling.BILINEAR)
            if cut.mirrored:
                view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for place in numbers:
                view = changed_by_pillow(view, steps[place])
            np.asarray(view)

    keys = [(torch.zeros_like(batch_B), batch_B) for batch_B in torch.split(index_B, 64)]
    renderer = PhotoRenderer(images, recipe, CPU, workers=0)
    actions = {"bare": bare, "ours": lambda: deque(renderer.render(keys), maxlen=0)}
    seconds = interleaved(actions, setup.sizes.photograph_rounds, warm_up=1, clock=time.process_time)
    rates = {name: len(index_B) / median(values) for name, values in seconds.items()}
    detail = f"{len(index_B)} photographs, 224 × 224: {rates['ours']:,.0f} images/s; bare Pillow: {rates['bare']:,.0f}"
    name = "random-resized-crop + randaugment / bare Pillow, one core"
    return middle(name, seconds["bare"] / seconds["ours"], "×", detail, at_least=0.9)


def _each(change: Callable[[Image.Image], object], pictures: Sequence[Image.Image]) -> None:
    """Change one picture after the other."""
    for picture in pictures:
        change(picture)


def _array_by_pillow(step: Step, picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(changed_by_pillow(picture, step))
