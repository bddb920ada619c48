"""What a recipe is: how a view is drawn, and which pixels it makes of an image.

A view is one augmentation draw of the whole data set, a pure function of (seed, view, index). `draws` turns keys into
plain integers and `pixels` turns integers and a decoded image into pixels; nothing else enters: no global generator, no
worker, no order, no batch, no device. Whoever changes a recipe's draws or pixels raises its version, which caches name.

A recipe is one file beside this one and one line in `RECIPES`; it has to define what is abstract here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
import torch
from dhkd.data.images.decoding import Photo, photo_of
from numpy.typing import NDArray
from torch import Tensor

# How many views are told apart where there is no end of them.
ENDLESS = 1 << 31

# From keys view_B and index_B, int64 on any device, to pixels uint8 (B, 3, H, W), channels last in memory.
Render = Callable[[Tensor, Tensor], Tensor]


class Recipe(ABC):
    """How views are drawn. A recipe is immutable: its parameters and its seed say all there is to know."""

    # Whether the pixels are the same with every version of every library, so that any difference is a fault.
    exact: bool = False

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """What a cache records of its recipe, and compares: kind, version, parameters and seed, as plain values."""

    @property
    @abstractmethod
    def num_views(self) -> int | None:
        """How many different views there are; None where there is no end of them."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int] | None:
        """Height and width of its pixels, of images of any size; None: the images' own, all of which must be equal."""

    @abstractmethod
    def draws(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """The integers drawn for each key (two int64 tensors on the CPU): int64 (B, D)."""

    @abstractmethod
    def pixels(self, photo: Photo, draws_BD: Tensor) -> NDArray[np.uint8]:
        """What each row of draws makes of one decoded RGB image: uint8 (B, H, W, 3)."""

    @abstractmethod
    def at_test(self) -> "Recipe":
        """The recipe of test images, which are not augmented."""

    def resident(self, images_NCHW: Tensor) -> Render:
        """A function that renders any keys of images held in memory, uint8 (N, 3, H, W), on the device they are on.

        A recipe that can render a whole batch at once does so here; this way is image by image.
        """
        photos = images_NCHW.cpu().numpy()

        def render(view_B: Tensor, index_B: Tensor) -> Tensor:
            draws_BD = self.draws(view_B.cpu(), index_B.cpu())
            rows = [self.pixels(photo_of(photos[i]), draws_BD[b : b + 1])[0] for b, i in enumerate(index_B.tolist())]
            return torch.from_numpy(np.stack(rows)).to(images_NCHW.device).permute(0, 3, 1, 2)

        return render
