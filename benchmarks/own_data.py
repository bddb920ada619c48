"""Measures the cost of common data formats: arrays against CIFAR-100's files, the datasets library against bare Pillow.

The arrays and CIFAR-100's files hold the same random images, in their usual layouts: `.npy` files of (N, H, W, C),
which are memory-mapped, and a pickle with its md5.
"""

import hashlib
import io
import os
import pickle
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.photographs import CPU, InMemory, generated_photographs
from dhkd.benchmarks.photographs import RECIPE as CUTS
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import NUM_CLASSES, RECIPE, random_images
from dhkd.data.images.base import Decoding, Images
from dhkd.data.sources import cifar100, load_source
from dhkd.data.sources.base import Place
from PIL import Image

BATCH, RENDERED = 128, 20  # images in a batch, batches in a repetition


def own_data(setup: Setup) -> list[Figure]:
    """Compare arrays with CIFAR-100's files, and images of the datasets library with bare Pillow."""
    return [*_arrays(setup), _huggingface(setup)]


def _arrays(setup: Setup) -> list[Figure]:
    """Measure the start (reading, hashing, preparing all crops) and the rendering of arrays and CIFAR-100's files."""
    folder = setup.folder / "as-arrays"
    digests = _write(folder, setup.sizes.render_samples)

    def started(source: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        images: Images = load_source(source, "train", Place(str(folder)))
        images.fingerprint()
        renderer = images.renderer(RECIPE, setup.processes.device, Decoding())
        return lambda view_B, index_B: next(iter(renderer.render([(view_B, index_B)])))

    generator = torch.Generator().manual_seed(0)

    def render(pixels: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        for _ in range(RENDERED):
            view_B = torch.randint(RECIPE.num_crops, (BATCH,), generator=generator)
            pixels(view_B, torch.randint(setup.sizes.render_samples, (BATCH,), generator=generator))

    names = ("arrays", "cifar100")
    with patch.dict(cifar100.MD5, digests):  # the images are random, so the official md5 doesn't match
        starts = interleaved({name: lambda name=name: started(name) for name in names}, setup.sizes.open_rounds)  # type: ignore[misc]
        pixels = {name: started(name) for name in names}
    rates = interleaved(
        {name: lambda name=name: render(pixels[name]) for name in names},  # type: ignore[misc]
        setup.sizes.render_rounds,
    )
    rate = {name: RENDERED * BATCH / median(rates[name]) for name in names}
    of_start = (
        f"{setup.sizes.render_samples:,} images: {median(starts['arrays']):.2f} s, {median(starts['cifar100']):.2f} s"
    )
    of_rate = f"batch {BATCH}: {rate['arrays']:,.0f}, {rate['cifar100']:,.0f} images/s"
    return [
        middle("start from arrays / cifar100", starts["arrays"] / starts["cifar100"], "×", of_start, at_most=1.1),
        middle("rendering arrays / cifar100", rates["cifar100"] / rates["arrays"], "×", of_rate, at_least=0.95),
    ]


def _write(folder: Path, number: int) -> dict[str, str]:
    """Write random images in both layouts; return the md5 of the file in CIFAR-100's layout."""
    images = random_images(number, NUM_CLASSES)
    (folder / cifar100.FOLDER).mkdir(parents=True)
    assert images.labels_N is not None
    pixels_NCHW, labels_N = images.images_NCHW.numpy(), images.labels_N.numpy()
    np.save(folder / "train-images.npy", np.ascontiguousarray(pixels_NCHW.transpose(0, 2, 3, 1)))
    np.save(folder / "train-labels.npy", labels_N)
    content = pickle.dumps({"data": pixels_NCHW.reshape(number, -1), "fine_labels": labels_N.tolist()})
    (folder / cifar100.FOLDER / "train").write_bytes(content)
    return {"train": hashlib.md5(content, usedforsecurity=False).hexdigest()}


def _huggingface(setup: Setup) -> Figure:
    """Measure how many photographs per second are decoded, cropped and resized from an Arrow table."""
    import datasets

    number = setup.sizes.photographs
    files = generated_photographs(number).files
    assert isinstance(files, InMemory)
    contents = [files.read(index) for index in range(number)]
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    rows = {
        "image": [{"bytes": content, "path": None} for content in contents],
        "label": [i % 10 for i in range(number)],
    }
    folder = setup.folder / "as-tables" / "train"
    datasets.Dataset.from_dict(rows, features).save_to_disk(os.fspath(folder))
    images = load_source("huggingface", "train", Place(str(folder.parent)))
    index_B = torch.arange(number)
    keys = (torch.zeros_like(index_B), index_B)
    cuts = [CUTS.cut(draws, 375, 500) for draws in CUTS.draws(*keys).tolist()]

    def bare() -> None:
        for content, cut in zip(contents, cuts, strict=True):
            with Image.open(io.BytesIO(content)) as photo:
                np.asarray(photo.crop(cut.box).resize(cut.size, Image.Resampling.BILINEAR))

    batches = [(torch.zeros_like(batch_B), batch_B) for batch_B in torch.split(index_B, 64)]
    renderer = images.renderer(CUTS, CPU, Decoding())
    actions = {"bare": bare, "table": lambda: deque(renderer.render(batches), maxlen=0)}
    seconds = interleaved(actions, setup.sizes.photograph_rounds, warm_up=1)
    rates = {name: number / median(values) for name, values in seconds.items()}
    detail = f"{number} JPEGs of 500 × 375: {rates['table']:,.0f}, {rates['bare']:,.0f} images/s"
    return middle("huggingface / bare Pillow, one core", seconds["bare"] / seconds["table"], "×", detail, at_least=0.9)
