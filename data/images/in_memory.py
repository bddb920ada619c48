"""A data set with all pixels in memory, and its renderer, which gathers a whole batch at once."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import tee
from types import MappingProxyType

import torch
from dhkd.data.disk.shared_tensors import Keep, private
from dhkd.data.errors import DataError
from dhkd.data.images.base import Decoding, PerChannel
from dhkd.data.images.channels import grey_of, in_channels
from dhkd.data.recipes.base import Recipe, Render
from dhkd.data.render import Keys
from torch import Tensor

HASHED_AT_ONCE = 1024  # images


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set, with all pixels in memory.

    `images_NCHW` is uint8 (N, C, H, W) with C = 1 or 3, `labels_N` int64 (N,) in [0, num_classes), or None for images
    without labels; `mean` and `std` are given for each channel, 0 to 1, where full scale is 1. `class_names` are in the
    order of the class numbers, or empty if there are none.
    """

    name: str
    split: str
    images_NCHW: Tensor
    labels_N: Tensor | None
    num_classes: int
    mean: PerChannel
    std: PerChannel
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `DataError` for tensors of another dtype or shape; a source may come from outside of this program."""
        images_NCHW, labels_N = self.images_NCHW, self.labels_N
        where = f"{self.name}: the {self.split} split"
        if images_NCHW.dtype != torch.uint8:
            raise DataError(
                f"{where}: images expected uint8, 0 to 255, got {_described(images_NCHW)}; scale and convert them"
            )
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] not in (1, 3):
            raise DataError(
                f"{where}: images expected of shape (N, C, H, W) with 1 or 3 channels, got {tuple(images_NCHW.shape)};"
                f" reorder the axes"
            )
        if labels_N is None:
            return
        if labels_N.dtype != torch.int64 or labels_N.shape != images_NCHW.shape[:1]:
            raise DataError(
                f"{where}: labels expected int64, one for each of {len(images_NCHW)} images, got {labels_N.dtype} of"
                f" shape {tuple(labels_N.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images_NCHW)

    @property
    def channels(self) -> int:
        """1 for grey images, or 3 for colours."""
        return self.images_NCHW.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every image."""
        _, _, height, width = self.images_NCHW.shape
        return height, width

    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of shape, labels and pixels: equal fingerprints mean equal sets."""
        digest = hashlib.sha256(repr(tuple(self.images_NCHW.shape)).encode())
        digest.update(label_bytes(self.labels_N))
        for part_BCHW in torch.split(self.images_NCHW, HASHED_AT_ONCE):  # a contiguous copy of all might not fit
            digest.update(part_BCHW.contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, index_N: Tensor) -> "ImageSet":
        """Return a copy of the samples at the positions `index_N`, int64 (N,) in rising order."""
        labels_N = None if self.labels_N is None else self.labels_N[index_N]
        return replace(self, images_NCHW=self.images_NCHW[index_N], labels_N=labels_N)

    def first(self, num_samples: int) -> "ImageSet":
        """Return the first `num_samples` samples of the set, in order, without a copy of their pixels."""
        labels_N = None if self.labels_N is None else self.labels_N[:num_samples]
        return replace(self, images_NCHW=self.images_NCHW[:num_samples], labels_N=labels_N)

    def named(self, split: str) -> "ImageSet":
        """Return the same images with `split` as the name of their split."""
        return replace(self, split=split)

    def without_labels(self, num_classes: int | None) -> "ImageSet":
        """Return the same images without labels; if `num_classes` is None, their number of classes stays."""
        return replace(self, labels_N=None, num_classes=num_classes or self.num_classes, class_names=())

    def with_channels(self, channels: int) -> "ImageSet":
        """Return the same images in 1 or 3 channels; colours become grey, and grey is repeated three times."""
        if channels == self.channels:
            return self
        images_NCHW = grey_of(self.images_NCHW) if channels == 1 else self.images_NCHW.repeat(1, channels, 1, 1)
        mean, std = in_channels(self.mean, channels), in_channels(self.std, channels)
        return replace(self, images_NCHW=images_NCHW, mean=mean, std=std)

    def normalized_with(self, mean: PerChannel | None, std: PerChannel | None) -> "ImageSet":
        """Return the same images with `mean` and `std` for a network's input; if one is None, its old value stays."""
        return replace(self, mean=mean or self.mean, std=std or self.std)

    def in_memory(self, decoding: Decoding) -> "ImageSet":
        """Return the set itself, because its images are already decoded; only `decoding.keep` may move them."""
        return replace(self, images_NCHW=decoding.keep(self.images_NCHW))

    def renderer(self, recipe: Recipe, device: torch.device, decoding: Decoding) -> "ResidentRenderer":
        """Return a renderer that renders any key (view, index) of this set with `recipe`, without decoding."""
        return ResidentRenderer(self, recipe, device, decoding.keep)


def label_bytes(labels_N: Tensor | None) -> bytes:
    """Return labels as bytes for a fingerprint; for images without labels, bytes that no labels can have."""
    return b"no labels" if labels_N is None else labels_N.contiguous().numpy().astype("<i8", copy=False).tobytes()


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

    def __init__(self, images: ImageSet, recipe: Recipe, device: torch.device, keep: Keep = private) -> None:
        self.images, self.recipe, self.device, self._keep = images, recipe, device, keep
        self.exact = recipe.exact
        self.pixels = self._pixels(recipe)

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """Yield the pixels of each batch of keys (on any device), in order: uint8 (B, C, H, W) on `device`."""
        return (self.pixels(view_B, index_B) for view_B, index_B in batches)

    def render_twice(self, batches: Iterable[Keys], other: Recipe | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each batch's pixels by this recipe and by `other`, or the same pixels twice if `other` is None."""
        if other is None:
            return ((pixels_BCHW, pixels_BCHW) for pixels_BCHW in self.render(batches))
        pixels_by_other, (keys, same_keys) = self._pixels(other), tee(batches)
        return zip(self.render(keys), (pixels_by_other(*of_batch) for of_batch in same_keys), strict=True)

    def _pixels(self, recipe: Recipe) -> Render:
        """Return a function that renders any keys with this recipe, mixed if the recipe mixes."""
        adapted = recipe.for_mean(self.images.mean).kept_by(self._keep)
        unmixed = adapted.resident(self.images.images_NCHW.to(self.device))
        if recipe.mixing is None:
            return unmixed
        return recipe.mixing.render(unmixed, len(self.images), recipe.shape or self.images.shape, self.device)
