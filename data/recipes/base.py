"""The interface of recipes: how views are drawn, and how a drawn view changes an image.

A view is one augmentation draw of the whole data set, a pure function of (seed, view, index). `draws` turns keys (view,
index) into draws, the random integers of a view; `pixels` turns draws and a decoded image into pixels. Nothing else has
an influence: no global generator, worker, order, batch or device. A change of a recipe's draws or pixels needs a new
version number, because caches record that number.

Each recipe has a file in this folder and a line in `RECIPES`, and defines the abstract methods of `Recipe`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from dhkd.data.disk.shared_tensors import Keep
from dhkd.data.draws.keyed import DrawBlock
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import PerChannel
from dhkd.data.images.decoding import Photo, photo_of
from dhkd.data.images.pictures import Pictures
from dhkd.data.images.resizing import Interpolation
from dhkd.data.recipes.mixing import Mixing
from numpy.typing import NDArray
from torch import Tensor

# The number of views to draw from if a recipe has no limit.
ENDLESS = 1 << 31

# Takes keys view_B and index_B, int64 on any device; returns pixels uint8 (B, C, H, W), channels last in memory.
Render = Callable[[Tensor, Tensor], Tensor]

# Takes keys and the draws of a recipe's `blocks` for these keys, int64 (B, D); returns pixels
# uint8 (B, C, H, W) in any memory layout.
RenderDrawn = Callable[[Tensor, Tensor, list[Tensor]], Tensor]


class Recipe(ABC):
    """How views are drawn. A recipe is immutable, and its parameters and seed describe it completely."""

    # Whether the pixels are the same with all versions of all libraries, so that any difference is an error.
    exact: bool = False
    # How pictures of two samples are mixed, or None. `draws`, `pixels` and `resident` are of unmixed pictures; whoever
    # renders keys mixes them (`Renderer`).
    mixing: Mixing | None = None

    # Whether a view may be rendered from an image file that was decoded at a part of its size, as `reduction` says.
    reduces: bool = False

    # The draws that `resident_drawn` takes, so that they can be computed in one call with those of pixel operations.
    blocks: Sequence[DrawBlock] = ()

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """Kind, version, parameters and seed as plain values, which a cache records and compares."""

    @property
    @abstractmethod
    def num_views(self) -> int | None:
        """The number of different views; it is None if there is no limit."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the pixels; None if images keep their size, which must then be the same for all."""

    @abstractmethod
    def draws(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """Return the D integers drawn for each key, int64 (B, D). Views and indices are int64 (B,) on the CPU."""

    @abstractmethod
    def pixels(self, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
        """Render one decoded image with each row of draws: uint8 (B, H, W, C), C = 3 for RGB and 1 for grey images.

        For grey images, the last axis may be left out.
        """

    def pictures(self, photo: Photo, draws_BD: Tensor) -> Pictures:
        """Render as `pixels` does. A recipe whose pixels are those of a photo overrides this to save conversions."""
        return Pictures(torch.from_numpy(np.array(rendered(self, photo, draws_BD))).permute(0, 3, 1, 2))

    def reduction(self, height: int, width: int, draws: Sequence[int]) -> int:
        """Return by what the sides of an image file may be divided when it is decoded for these draws: 1, 2, 4 or 8.

        A recipe that sets `reduces` overrides this; its pixels are then computed from such a photo, of which
        `reduced_of` gives the size in the file.
        """
        return 1

    def without_end(self) -> "Recipe":
        """Return a recipe without a limit on views, whose first views are those of this one.

        A recipe with a limit on its views overrides this, so that pixel operations and mixing can be added to it.
        """
        if self.num_views is not None:
            raise ConfigError(
                f"views.kind {self.identity.get('kind')}: expected views without a limit, to which pixel operations or"
                f" mixing are added, got {self.num_views}; define without_end, or leave them out"
            )
        return self

    @abstractmethod
    def at_test(self) -> "Recipe":
        """Return the recipe for test images, which are not augmented."""

    def at_size(self, size: int, interpolation: Interpolation) -> "Recipe | None":
        """Return a recipe that shows, for every key, the same part of an image as this one, at `size` × `size` pixels.

        A recipe that doesn't resize images returns None, as this implementation does; the caller then resizes its
        pixels.
        """
        return None

    def for_mean(self, mean: PerChannel) -> "Recipe":
        """Return the recipe for a data set with this mean pixel value of each channel, 0 to 1.

        A recipe whose pixels depend on it overrides this.
        """
        return self

    def kept_by(self, keep: Keep) -> "Recipe":
        """Return the recipe whose `resident` passes large tensors of its own to `keep`, which may share their memory.

        A recipe with such tensors overrides this.
        """
        return self

    def resident(self, images_NCHW: Tensor) -> Render:
        """Return a function that renders any keys of images in memory, uint8 (N, C, H, W), on the images' device.

        This implementation renders one image at a time; a recipe that can render a whole batch at once overrides it.
        """
        photos = images_NCHW.cpu().numpy()

        def render(view_B: Tensor, index_B: Tensor) -> Tensor:
            draws_BD = self.draws(view_B.cpu(), index_B.cpu())
            rows = [rendered(self, photo_of(photos[i]), draws_BD[b : b + 1])[0] for b, i in enumerate(index_B.tolist())]
            return torch.from_numpy(np.stack(rows)).to(images_NCHW.device).permute(0, 3, 1, 2)

        return render

    def resident_drawn(self, images_NCHW: Tensor) -> RenderDrawn:
        """Return a function that renders as that of `resident` does, from the draws of `blocks`, in any memory layout.

        A recipe that sets `blocks` overrides this.
        """
        render = self.resident(images_NCHW)
        return lambda view_B, index_B, draws: render(view_B, index_B)


def rendered(recipe: Recipe, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
    """Render one image with each row of draws: uint8 (B, H, W, C), also if the recipe left out the last axis."""
    pixels = recipe.pixels(photo, draws_BD)
    return pixels[..., None] if pixels.ndim == 3 else pixels
