"""The interface of image sets: one split of a data set, wherever its images are kept.

Image i is sample i; a key (view, index), a cache's blocks and fingerprints all refer to this order. There are two kinds
of sets: `in_memory.ImageSet` holds the pixels of images of one size, `encoded.PhotoSet` decodes images whenever they
are needed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from dhkd.data.disk.shared_tensors import Keep, private
from torch import Tensor

if TYPE_CHECKING:
    from dhkd.data.recipes.base import Recipe
    from dhkd.data.render import Renderer

PerChannel = tuple[float, ...]  # one number for each channel, of which there are 1 or 3


@dataclass(frozen=True)
class Decoding:
    """How encoded images are decoded: by `workers` processes, or by the calling process if `workers` is 0.

    Up to `allow_bad` images may be unreadable; black images replace the unreadable ones. Decoded images in memory are
    passed to `keep`, which may move them to memory that processes share.
    """

    workers: int = 0
    allow_bad: int = 0
    keep: Keep = private


class Images(Protocol):
    """One split of a data set."""

    @property
    def name(self) -> str:
        """The data set's name."""

    @property
    def split(self) -> str:
        """ "train", "test" or, for a part that was held out of the training split, "val"."""

    @property
    def labels_N(self) -> Tensor | None:  # noqa: N802 - a shape suffix
        """int64 (N,), each in [0, num_classes); None for images without labels."""

    @property
    def num_classes(self) -> int:
        """The number of classes, K: that of the labels or, for images without labels, that of the networks."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers; empty if the source records none."""

    @property
    def channels(self) -> int:
        """1 for grey images, or 3 for colours."""

    @property
    def mean(self) -> PerChannel:
        """Each channel's mean pixel value, as a fraction of full scale."""

    @property
    def std(self) -> PerChannel:
        """Each channel's standard deviation, as a fraction of full scale."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of every image; None if sizes differ or aren't known before decoding."""

    def __len__(self) -> int:
        """Return the number of samples, N."""

    def fingerprint(self) -> str:
        """Return a SHA-256 (hexadecimal); sets with equal fingerprints are the same data set in the same order."""

    def subset(self, index_N: Tensor) -> "Images":
        """Return the samples at the positions `index_N`, int64 (N,) in rising order, as a set of their own."""

    def first(self, num_samples: int) -> "Images":
        """Return the first `num_samples` samples of the set, in order."""

    def named(self, split: str) -> "Images":
        """Return the same images with `split` as the name of their split."""

    def without_labels(self, num_classes: int | None) -> "Images":
        """Return the same images without labels; if `num_classes` is None, their number of classes stays."""

    def with_channels(self, channels: int) -> "Images":
        """Return the same images in 1 or 3 channels.

        Colours become grey as `decoding.grey` converts them, and grey is repeated three times.
        """

    def normalized_with(self, mean: PerChannel | None, std: PerChannel | None) -> "Images":
        """Return the same images with `mean` and `std` for a network's input; if one is None, its old value stays."""

    def in_memory(self, decoding: Decoding) -> "Images":
        """Return the same set with all images decoded. Raises `ConfigError` unless all images have the same size."""

    def renderer(self, recipe: "Recipe", device: torch.device, decoding: Decoding) -> "Renderer":
        """Return a renderer that renders any key (view, index) of this set with `recipe`."""
