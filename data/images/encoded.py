"""A data set of encoded images: what reads them, and the set. They are rendered in `decoding_workers.py`."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from dhkd.data.errors import DataError
from dhkd.data.images.base import Decoding, Triple
from dhkd.data.images.decoding import Photo, decode
from dhkd.data.images.decoding_workers import CHUNK, PhotoRenderer, Photos
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.unaugmented import AsTheyAre
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in units of full scale


class EncodedFiles(ABC):
    """Encoded images that are read as bytes."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of sample `index`. Raises `DataError` or `OSError`."""

    def photo(self, index: int) -> Photo:
        """The image of sample `index`, decoded, as RGB. Raises `DataError` or `OSError`."""
        return decode(self.read(index))


@dataclass(frozen=True)
class PhotoSet:
    """One split of a data set of encoded images, with `labels_N` int64 (N,).

    `mean` and `std` are in units of full scale; ImageNet's by default.
    """

    name: str
    split: str
    files: Photos
    labels_N: Tensor
    num_classes: int
    mean: Triple = MEAN
    std: Triple = STD

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def shape(self) -> None:
        """None, because it isn't known before the images are decoded."""
        return None

    def first(self, num_samples: int) -> "PhotoSet":
        """The set's first `num_samples` samples, in its own order."""
        return replace(self, labels_N=self.labels_N[:num_samples])

    def normalized_with(self, mean: Triple | None, std: Triple | None) -> "PhotoSet":
        """The same images with another mean and std for networks; None keeps the set's own."""
        return replace(self, mean=mean or self.mean, std=std or self.std)

    def in_memory(self, decoding: Decoding) -> ImageSet:
        """The same set with all images decoded, for sets of small images of one size.

        Raises `DataError` if an image can't be decoded, `ConfigError` if one differs in size from the first.
        """
        recipe = AsTheyAre(self._first_shape(decoding.allow_bad))
        assert recipe.shape is not None
        renderer = self.renderer(recipe, torch.device("cpu"), decoding)
        batches = torch.split(torch.arange(len(self)), CHUNK)
        pixels_NCHW = torch.empty((len(self), 3, *recipe.shape), dtype=torch.uint8)
        keys = ((torch.zeros_like(index_B), index_B) for index_B in batches)
        for index_B, pixels_BCHW in zip(batches, renderer.render(keys), strict=True):
            pixels_NCHW[index_B] = pixels_BCHW
        return ImageSet(self.name, self.split, pixels_NCHW, self.labels_N, self.num_classes, self.mean, self.std)

    def _first_shape(self, allow_bad: int) -> tuple[int, int]:
        """Height and width of the first image, or of the first readable one if some may be bad."""
        for index in range(min(allow_bad, len(self) - 1) + 1):
            try:
                photo = self.files.photo(index)
            except (DataError, OSError) as error:
                reason = f"{self.name}: {self.files.name(index)} (index {index}): expected an image, got: {error}"
            else:
                return photo.height, photo.width
        raise DataError(f"{reason}; replace it, or let a black image stand in with --allow-bad N")

    def renderer(self, recipe: Recipe, device: torch.device, decoding: Decoding) -> "PhotoRenderer":
        """Renders any key of this set with the recipe."""
        return PhotoRenderer(self, recipe, device, workers=decoding.workers, allow_bad=decoding.allow_bad)

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over labels and files' names, in order. Changed pixels show in a cache's witnesses."""
        digest = hashlib.sha256(self.labels_N.contiguous().numpy().astype("<i8", copy=False).data)
        digest.update(self.files.names(len(self)))
        return digest.hexdigest()
