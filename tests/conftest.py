"""What several test files need: tiny data, tiny caches, and where the real data is."""

import gc
import io
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.images.in_memory import ImageSet
from dhkd.stages.processes import Processes
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def make_images(num_samples: int = 37, size: int = 8, num_classes: int = 5, seed: int = 0) -> ImageSet:
    """A data set of random pixels, in which no two images are alike."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num_samples, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(num_samples) % num_classes
    return ImageSet("random", "train", pixels, labels, num_classes, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def make_photo(seed: int, width: int = 60, height: int = 45) -> Image.Image:
    """A small photograph: smooth gradients, so that resizing matters, and noise, so that no two are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(2 * np.pi * (rng.uniform(0.5, 3) * x + rng.uniform(0.5, 3) * y + rng.uniform())) for _ in range(3)]
    levels = 128 + 90 * np.stack(waves, axis=2) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def encoded(photo: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The photograph as the bytes of a file."""
    stream = io.BytesIO()
    photo.save(stream, kind, **options)
    return stream.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of its own at `path`, `size` large, to be filled."""
    path.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the program mount")
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def processes() -> Iterator[Processes]:
    """This process alone."""
    alone = Processes("float32", cpu=True)
    yield alone
    alone.end()


@pytest.fixture
def no_workers_of_the_last_test() -> Iterator[None]:
    """A traceback keeps a rendering alive; collected with it as one cycle, each worker would be waited for for 5 s."""
    yield
    if multiprocessing.active_children():
        for rendered in [thing for thing in gc.get_objects() if type(thing) is _MultiProcessingDataLoaderIter]:
            rendered._shutdown_workers()


@pytest.fixture
def images() -> ImageSet:
    return make_images()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with real CIFAR-100 in torchvision's layout."""
    folder = os.environ.get("DHKD_TEST_DATA")
    if not folder or not (Path(folder) / "cifar-100-python").is_dir():
        pytest.skip("needs real CIFAR-100: set DHKD_TEST_DATA to a folder that holds cifar-100-python/")
    return Path(folder)


@pytest.fixture(scope="session")
def real_teacher() -> Path:
    """A real resnet56 checkpoint for CIFAR-100 in the published layout."""
    folder = os.environ.get("DHKD_TEST_TEACHERS")
    if not folder or not (Path(folder) / "resnet56_cifar100.pth").is_file():
        pytest.skip("needs a real teacher: set DHKD_TEST_TEACHERS to a folder that holds resnet56_cifar100.pth")
    return Path(folder) / "resnet56_cifar100.pth"


@pytest.fixture(scope="session")
def photographs() -> Path:
    """A folder of real photographs, one folder for each class."""
    folder = os.environ.get("DHKD_TEST_PHOTOS")
    if not folder or not any(Path(folder).glob("*/*.JPEG")):
        pytest.skip("needs real photographs: set DHKD_TEST_PHOTOS to a folder that holds CLASS/NAME.JPEG")
    return Path(folder)
