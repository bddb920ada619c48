"""Samples for tests: tiny data sets and photographs. Also helpers that read a folder's files and render pixels."""

import io
from pathlib import Path

import numpy as np
import torch
from dhkd.data.images.decoding import photo_of
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.recipes.base import Recipe
from PIL import Image
from torch import Tensor


def make_images(num_samples: int = 37, size: int = 8, num_classes: int = 5, seed: int = 0) -> ImageSet:
    """Build a data set of random pixels; no two images are equal."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num_samples, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(num_samples) % num_classes
    return ImageSet("random", "train", pixels, labels, num_classes, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def make_photo(seed: int, width: int = 60, height: int = 45) -> Image.Image:
    """Build a small photograph of gradients, so that resizing matters, and noise, so that no two are equal."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(2 * np.pi * (rng.uniform(0.5, 3) * x + rng.uniform(0.5, 3) * y + rng.uniform())) for _ in range(3)]
    levels = 128 + 90 * np.stack(waves, axis=2) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def encoded(photo: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Encode the photograph as the bytes of an image file."""
    stream = io.BytesIO()
    photo.save(stream, kind, **options)
    return stream.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder: {path inside the folder: bytes}."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def pixels_of(recipe: Recipe, images_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
    """Render each image with its row of draws, one image at a time: uint8 (B, 3, H, W)."""
    rows = [recipe.pixels(photo_of(image.numpy()), draws_BD[row : row + 1])[0] for row, image in enumerate(images_BCHW)]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)
