"""A data set of encoded images, and the interface of its files. `decoding_workers.py` renders the images."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from dhkd.data.errors import DataChanged, DataError
from dhkd.data.images.base import Decoding, PerChannel
from dhkd.data.images.channels import in_channels
from dhkd.data.images.chosen import Chosen
from dhkd.data.images.chunks import Photos
from dhkd.data.images.decoding import USUAL, Photo, Reading, decode
from dhkd.data.images.decoding_workers import CHUNK, PhotoRenderer
from dhkd.data.images.in_memory import ImageSet, label_bytes
from dhkd.data.images.levels import FULL, Levels
from dhkd.data.images.reduced import Reduction
from dhkd.data.progress import progress
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.unaugmented import AsTheyAre
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, where full scale is 1


class EncodedFiles(ABC):
    """Encoded images that are read as bytes, and decoded with the limits of `reading`."""

    reading: Reading = USUAL

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the bytes of sample `index`. Raises `DataError` or `OSError`."""

    def photo(self, index: int, reduction: Reduction | None = None) -> Photo:
        """Return the image of sample `index`, decoded, as RGB. Raises `DataError` or `OSError`."""
        return decode(self.read(index), self.reading, reduction)


@dataclass(frozen=True)
class PhotoSet:
    """One split of a data set of encoded images, with `labels_N` int64 (N,), or None for images without labels.

    Images without labels need `num_samples`. Pixels are rendered in `channels`, 3 for colours or 1 for grey. `mean` and
    `std` of each channel are ImageNet's by default; full scale is 1. `levels` are the values of black and white with
    which images of more than 8 bits are read; None stands for those of 16 bits. `class_names` are in the order of the
    class numbers, or empty if the source doesn't record them.
    """

    name: str
    split: str
    files: Photos
    labels_N: Tensor | None
    num_classes: int
    mean: PerChannel = MEAN
    std: PerChannel = STD
    levels: Levels | None = None
    class_names: tuple[str, ...] = ()
    channels: int = 3
    num_samples: int | None = None

    def __len__(self) -> int:
        if self.labels_N is not None:
            return len(self.labels_N)
        assert self.num_samples is not None
        return self.num_samples

    @property
    def shape(self) -> None:
        """None, because sizes aren't known before the images are decoded."""
        return None

    def subset(self, index_N: Tensor) -> "PhotoSet":
        """Return the samples at the positions `index_N`, int64 (N,) in rising order, as a set of their own."""
        labels_N = None if self.labels_N is None else self.labels_N[index_N]
        return replace(self, files=Chosen(self.files, index_N), labels_N=labels_N, num_samples=len(index_N))

    def first(self, num_samples: int) -> "PhotoSet":
        """Return the first `num_samples` samples of the set, in order."""
        labels_N = None if self.labels_N is None else self.labels_N[:num_samples]
        return replace(self, labels_N=labels_N, num_samples=min(num_samples, len(self)))

    def named(self, split: str) -> "PhotoSet":
        """Return the same images with `split` as the name of their split."""
        return replace(self, split=split)

    def without_labels(self, num_classes: int | None) -> "PhotoSet":
        """Return the same images without labels; if `num_classes` is None, their number of classes stays."""
        num_classes = num_classes or self.num_classes
        return replace(self, labels_N=None, num_samples=len(self), num_classes=num_classes, class_names=())

    def with_channels(self, channels: int) -> "PhotoSet":
        """Return the same images, rendered in 1 or 3 channels."""
        mean, std = in_channels(self.mean, channels), in_channels(self.std, channels)
        return replace(self, channels=channels, mean=mean, std=std)

    def normalized_with(self, mean: PerChannel | None, std: PerChannel | None) -> "PhotoSet":
        """Return the same images with `mean` and `std` for a network's input; if one is None, its old value stays."""
        return replace(self, mean=mean or self.mean, std=std or self.std)

    def in_memory(self, decoding: Decoding) -> ImageSet:
        """Return the same set with all images decoded; meant for small images of one size.

        Raises `DataError` if an image can't be decoded, and `ConfigError` if sizes differ.
        """
        recipe = AsTheyAre(self._first_shape(decoding.allow_bad))
        assert recipe.shape is not None
        renderer = self.renderer(recipe, torch.device("cpu"), decoding)
        batches = torch.split(torch.arange(len(self)), CHUNK)
        pixels_NCHW = torch.empty((len(self), self.channels, *recipe.shape), dtype=torch.uint8)
        keys = ((torch.zeros_like(index_B), index_B) for index_B in batches)
        with progress("decoding", len(self), bar=False) as advance:
            for index_B, pixels_BCHW in zip(batches, renderer.render(keys), strict=True):
                pixels_NCHW[index_B] = pixels_BCHW
                advance(len(index_B))
        names = self.class_names
        return ImageSet(self.name, self.split, pixels_NCHW, self.labels_N, self.num_classes, self.mean, self.std, names)

    def _first_shape(self, allow_bad: int) -> tuple[int, int]:
        """Return height and width of the first image, or of the first readable image if `allow_bad` is above 0."""
        for index in range(min(allow_bad, len(self) - 1) + 1):
            try:
                photo = self.files.photo(index)
            except DataChanged:
                raise
            except (DataError, OSError) as error:
                reason = f"{self.name}: {self.files.name(index)} (index {index}): expected an image, got: {error}"
            else:
                return photo.height, photo.width
        raise DataError(f"{reason}; replace it, or let a black image stand in with --allow-bad N")

    def renderer(self, recipe: Recipe, device: torch.device, decoding: Decoding) -> "PhotoRenderer":
        """Return a renderer that renders any key (view, index) of this set with `recipe`."""
        return PhotoRenderer(self, recipe, device, workers=decoding.workers, allow_bad=decoding.allow_bad)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of the labels and the file names, both in the order of the samples.

        The levels are included if they are not those of 16 bits, and the number of channels if it is not 3.

        Pixels are not covered: their changes show in a cache's witnesses, the checksums of each row's rendered pixels.
        """
        digest = hashlib.sha256(label_bytes(self.labels_N))
        digest.update(self.files.names(len(self)))
        if self.levels not in (None, FULL):
            digest.update(f"\nlevels {self.levels!r}".encode())
        if self.channels != 3:
            digest.update(f"\nchannels {self.channels}".encode())
        return digest.hexdigest()
