"""A random box of a photograph, resized to a square: the usual augmentation for ImageNet.

The draws of a key (view, index), i.e. its random integers, and the photograph's size determine a cut, i.e. which part
of the photograph is resized. All arithmetic is on integers, so the cut is the same on every machine. The pixels of a
cut depend on the decoder and on Pillow's resizing, so both are part of the recipe's identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from functools import cached_property
from math import isqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from dhkd.data.draws.keyed import BITS, keyed_draws
from dhkd.data.draws.philox import Domain
from dhkd.data.errors import ConfigError
from dhkd.data.images.batched_cuts import cutter_of
from dhkd.data.images.cuts import Box, Cut, cut_of
from dhkd.data.images.decoding import Photo
from dhkd.data.images.pictures import Pictures
from dhkd.data.images.reduced import FACTORS, reduced_of
from dhkd.data.images.resizing import Interpolation
from dhkd.data.recipes.base import Recipe, Render
from dhkd.data.recipes.unaugmented import CenterCrop
from numpy.typing import NDArray
from torch import Tensor

ATTEMPTS = 10  # boxes that are tried before the central one is taken; the usual number
RATIOS = 4096  # number of different aspect ratios
FRACTION = 24  # fractional bits of an aspect ratio
DOUBTFUL = 1e-6  # pixels; float64 is more exact by far
HALF = FRACTION + BITS >> 1  # fractional bits of the square root of area × aspect ratio


@dataclass(frozen=True)
class RandomResizedCrop(Recipe):
    """A box of random area and aspect ratio, resized to size × size pixels, mirrored half of the time.

    The box's share of the photograph's area is uniform between the bounds in `scale`; the logarithm of width / height
    is uniform between the logarithms of the bounds in `ratio`. Up to ten boxes are drawn until one fits. If none fits,
    the largest central box with an allowed ratio is taken (after Szegedy et al., 2015, section 6, as usual for
    ImageNet). The number of views has no limit. For a test image, the shorter side is resized to `test_resize` and the
    central square of `test_size` pixels is kept. None stands for test_size · 256 / 224 and for `size`. Both are not
    part of the identity, the values that a cache records and compares. With the decoder "scaled", JPEG files of
    training images are decoded at half, a quarter or an eighth of their size for views that need no more (`reduction`).
    """

    size: int
    flip: bool
    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    test_resize: int | None = None
    test_size: int | None = None
    decoder: Literal["pillow", "scaled"] = "pillow"

    kind: ClassVar[str] = "random-resized-crop"
    version: ClassVar[int] = 1
    interpolation: ClassVar[Interpolation] = "bilinear"
    num_views: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ConfigError(f"views.size: expected 1 to 4096 pixels, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"views.scale: expected 0 < smallest <= largest <= 1, got {self.scale}")
        if not 0.01 <= self.ratio[0] <= self.ratio[1] <= 100:
            raise ConfigError(f"views.ratio: expected 0.01 <= smallest <= largest <= 100, got {self.ratio}")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"views.seed: expected 0 to 2^63 - 1, got {self.seed}")
        if self.test_size is not None and not 1 <= self.test_size <= (self.test_resize or 4096):
            most = "4096 pixels" if self.test_resize is None else f"views.test_resize, {self.test_resize}"
            raise ConfigError(f"views.test_size: expected 1 to {most}, got {self.test_size}")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.size, self.size

    @cached_property
    def identity(self) -> dict[str, object]:
        """The recipe as plain values, which a cache records and compares."""
        return {
            "kind": self.kind,
            "version": self.version,
            "size": self.size,
            "scale": list(self.scale),
            "ratio": list(self.ratio),
            "flip": self.flip,
            "seed": self.seed,
            "decoder": self.decoder,
            "resize": "pillow bilinear, antialiased",
        }

    def draws(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """Return the draws of each key, 32-bit integers as int64 (B, 41).

        Each of the ten attempts has four draws (area, ratio, top, left); the last draw decides on the flip.
        """
        return keyed_draws(self.seed, Domain.VIEW, view_B, index_B, 4 * ATTEMPTS + 1)

    def pixels(self, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
        """Compute from a photograph the pixels that each row of draws describes: uint8 (B, size, size, C)."""
        return self.pictures(photo, draws_BD).array

    def pictures(self, photo: Photo, draws_BD: Tensor) -> Pictures:
        """Compute from a photograph the photos that each row of draws describes."""
        _, height, width = reduced_of(photo)
        cuts = [self.cut(draws, height, width) for draws in draws_BD.tolist()]
        return Pictures([cut_of(photo, cut, self.interpolation) for cut in cuts])

    @property
    def reduces(self) -> bool:  # type: ignore[override]  # a class's attribute may be a property
        """Whether the decoder is "scaled"."""
        return self.decoder == "scaled"

    def reduction(self, height: int, width: int, draws: Sequence[int]) -> int:
        """Return the largest factor at which both sides of the box still have at least `size` pixels."""
        left, top, right, bottom = self.cut(list(draws), height, width).box
        shorter = min(right - left, bottom - top)
        return next((factor for factor in FACTORS if shorter >= factor * self.size), 1)

    def resident(self, images_NCHW: Tensor) -> Render:
        """Return a function that renders a whole batch at once; large images are rendered one by one."""
        if self.reduces:
            raise ConfigError(
                "views.decoder: scaled: expected image files, which are decoded at the size that a view needs, got"
                " images in memory; leave it out"
            )
        cut = cutter_of(images_NCHW, self.size, self.interpolation)
        if cut is None:
            return super().resident(images_NCHW)
        device, (height, width) = images_NCHW.device, images_NCHW.shape[2:]

        def render(view_B: Tensor, index_B: Tensor) -> Tensor:
            index_B = index_B.to(device)
            draws_BD = self.draws(view_B.to(device), index_B)
            mirrored_B = (draws_BD[:, -1] >> BITS - 1 == 1) & self.flip
            return cut(index_B, self.boxes(draws_BD, height, width), mirrored_B)

        return render

    def at_test(self) -> CenterCrop:
        """Return the recipe for test images, which are resized and cropped at the centre."""
        size = self.test_size or self.size
        return CenterCrop(size, self.test_resize or round(size * 256 / 224))

    def at_size(self, size: int, interpolation: Interpolation) -> "AtAnotherSize":
        """Return the recipe that resizes the same boxes to another size.

        Test images have this size, too; `test_resize` changes in proportion.
        """
        shown = self.test_size or self.size
        test_resize = None if self.test_resize is None else round(self.test_resize * size / shown)
        return AtAnotherSize(
            size,
            self.flip,
            self.seed,
            self.scale,
            self.ratio,
            test_resize,
            decoder=self.decoder,
            interpolation=interpolation,
        )

    def cut(self, draws: list[int], height: int, width: int) -> Cut:
        """Compute from the draws of one key which part of a photograph of `height` × `width` pixels is resized."""
        window = (0, 0, self.size, self.size)
        return Cut(self._box(draws, height, width), window[2:], window, self.flip and draws[-1] >> (BITS - 1) == 1)

    def boxes(self, draws_BD: Tensor, height: int, width: int) -> Tensor:
        """Compute the box of `cut` for each row of draws, int64 (B, 4), on their device.

        float64 gives all sides but those very near to a half of a pixel; `cut` computes these.
        """
        area, ratio, top, left = draws_BD[:, :-1].reshape(-1, ATTEMPTS, 4).unbind(2)
        least, most = self._areas
        target = (height * width * (least + _product(area, most - least))).double() / (1 << BITS)
        aspect = torch.tensor(self._ratios, device=draws_BD.device)[ratio * RATIOS >> BITS].double() / (1 << FRACTION)
        exact = torch.stack([(target * aspect).sqrt(), (target / aspect).sqrt()])
        box_width, box_height = (exact + 0.5).floor().long()
        fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
        first_B1 = fits.int().argmax(1, keepdim=True)
        across, down, top, left = (drawn.gather(1, first_B1)[:, 0] for drawn in (box_width, box_height, top, left))
        top, left = top * (height - down + 1) >> BITS, left * (width - across + 1) >> BITS
        central = torch.tensor(self._central(height, width), device=draws_BD.device)
        box_B4 = torch.where(fits.any(1)[:, None], torch.stack([left, top, left + across, top + down], 1), central)
        doubtful = ((exact - exact.floor() - 0.5).abs() < DOUBTFUL).any(0).any(1)
        for row in doubtful.nonzero()[:, 0].tolist():
            box_B4[row] = torch.tensor(self._box(draws_BD[row].tolist(), height, width))
        return box_B4

    def _box(self, draws: list[int], height: int, width: int) -> Box:
        least, most = self._areas
        for area, ratio, top, left in zip(*(draws[column:-1:4] for column in range(4)), strict=True):
            # The box's area in units of 2^-32 pixels, and its width / height in units of 2^-24.
            target = height * width * (least + ((most - least) * area >> BITS))
            aspect = self._ratios[ratio * RATIOS >> BITS]
            box_width = _rounded_root(target * aspect)
            box_height = _rounded_root((target << 2 * FRACTION) // aspect)
            if 0 < box_width <= width and 0 < box_height <= height:
                y = top * (height - box_height + 1) >> BITS
                x = left * (width - box_width + 1) >> BITS
                return x, y, x + box_width, y + box_height
        return self._central(height, width)

    def _central(self, height: int, width: int) -> Box:
        narrowest, widest = self._ratio_bounds
        box_width, box_height = width, height
        if (width << FRACTION) < height * narrowest:
            box_height = max(1, (2 * width << FRACTION) // narrowest + 1 >> 1)
        elif (width << FRACTION) > height * widest:
            box_width = max(1, (2 * height * widest >> FRACTION) + 1 >> 1)
        x, y = (width - box_width) // 2, (height - box_height) // 2
        return x, y, x + box_width, y + box_height

    @cached_property
    def _areas(self) -> tuple[int, int]:
        least, most = (int(Decimal(share) * (1 << BITS)) for share in self.scale)
        return least, most

    @cached_property
    def _ratio_bounds(self) -> tuple[int, int]:
        narrowest, widest = (int(Decimal(ratio) * (1 << FRACTION)) for ratio in self.ratio)
        return narrowest, widest

    @cached_property
    def _ratios(self) -> list[int]:
        """The aspect ratios, with evenly spaced logarithms, as integers with `FRACTION` fractional bits."""
        # Decimal rounds ln and exp correctly; the C library's results differ from machine to machine.
        with localcontext() as context:
            context.prec = 30
            low, high = (Decimal(ratio).ln() for ratio in self.ratio)
            steps = ((2 * step + 1) * (high - low) / (2 * RATIOS) for step in range(RATIOS))
            return [int(((low + step).exp() * (1 << FRACTION)).to_integral_value()) for step in steps]


@dataclass(frozen=True)
class AtAnotherSize(RandomResizedCrop):
    """Shows the boxes and flips of a `RandomResizedCrop` of another size, for a network that takes larger images."""

    interpolation: Interpolation = "bilinear"  # type: ignore[misc]  # fixed in the recipe, a field here

    def at_test(self) -> CenterCrop:
        """Return the recipe for test images of this size."""
        return replace(super().at_test(), interpolation=self.interpolation)


def _product(draws: Tensor, factor: int) -> Tensor:
    """Return draws · factor / 2³², rounded down, for a factor of up to 2³², in two parts that fit into 63 bits."""
    return factor * (draws >> BITS // 2) + (factor * (draws & (1 << BITS // 2) - 1) >> BITS // 2) >> BITS // 2


def _rounded_root(number: int) -> int:
    """Return √(number / 2^56), rounded to the nearest integer."""
    return isqrt(number) + (1 << HALF - 1) >> HALF
