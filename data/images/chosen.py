"""A selection of a set's encoded images, used as a set of their own."""

import torch
from dhkd.data.images.chunks import Photos
from dhkd.data.images.decoding import Photo
from dhkd.data.images.reduced import Reduction
from torch import Tensor


class Chosen:
    """The images of `files` at the positions `index_N`, int64 (N,) in rising order. Every worker has a copy of it."""

    def __init__(self, files: Photos, index_N: Tensor) -> None:
        self._files = files
        self._index_N = index_N.numpy()  # an array, since a tensor would reach a worker through shared memory

    def photo(self, index: int, reduction: Reduction | None = None) -> Photo:
        """Return the image of sample `index`, decoded, as RGB. Raises `DataError` or `OSError`."""
        return self._files.photo(int(self._index_N[index]), reduction)

    def name(self, index: int) -> str:
        """Return the name of sample `index`, which messages show."""
        return self._files.name(int(self._index_N[index]))

    def names(self, num_samples: int) -> bytes:
        """Return, for a fingerprint, the names in `files` up to the last of these samples, and the chosen positions."""
        index_N = self._index_N[:num_samples]
        names = self._files.names(int(index_N[-1]) + 1 if len(index_N) else 0)
        return names + b"\nchosen\n" + index_N.astype("<i8", copy=False).tobytes()

    def expect(self, index_B: Tensor) -> None:
        """Fetch the files of these samples."""
        self._files.expect(torch.from_numpy(self._index_N[index_B.numpy()]))
