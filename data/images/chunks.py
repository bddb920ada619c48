"""What a worker does: it decodes the images of a chunk of keys, renders the keys, and mixes their pictures."""

import logging
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from dhkd.data.errors import ConfigError, DataChanged, DataError, DhkdError
from dhkd.data.images.decoding import FRAMES, Photo, in_mode
from dhkd.data.images.reduced import Decodings, Reduction
from dhkd.data.recipes.base import Recipe, rendered
from dhkd.data.recipes.mixing import Mixed
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

if TYPE_CHECKING:
    from dhkd.data.images.encoded import PhotoSet

log = logging.getLogger("dhkd")

# The keys of a chunk as arrays: tensors would reach a worker through shared memory, and never if that is full.
ChunkKeys = tuple[NDArray[np.int64], NDArray[np.int64]]


class Photos(Protocol):
    """The images of a set, one by one. Every worker has a copy of this object."""

    def photo(self, index: int, reduction: Reduction | None = None) -> Photo:
        """Return the image of sample `index`, decoded, as RGB, reduced if its format can be.

        Raises `DataError` or `OSError`.
        """

    def name(self, index: int) -> str:
        """Return the name of sample `index`, which messages show."""

    def names(self, num_samples: int) -> bytes:
        """Return the names of the first `num_samples` samples for a fingerprint, one per line."""

    def expect(self, index_B: Tensor) -> None:
        """Fetch the files of these samples. The main process calls this before a worker reads the samples."""


class Chunk(NamedTuple):
    """The pixels of a chunk of keys by each recipe, (B, H, W, C), and what was found while decoding.

    `unreadable` holds the index of each image that a black one replaces, and the reason. `stack` is the index of an
    image with several frames, or None.
    """

    by_recipe: Sequence[Tensor | NDArray[np.uint8]]
    unreadable: list[tuple[int, str]]
    stack: int | None


class Chunks(Dataset["Chunk | DhkdError"]):
    """A data set that renders a chunk of keys on request; every worker has a copy of it."""

    def __init__(self, images: "PhotoSet", recipes: Sequence[Recipe], *, in_shared_memory: bool) -> None:
        self._files, self._recipes, self._channels = images.files, recipes, images.channels
        self._num_samples = len(images)
        self._in_shared_memory = in_shared_memory
        self._tried = False

    def __getitem__(self, keys: ChunkKeys) -> "Chunk | DhkdError":
        # An error is returned as a value: if it were raised, its message would contain the worker's traceback.
        try:
            chunk = self._mixed(torch.from_numpy(keys[0]), torch.from_numpy(keys[1]))
        except DhkdError as error:
            if get_worker_info() is not None and error.__cause__ is not None:  # pickling drops the cause, notes stay
                error.add_note("".join(traceback.format_exception(error.__cause__)))
            return error
        if get_worker_info() is None:
            return chunk
        return chunk._replace(by_recipe=[self._sendable(torch.as_tensor(pixels)) for pixels in chunk.by_recipe])

    def _sendable(self, pixels_BHWC: Tensor) -> Tensor | NDArray[np.uint8]:
        """Move a tensor into shared memory, or return it as an array, which goes through a pipe, if that fails.

        A worker that sends a tensor finds out too late that it can't, and the main process would wait forever.
        """
        if self._in_shared_memory:
            try:
                pixels_BHWC.share_memory_()  # type: ignore[no-untyped-call]  # untyped in torch
                if not self._tried:  # sending needs a socket in the folder of temporary files, too
                    ForkingPickler.dumps(pixels_BHWC)
                    self._tried = True
                return pixels_BHWC
            except (RuntimeError, OSError) as error:
                # A chunk that doesn't fit into the space may be followed by one that does.
                self._in_shared_memory = self._tried
                log.debug("pixels go through a pipe (%s)", error)
        array: NDArray[np.uint8] = pixels_BHWC.numpy()
        return array

    def _mixed(self, view_B: Tensor, index_B: Tensor) -> Chunk:
        """Render keys and mix their pictures, if the recipes mix. Each image is decoded once.

        In memory are then at most two unmixed pictures and a mixed one for each key and recipe.
        """
        plans: list[Mixed] = []
        for recipe in self._recipes:
            if recipe.mixing is None:
                assert not plans, "all recipes of a set mix, or none"
                return self._render(view_B, index_B)
            plans.append(recipe.mixing.drawn(view_B, index_B, self._num_samples, _shape(recipe)))
        index_2B, view_2B = torch.cat([index_B, plans[0].partner_B]), view_B.repeat(2)
        keys_2K, place_2B = torch.unique(torch.stack([index_2B, view_2B]), dim=1, return_inverse=True)  # by index
        chunk = self._render(keys_2K[1], keys_2K[0])
        own_B, partner_B = place_2B.chunk(2)
        by_recipe = [
            plan.pixels(torch.as_tensor(pixels).permute(0, 3, 1, 2), own_B, partner_B).permute(0, 2, 3, 1)
            for plan, pixels in zip(plans, chunk.by_recipe, strict=True)
        ]
        return chunk._replace(by_recipe=by_recipe)

    def _render(self, view_B: Tensor, index_B: Tensor) -> Chunk:
        by_recipe = [_black(len(index_B), recipe, self._channels) for recipe in self._recipes]
        arrays = [pixels_BHWC.numpy() for pixels_BHWC in by_recipe]  # of the same memory
        draws = [recipe.draws(view_B, index_B) for recipe in self._recipes]
        unreadable: list[tuple[int, str]] = []
        stack = None
        # Consecutive keys with one index are views of one image and share one decoding.
        changes = (torch.nonzero(index_B[1:] != index_B[:-1])[:, 0] + 1).tolist()
        for start, stop in pairwise([0, *changes, len(index_B)]):
            index = int(index_B[start])
            try:
                photos = Decodings(partial(self._files.photo, index))
                for recipe, pixels_BHWC, draws_BD in zip(self._recipes, arrays, draws, strict=True):
                    for rows, reduction in _reductions(recipe, start, stop, draws_BD):
                        photo = photos.at(reduction)
                        pixels_BHWC[rows] = rendered(recipe, in_mode(photo, self._channels), draws_BD[rows])
                        stack = index if photo.info.get(FRAMES, 1) > 1 else stack
            except ConfigError as error:
                raise ConfigError(f"{self._files.name(index)} (index {index}): {error}") from error
            except DataChanged:
                raise  # no black image may stand in: labels may have changed, too
            except DataError as error:
                unreadable.append((index, str(error)))
            except OSError as error:
                unreadable.append((index, error.strerror or str(error)))
        return Chunk(by_recipe, unreadable, stack)


def _reductions(recipe: Recipe, start: int, stop: int, draws_BD: Tensor) -> Iterable[tuple[slice, Reduction | None]]:
    """Return the rows of one image that are rendered together, and the reduction of each such part."""
    if not recipe.reduces:
        return [(slice(start, stop), None)]
    rows = range(start, stop)
    return [(slice(row, row + 1), partial(recipe.reduction, draws=draws_BD[row].tolist())) for row in rows]


def _black(rows: int, recipe: Recipe, channels: int) -> Tensor:
    """Return black pixels, uint8 (rows, H, W, C)."""
    return torch.zeros((rows, *_shape(recipe), channels), dtype=torch.uint8)


def _shape(recipe: Recipe) -> tuple[int, int]:
    assert recipe.shape is not None
    return recipe.shape
