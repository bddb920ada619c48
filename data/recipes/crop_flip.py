"""Pad, crop, mirror: the usual augmentation for CIFAR. The number of different views is finite."""

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from dhkd.data.disk.shared_tensors import Keep, private
from dhkd.data.draws.keyed import DrawBlock, below, draws_of_blocks
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from dhkd.data.errors import ConfigError
from dhkd.data.images.decoding import Photo, pixels_of
from dhkd.data.recipes.base import Recipe, Render, RenderDrawn
from dhkd.data.recipes.unaugmented import AsTheyAre
from numpy.typing import NDArray
from torch import Tensor

PaddingMode = Literal["zero", "edge", "reflect", "symmetric"]


@dataclass(frozen=True)
class CropFlip(Recipe):
    """Pads, crops to the original size, mirrors half of the time.

    There are (2·padding + 1)² crops, and with flips twice as many (162 for padding 4). View v of sample i is the v-th
    element of a permutation of all crops, seeded by (seed, i). So for any V, the first V views of each sample are an
    unbiased sample of the crops; a cache can be extended by more views; and all views together show every crop once.

    `padding_mode` says what the padding shows: zero, black; edge, the border's pixels; reflect, the image mirrored at
    its border pixels; symmetric, the same with the border pixels twice.
    """

    padding: int
    flip: bool
    seed: int
    padding_mode: PaddingMode = "zero"

    kind: ClassVar[str] = "crop-flip"
    version: ClassVar[int] = 1
    shape: ClassVar[None] = None
    exact = True

    # By a factory, because a function that is a class's attribute would become a method.
    _keep: Keep = field(default_factory=lambda: private, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.padding <= 64:
            raise ConfigError(f"views.padding: expected 0 to 64 pixels, got {self.padding}")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"views.seed: expected 0 to 2^63 - 1, got {self.seed}")

    @property
    def num_offsets(self) -> int:
        """The number of positions that a crop can have along one axis."""
        return 2 * self.padding + 1

    @property
    def num_crops(self) -> int:
        """The number of different crops, a mirrored one counting as another."""
        return self.num_offsets**2 * (2 if self.flip else 1)

    @property
    def num_views(self) -> int | None:
        """The number of different views, one for each crop."""
        return self.num_crops

    @cached_property
    def identity(self) -> dict[str, object]:
        """The recipe as plain values, which a cache records and compares."""
        mode = {} if self.padding_mode == "zero" else {"padding_mode": self.padding_mode}
        return {
            "kind": self.kind,
            "version": self.version,
            "padding": self.padding,
            **mode,
            "flip": self.flip,
            "seed": self.seed,
        }

    def orders(self, start: int, stop: int) -> Tensor:
        """Return the number of the crop that each view of samples `start` to `stop` shows, int16 (N, num_crops)."""
        raw = raw_rows(self.seed, Domain.VIEW, 0, start, stop, self.num_crops)
        return torch.from_numpy(permutations(raw).astype(np.int16))

    def draws(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """Return the draws (dy, dx, flip) of each key, int64 (B, 3): offsets in [0, 2·padding], and flip 0 or 1."""
        rows = {index: self.orders(index, index + 1)[0] for index in set(index_B.tolist())}
        element_B = torch.tensor(
            [int(rows[index][view]) for view, index in zip(view_B.tolist(), index_B.tolist(), strict=True)],
            dtype=torch.int64,
        )
        return self.decode(element_B)

    def decode(self, element_B: Tensor) -> Tensor:
        """Convert crop numbers (any integer dtype) to draws (dy, dx, flip), int64 (B, 3)."""
        element_B = element_B.long()
        flips = 2 if self.flip else 1
        position_B, flip_B = element_B // flips, element_B % flips
        return torch.stack([position_B // self.num_offsets, position_B % self.num_offsets, flip_B], dim=1)

    def windows(self, images_NCHW: Tensor, *, planar: bool = False) -> Tensor:
        """Return every crop of every image as a strided tensor over padded copies: plain and, with flips, mirrored.

        The result is uint8 (N, flips, num_offsets, num_offsets, H, W·C), or (…, C, H, W) if `planar` is true; `flips`
        is 2 if `flip` is true, else 1. The innermost axis is a contiguous run of bytes, so that gathering a batch is
        several times faster than indexing pixels. Only the copies take memory: (H + 2p)(W + 2p)C bytes for each copy of
        an image, where p is the padding and C the number of channels.
        """
        num, channels, height, width = images_NCHW.shape
        contiguous = images_NCHW.contiguous()  # padding takes 1.5 times as long in other layouts
        padded = padded_by(self.padding, self.padding_mode, contiguous)
        copies = torch.stack([padded, padded.flip(-1)] if self.flip else [padded], dim=1)
        if planar:
            copies = self._keep(copies)
        shape = (num, copies.shape[1], self.num_offsets, self.num_offsets)
        if planar:
            per_image, per_copy, per_plane, per_row, _ = copies.stride()
            return copies.as_strided(
                (*shape, channels, height, width), (per_image, per_copy, per_row, 1, per_plane, per_row, 1)
            )
        stored = self._keep(copies.permute(0, 1, 3, 4, 2).contiguous())  # (N, flips, H + 2p, W + 2p, C)
        per_image, per_copy, per_row, per_pixel, _ = stored.stride()
        return stored.as_strided(
            (*shape, height, width * channels), (per_image, per_copy, per_row, per_pixel, per_row, 1)
        )

    def gather(self, windows: Tensor, row_B: Tensor, draws: Tensor) -> Tensor:
        """Gather B crops from `windows`: crop b is of image `row_B[b]`, as `draws[b]` (dy, dx, flip) describes.

        The result is uint8 (B, C, H, W), channels last in memory unless the windows are planar.
        """
        dy_B, dx_B, flip_B = draws.unbind(1)
        # A mirrored crop is a crop of the mirrored image, with dx counted from the other side.
        dx_B = torch.where(flip_B == 1, 2 * self.padding - dx_B, dx_B)
        batch = _at(windows, (row_B, flip_B, dy_B, dx_B))
        if batch.ndim == 4:
            return batch
        _, height, row_bytes = batch.shape
        channels = windows.stride(3)
        return batch.view(len(row_B), height, row_bytes // channels, channels).permute(0, 3, 1, 2)

    def pixels(self, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
        """Crop one image with each row of draws: uint8 (B, H, W, C); pixels are copied without arithmetic."""
        image_1CHW = torch.from_numpy(pixels_of(photo).copy()).permute(2, 0, 1)[None]
        row_B = torch.zeros(len(draws_BD), dtype=torch.int64)
        return self.gather(self.windows(image_1CHW), row_B, draws_BD).permute(0, 2, 3, 1).numpy()

    def kept_by(self, keep: Keep) -> "CropFlip":
        """Return the recipe that passes the padded images in memory to `keep`."""
        recipe = copy.copy(self)
        object.__setattr__(recipe, "_keep", keep)
        return recipe

    def at_test(self) -> AsTheyAre:
        """Return the recipe that leaves images unchanged."""
        return AsTheyAre()

    def without_end(self) -> "CropFlipWithoutEnd":
        """Return the recipe whose first views are those of this one, and whose further views show random crops."""
        return CropFlipWithoutEnd(self.padding, self.flip, self.seed, self.padding_mode)

    def resident(self, images_NCHW: Tensor) -> Render:
        """Return a function that renders a whole batch with one gather.

        The function holds each sample's order of views and the padded images (480 MB for CIFAR-100 with flips).
        """
        device = images_NCHW.device
        windows, orders = self.windows(images_NCHW), self.orders(0, len(images_NCHW)).to(device)

        def render(view_B: Tensor, index_B: Tensor) -> Tensor:
            view_B, index_B = view_B.to(device), index_B.to(device)
            return self.gather(windows, index_B, self.decode(orders[index_B, view_B]))

        return render


def _at(windows: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    """Return `windows[places]`. NumPy copies a run of bytes at once, while torch copies byte by byte on a CPU."""
    if windows.device.type == "cpu":
        return torch.from_numpy(windows.numpy()[tuple(place.numpy() for place in places)])
    return windows[places]


@dataclass(frozen=True)
class CropFlipWithoutEnd(CropFlip):
    """Shows the crops of a `CropFlip` in its first `num_crops` views, and in each further view a random crop.

    Pixel operations and mixing make more views than there are crops.
    """

    blocks = (DrawBlock(Domain.CROP, 1),)

    @property
    def num_views(self) -> None:
        """There is no limit."""
        return

    def draws(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """Return the draws (dy, dx, flip) of each key, int64 (B, 3): offsets in [0, 2·padding], and flip 0 or 1."""
        orders = {index: self.orders(index, index + 1)[0] for index in set(index_B.tolist())}
        element_B = self._further(draws_of_blocks(self.seed, self.blocks, view_B, index_B))
        for row, (view, index) in enumerate(zip(view_B.tolist(), index_B.tolist(), strict=True)):
            if view < self.num_crops:
                element_B[row] = orders[index][view]
        return self.decode(element_B)

    def resident(self, images_NCHW: Tensor) -> Render:
        """Return a function that renders a whole batch with one gather; it holds what `CropFlip.resident` holds."""
        render, device = self.resident_drawn(images_NCHW), images_NCHW.device

        def draw_and_render(view_B: Tensor, index_B: Tensor) -> Tensor:
            view_B, index_B = view_B.to(device), index_B.to(device)
            pixels_BCHW = render(view_B, index_B, draws_of_blocks(self.seed, self.blocks, view_B, index_B))
            return pixels_BCHW.contiguous(memory_format=torch.channels_last)

        return draw_and_render

    def resident_drawn(self, images_NCHW: Tensor) -> RenderDrawn:
        """Return a function that renders a whole batch with one gather; it holds what `CropFlip.resident` holds."""
        # Operations on pixels work on planes.
        windows = self.windows(images_NCHW, planar=True)
        orders = self.orders(0, len(images_NCHW)).to(images_NCHW.device)

        def render(view_B: Tensor, index_B: Tensor, draws: list[Tensor]) -> Tensor:
            first_B = orders[index_B, view_B.clamp(max=self.num_crops - 1)].long()
            element_B = torch.where(view_B < self.num_crops, first_B, self._further(draws))
            return self.gather(windows, index_B, self.decode(element_B))

        return render

    def _further(self, draws: list[Tensor]) -> Tensor:
        """Return the number of the crop that each view would show if it were a further one, int64 (B,)."""
        return below(draws[0][:, 0], self.num_crops)


def padded_by(padding: int, mode: PaddingMode, images_NCHW: Tensor) -> Tensor:
    """Pad images on each side. Raises `ConfigError` if a mirrored image has fewer pixels than the padding."""
    if mode == "zero":
        return F.pad(images_NCHW, (padding,) * 4)
    twice = 1 if mode == "symmetric" else 0  # a border pixel is its own mirror image, or has one beside it
    most = min(images_NCHW.shape[2:]) - 1 + twice
    if mode != "edge" and padding > most:
        raise ConfigError(
            f"views.padding: expected at most {most} with padding_mode {mode} for images with a side of"
            f" {min(images_NCHW.shape[2:])} pixels, got {padding}"
        )
    for axis in (2, 3):
        side = images_NCHW.shape[axis]
        place = torch.arange(-padding, side + padding, device=images_NCHW.device)
        if mode == "edge":
            place = place.clamp(0, side - 1)
        else:
            place = torch.where(place < 0, -place - twice, place)
            place = torch.where(place < side, place, 2 * side - 2 + twice - place)
        images_NCHW = images_NCHW.index_select(axis, place)
    return images_NCHW
