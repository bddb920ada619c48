"""A data set held in memory: every image as uint8, its label, and how its pixels are normalised.

Image `i` is sample `i`: the set's own order is what keys, blocks and fingerprints refer to.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Triple = tuple[float, float, float]  # a number for each channel


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set.

    `images_NCHW` is uint8 (N, 3, H, W), `labels_N` int64 (N,) in [0, num_classes); `mean` and `std` are those of
    each channel, in units of full scale (0 to 1).
    """

    name: str
    split: str
    images_NCHW: Tensor
    labels_N: Tensor
    num_classes: int
    mean: Triple
    std: Triple

    def __post_init__(self) -> None:
        assert self.images_NCHW.dtype == torch.uint8
        assert self.labels_N.dtype == torch.int64
        assert self.images_NCHW.ndim == 4
        assert len(self.images_NCHW) == len(self.labels_N)

    def __len__(self) -> int:
        return len(self.labels_N)

    def first(self, num_samples: int) -> "ImageSet":
        """The set's first `num_samples` samples, in its own order."""
        return replace(self, images_NCHW=self.images_NCHW[:num_samples], labels_N=self.labels_N[:num_samples])

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over shape, labels and pixels: two sets with one fingerprint are the same set."""
        digest = hashlib.sha256(repr(tuple(self.images_NCHW.shape)).encode())
        digest.update(self.labels_N.contiguous().numpy().astype("<i8", copy=False).data)
        digest.update(self.images_NCHW.contiguous().numpy().data)
        return digest.hexdigest()
