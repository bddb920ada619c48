"""Recipes for test images: unchanged, or resized and cropped at the centre. All views of an image are the same."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.images.cuts import Cut, cut_of
from dhkd.data.images.decoding import Photo, pixels_of
from dhkd.data.images.resizing import Interpolation
from dhkd.data.recipes.base import Recipe, Render
from numpy.typing import NDArray
from torch import Tensor


class Unaugmented(Recipe):
    """A recipe without random draws.

    `keeps_pixels` says that images stay as they are. `centre` is the side of the central square that is kept, the
    length to which the shorter side is resized before, and how; it is None if that is not what the recipe does.
    """

    keeps_pixels: bool = False
    centre: tuple[int, int, Interpolation] | None = None

    @property
    def identity(self) -> Mapping[str, object]:
        """Empty, because no cache is made of test images."""
        return {}

    @property
    def num_views(self) -> int:
        """1, because all views are the same."""
        return 1

    def draws(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """Return no draws, int64 (B, 0)."""
        return torch.empty((len(index_B), 0), dtype=torch.int64)

    def at_test(self) -> Recipe:
        """Return the recipe itself."""
        return self


@dataclass(frozen=True)
class AsTheyAre(Unaugmented):
    """Unchanged images of height and width `shape`.

    If `shape` is None, sizes are not checked; this is meant for sets that are known to have only one size.
    """

    shape: tuple[int, int] | None = None

    exact = True
    keeps_pixels = True

    def pixels(self, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
        """Return the whole image, once for each row of draws. Raises `ConfigError` for an image of another size."""
        if self.shape not in (None, (photo.height, photo.width)):
            height, width = self.shape
            raise ConfigError(
                f"expected {width}×{height} pixels, as the first image has, got {photo.width}×{photo.height};"
                f" use views.kind=random-resized-crop for images of several sizes"
            )
        return np.repeat(pixels_of(photo)[None], len(draws_BD), axis=0)

    def resident(self, images_NCHW: Tensor) -> Render:
        """Return a function that renders a whole batch with one gather."""
        return lambda view_B, index_B: images_NCHW[index_B.to(images_NCHW.device)]


@dataclass(frozen=True)
class CenterCrop(Unaugmented):
    """The usual test image: the shorter side resized to `resize` pixels, then the central size × size square."""

    size: int
    resize: int
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ConfigError(f"views.test_resize: expected at least views.size, {self.size}, got {self.resize}")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.size, self.size

    @property
    def centre(self) -> tuple[int, int, Interpolation]:  # type: ignore[override]  # an attribute may be a property
        """The square's side, the length of the shorter side before, and how images are resized."""
        return self.size, self.resize, self.interpolation

    def pixels(self, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
        """Return the central square of the resized image, once for each row of draws."""
        square = pixels_of(cut_of(photo, self.cut(photo.height, photo.width), self.interpolation))
        return np.repeat(square[None], len(draws_BD), axis=0)

    def cut(self, height: int, width: int) -> Cut:
        """Return the cut of an image of `height` × `width` pixels: how it is resized, and which square is kept."""
        shorter = min(height, width)
        resized_width, resized_height = self.resize * width // shorter, self.resize * height // shorter
        # Halves are rounded to the even neighbour, as in torchvision, so that test accuracies can be compared.
        left, top = (round((side - self.size) / 2) for side in (resized_width, resized_height))
        window = (left, top, left + self.size, top + self.size)
        return Cut((0, 0, width, height), (resized_width, resized_height), window, mirrored=False)


@dataclass(frozen=True)
class Covering(Unaugmented):
    """An image of any size, resized until it just covers `height` × `width` pixels, then its central part.

    An image of that size stays as it is.
    """

    height: int
    width: int
    interpolation: Interpolation = "bilinear"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.height, self.width

    def pixels(self, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
        """Return the central part of the resized image, once for each row of draws."""
        part = pixels_of(cut_of(photo, self.cut(photo.height, photo.width), self.interpolation))
        return np.repeat(part[None], len(draws_BD), axis=0)

    def resident(self, images_NCHW: Tensor) -> Render:
        """Return a function that renders a whole batch with one gather, if the images have the size already."""
        if tuple(images_NCHW.shape[2:]) != self.shape:
            return super().resident(images_NCHW)
        return lambda view_B, index_B: images_NCHW[index_B.to(images_NCHW.device)]

    def cut(self, height: int, width: int) -> Cut:
        """Return the cut of an image of `height` × `width` pixels."""
        rows, columns = self.shape
        if width * rows >= height * columns:
            size = rows * width // height, rows
        else:
            size = columns, columns * height // width
        left, top = (round((side - kept) / 2) for side, kept in zip(size, (columns, rows), strict=True))
        return Cut((0, 0, width, height), size, (left, top, left + columns, top + rows), mirrored=False)
