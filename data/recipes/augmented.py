"""A recipe with pixel operations or mixing: first its crop or box, then each operation, from the key's own draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from dhkd.data.disk.shared_tensors import Keep
from dhkd.data.draws.keyed import DrawBlock, draws_of_blocks
from dhkd.data.images.base import PerChannel
from dhkd.data.images.decoding import Photo
from dhkd.data.images.pictures import channels_last
from dhkd.data.images.resizing import Interpolation
from dhkd.data.recipes.base import Recipe, Render
from dhkd.data.recipes.mixing import Mixing
from dhkd.data.recipes.operations.base import Operation
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Augmented(Recipe):
    """Views of `geometry`, a recipe without a limit on views, with `operations` applied to their pixels, in order.

    `operations` are named by their keys in `views`; each uses draws of its own, which the others don't affect. The
    pictures are then mixed as `mixing` says, unless it is None.
    """

    geometry: Recipe
    operations: Mapping[str, Operation]
    seed: int
    mixing: Mixing | None = None

    num_views = None

    @property
    def exact(self) -> bool:  # type: ignore[override]  # a recipe's attribute may be a property
        """Whether the pixels are the same with all versions of all libraries, as those of the operations are."""
        return self.geometry.exact

    @cached_property
    def identity(self) -> dict[str, object]:
        """The recipe as plain values, which a cache records and compares."""
        operations = {name: one.identity for name, one in self.operations.items()}
        return {**self.geometry.identity, **operations, **({"mix": self.mixing.identity} if self.mixing else {})}

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the pixels; None if images keep their size."""
        return self.geometry.shape

    def draws(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """Return the draws of the geometry and then of each operation, int64 (B, D)."""
        return torch.cat(
            [self.geometry.draws(view_B, index_B), *draws_of_blocks(self.seed, self._blocks, view_B, index_B)], dim=1
        )

    def pixels(self, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
        """Render one decoded image with each row of draws: uint8 (B, H, W, C)."""
        widths = [one.num_draws for one in self.operations.values()]
        geometry_draws, *draws = torch.split(draws_BD, [draws_BD.shape[1] - sum(widths), *widths], dim=1)
        pictures = self.geometry.pictures(photo, geometry_draws)
        for operation, drawn_BD in zip(self.operations.values(), draws, strict=True):
            pictures = operation.change(pictures, drawn_BD)
        return pictures.array

    @property
    def reduces(self) -> bool:  # type: ignore[override]
        """Whether the geometry does."""
        return self.geometry.reduces

    def reduction(self, height: int, width: int, draws: Sequence[int]) -> int:
        """Return the geometry's."""
        others = sum(one.num_draws for one in self.operations.values())
        return self.geometry.reduction(height, width, draws[: len(draws) - others])

    def at_test(self) -> Recipe:
        """Return the geometry's recipe for test images, which are not augmented."""
        return self.geometry.at_test()

    def at_size(self, size: int, interpolation: Interpolation) -> "Augmented | None":
        """Return a recipe that shows, for every key, the same part of an image at `size` × `size` pixels."""
        geometry = self.geometry.at_size(size, interpolation)
        if geometry is None or self.shape is None:
            return None
        operations = {name: one.at_size(self.shape[0], size) for name, one in self.operations.items()}
        mixing = self.mixing and replace(self.mixing, drawn_at=self.shape)
        return Augmented(geometry, operations, self.seed, mixing)

    def for_mean(self, mean: PerChannel) -> "Augmented":
        """Return the recipe for a data set with this mean pixel value of each channel, 0 to 1."""
        operations = {name: one.for_mean(mean) for name, one in self.operations.items()}
        return Augmented(self.geometry.for_mean(mean), operations, self.seed, self.mixing)

    def kept_by(self, keep: Keep) -> "Augmented":
        """Return the recipe that passes the geometry's large tensors to `keep`."""
        return Augmented(self.geometry.kept_by(keep), self.operations, self.seed, self.mixing)

    def resident(self, images_NCHW: Tensor) -> Render:
        """Return a function that renders a whole batch at once."""
        geometry, device = self.geometry.resident_drawn(images_NCHW), images_NCHW.device
        blocks, num = [*self.geometry.blocks, *self._blocks], len(self.geometry.blocks)

        def render(view_B: Tensor, index_B: Tensor) -> Tensor:
            view_B, index_B = view_B.to(device), index_B.to(device)
            draws = draws_of_blocks(self.seed, blocks, view_B, index_B)
            return self._operated(geometry(view_B, index_B, draws[:num]), draws[num:])

        return render

    @cached_property
    def _blocks(self) -> list[DrawBlock]:
        return [one.block for one in self.operations.values()]

    def _operated(self, pixels_BCHW: Tensor, draws: list[Tensor]) -> Tensor:
        for operation, draws_BD in zip(self.operations.values(), draws, strict=True):
            pixels_BCHW = operation.apply(pixels_BCHW, draws_BD)
        return channels_last(pixels_BCHW)
