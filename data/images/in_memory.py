"""A data set with all pixels in memory, and its renderer, which gathers a whole batch at once."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from dhkd.data.errors import DataError
from dhkd.data.images.base import Decoding, Triple
from dhkd.data.recipes.base import Recipe
from dhkd.data.render import Keys
from torch import Tensor

HASHED_AT_ONCE = 1024  # images


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set, with all pixels in memory.

    `images_NCHW` is uint8 (N, 3, H, W), `labels_N` int64 (N,) in [0, num_classes); `mean` and `std` are given for each
    channel, 0 to 1, where full scale is 1. `class_names` are in the order of their numbers; empty if there are none.
    """

    name: str
    split: str
    images_NCHW: Tensor
    labels_N: Tensor
    num_classes: int
    mean: Triple
    std: Triple
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `DataError` for tensors of another dtype or shape; a source may come from outside of this program."""
        images_NCHW, labels_N = self.images_NCHW, self.labels_N
        where = f"{self.name}: the {self.split} split"
        if images_NCHW.dtype != torch.uint8:
            raise DataError(
                f"{where}: images expected uint8, 0 to 255, got {_described(images_NCHW)}; scale and convert them"
            )
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] != 3:
            raise DataError(
                f"{where}: images expected of shape (N, 3, H, W), got {tuple(images_NCHW.shape)}; reorder the axes, and"
                f" repeat a single channel three times"
            )
        if labels_N.dtype != torch.int64 or labels_N.shape != images_NCHW.shape[:1]:
            raise DataError(
                f"{where}: labels expected int64, one for each of {len(images_NCHW)} images, got {labels_N.dtype} of"
                f" shape {tuple(labels_N.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every image."""
        _, _, height, width = self.images_NCHW.shape
        return height, width

    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of shape, labels and pixels: equal fingerprints mean equal sets."""
        digest = hashlib.sha256(repr(tuple(self.images_NCHW.shape)).encode())
        digest.update(self.labels_N.contiguous().numpy().astype("<i8", copy=False).data)
        for part_BCHW in torch.split(self.images_NCHW, HASHED_AT_ONCE):  # contiguous copies of all might not fit
            digest.update(part_BCHW.contiguous().numpy().data)
        return digest.hexdigest()

    def first(self, num_samples: int) -> "ImageSet":
        """Return the first `num_samples` samples of the set, in order."""
        return replace(self, images_NCHW=self.images_NCHW[:num_samples], labels_N=self.labels_N[:num_samples])

    def normalized_with(self, mean: Triple | None, std: Triple | None) -> "ImageSet":
        """Return the same images with `mean` and `std` for a network's input; if one is None, its old value stays."""
        return replace(self, mean=mean or self.mean, std=std or self.std)

    def in_memory(self, decoding: Decoding) -> "ImageSet":
        """Return the set itself, because its images are already decoded."""
        return self

    def renderer(self, recipe: Recipe, device: torch.device, decoding: Decoding) -> "ResidentRenderer":
        """Return a renderer that renders any key (view, index) of this set with `recipe`, without decoding."""
        return ResidentRenderer(self, recipe, device)


def _described(images: Tensor) -> str:
    """Describe the values of images that are not uint8."""
    if not images.numel() or images.is_complex():
        return str(images.dtype)
    finite = torch.isfinite(images)
    values = images[finite]
    span = f" from {values.min().item():g} to {values.max().item():g}" if len(values) else ""
    odd = int((~finite).sum())
    return f"{images.dtype}{span}{f', {odd:,} of them NaN or infinite' if odd else ''}"


class ResidentRenderer:
    """Renders any key of an `ImageSet` from a copy of all images on `device`."""

    in_memory = True
    unreadable: Mapping[str, str] = MappingProxyType({})

    def __init__(self, images: ImageSet, recipe: Recipe, device: torch.device) -> None:
        self.images, self.recipe, self.device = images, recipe, device
        self.exact = recipe.exact
        self.pixels = recipe.resident(images.images_NCHW.to(device))

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """Yield the pixels of each batch of keys (on any device), in order: uint8 (B, 3, H, W) on `device`."""
        return (self.pixels(view_B, index_B) for view_B, index_B in batches)
