"""What an image set is: one split of a data set, however its images are kept. Image `i` is sample `i`.

The set's own order is what keys, blocks and fingerprints refer to. There are two kinds: `in_memory.ImageSet` holds the
pixels of all images, which have one size; `encoded.PhotoSet` knows where encoded images lie and decodes them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dhkd.data.recipes.base import Recipe
    from dhkd.data.render import Renderer

Triple = tuple[float, float, float]  # a number for each channel


@dataclass(frozen=True)
class Decoding:
    """How encoded images are decoded: by how many worker processes (0: by this one), and how many may be unreadable."""

    workers: int = 0
    allow_bad: int = 0


class Images(Protocol):
    """One split of a data set."""

    @property
    def name(self) -> str:
        """The data set's name."""

    @property
    def split(self) -> str:
        """ "train" or "test"."""

    @property
    def labels_N(self) -> Tensor:  # noqa: N802 - a shape suffix
        """int64 (N,), each in [0, num_classes)."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def mean(self) -> Triple:
        """Of each channel, in units of full scale."""

    @property
    def std(self) -> Triple:
        """Of each channel, in units of full scale."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of every image; None where they have not been decoded, or differ."""

    def __len__(self) -> int:
        """N."""

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal): sets with equal fingerprints are the same data set in the same order."""

    def first(self, num_samples: int) -> "Images":
        """The set's first `num_samples` samples, in its own order."""

    def normalized_with(self, mean: Triple | None, std: Triple | None) -> "Images":
        """The same images, to be shown to networks with this mean and std; None leaves each as it is."""

    def in_memory(self, decoding: Decoding) -> "Images":
        """The same set with all images decoded; raises `ConfigError` unless all of them have one size."""

    def renderer(self, recipe: "Recipe", device: torch.device, decoding: Decoding) -> "Renderer":
        """What makes pixels of any key of this set under the recipe."""
