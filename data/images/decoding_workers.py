"""Rendering encoded images in worker processes.

A worker takes keys (view, index) and returns their pixels. The pixels depend on nothing but the key, so the number of
workers doesn't matter. A file that can't be decoded raises an error that names the file. If some such files are
allowed, they are listed, and black images replace them in caching and in training, so that the keys of cache and data
set still match.

Workers hand pixels over in shared memory (/dev/shm) as long as it has space; containers often have only 64 MB of it.
Otherwise they send pixels through pipes, which costs one more copy in each process.
"""

import contextlib
import logging
import resource
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import pairwise
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeVar

import torch
from dhkd.data.errors import DataError, DhkdError
from dhkd.data.images.chunks import Chunk, ChunkKeys, Chunks
from dhkd.data.recipes.base import Recipe
from dhkd.data.render import Keys
from dhkd.data.threads import threads_of_generator
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

if TYPE_CHECKING:
    from dhkd.data.images.encoded import PhotoSet

log = logging.getLogger("dhkd")

T = TypeVar("T")

# Images that a worker decodes at a time: few enough that all workers get a part of a batch, and enough that the
# exchange between processes stays cheap.
CHUNK = 64
# With mixing, a chunk holds whole groups, whose images are then decoded once, unless it would have more keys than this.
MOST_MIXED = 256
LOOKAHEAD = 8192  # number of samples whose files are fetched ahead of time
CHUNKS_AHEAD = 3  # rendered ahead by each worker; a chunk of images of 224×224 pixels takes 9.6 MB of shared memory

# Each chunk in shared memory is an open file. With fewer than this many, chunks go through pipes.
ENOUGH_OPEN_FILES = 1024


class PhotoRenderer:
    """Renders any key of a `PhotoSet` with one recipe.

    `workers` processes decode the images; if `workers` is 0, the calling process does. `unreadable` maps the name of
    each file that was replaced by a black image to the reason why the file could not be decoded; it holds at most
    `allow_bad` files.
    """

    in_memory = False
    exact = False  # pixels may differ by a grey level between versions of a decoder

    def __init__(
        self, images: "PhotoSet", recipe: Recipe, device: torch.device, *, workers: int = 0, allow_bad: int = 0
    ) -> None:
        assert recipe.shape is not None, "images of several sizes make no batch"
        if recipe.mixing is not None:
            recipe.mixing.require_partners(len(images))
        self.images, self.recipe, self.device = images, recipe, device
        self.unreadable: dict[str, str] = {}
        self._workers, self._allow_bad, self._told_of_frames = workers, allow_bad, False

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """Yield the pixels of each batch of keys, in order: uint8 (B, C, H, W) on the device, channels last in memory.

        Consecutive views of an image share one decoding. Raises `DataError` if more than `allow_bad` files can't be
        decoded, or if a worker dies.
        """
        return (pixels_BCHW for (pixels_BCHW,) in self._rendered(batches, [self.recipe]))

    def render_twice(self, batches: Iterable[Keys], other: Recipe | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each batch's pixels by this recipe and by `other`, or the same pixels twice if `other` is None."""
        if other is None:
            return ((pixels_BCHW, pixels_BCHW) for pixels_BCHW in self.render(batches))
        return ((one, two) for one, two in self._rendered(batches, [self.recipe, other]))

    def _rendered(self, batches: Iterable[Keys], recipes: Sequence[Recipe]) -> Iterator[list[Tensor]]:
        """Yield for each batch the list of its pixels by each recipe. Raises the same errors as `render`."""
        recipes = [recipe.for_mean(self.images.mean) for recipe in recipes]
        try:
            yield from self._decoded(batches, recipes)
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise DataError(
                f"{self.images.name}: a worker process that decodes images died"
                f" ({' '.join(str(error).split())[:200]}); use fewer with --workers, or 0"
            ) from error

    def _decoded(self, batches: Iterable[Keys], recipes: Sequence[Recipe]) -> Iterator[list[Tensor]]:
        chunks_of_batches: deque[int] = deque()  # the number of chunks of each batch that is being rendered
        chunks_of_keys = self._chunks(batches, chunks_of_batches)
        try:
            rendered = self._started(chunks_of_keys, recipes, self._workers)
        except OSError as error:  # no semaphores without space in /dev/shm, or no more processes
            log.warning(
                "%s: no worker processes can be started (%s), so this process decodes the images, which is slower",
                self.images.name,
                error.strerror or error,
            )
            rendered = self._started(chunks_of_keys, recipes, 0)
        try:
            chunks: list[list[Tensor]] = []
            for chunk in rendered:
                chunks.append(self._accept(chunk))
                if len(chunks) == chunks_of_batches[0]:
                    chunks_of_batches.popleft()
                    by_recipe = [
                        parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*chunks, strict=True)
                    ]
                    chunks.clear()
                    yield [pixels_BHWC.permute(0, 3, 1, 2) for pixels_BHWC in by_recipe]
        finally:
            # Shut the workers down now, because an error's traceback would keep the iterator alive. As long as torch
            # watches a dead worker, it raises an error in the main thread whenever any child process ends.
            with contextlib.suppress(RuntimeError):
                if isinstance(rendered, _MultiProcessingDataLoaderIter):
                    rendered._shutdown_workers()
            del rendered

    def _started(
        self, chunks_of_keys: Iterator[ChunkKeys], recipes: Sequence[Recipe], workers: int
    ) -> Iterator[Chunk | DhkdError]:
        """Start `workers` processes that render the chunks. Raises `OSError`, before any chunk, if that fails."""
        if workers:
            _require_semaphores(workers)
        enough_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= ENOUGH_OPEN_FILES
        return iter(
            DataLoader(
                Chunks(self.images, recipes, in_shared_memory=enough_files),
                sampler=chunks_of_keys,
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=workers,
                prefetch_factor=CHUNKS_AHEAD if workers else None,
                multiprocessing_context="fork" if workers else None,  # workers inherit the files and import nothing
                pin_memory=self.device.type == "cuda",
            )
        )

    def _chunks(self, batches: Iterable[Keys], counts: deque[int]) -> Iterator[ChunkKeys]:
        """Split batches into chunks, the work items of the workers; `counts` collects each batch's number of chunks."""
        for view_B, index_B in self._expected(batches):
            bounds = self._bounds(index_B)
            counts.append(len(bounds) - 1)
            for start, stop in pairwise(bounds):
                yield view_B[start:stop].numpy(), index_B[start:stop].numpy()

    def _bounds(self, index_B: Tensor) -> list[int]:
        """Return the rows at which chunks begin, and the number of rows."""
        mixing = self.recipe.mixing
        group_B = index_B if mixing is None else mixing.groups(index_B, len(self.images))
        new_group = {int(row) + 1 for row in torch.nonzero(group_B[1:] != group_B[:-1])[:, 0]}
        bounds = [0]
        # A chunk may end wherever another image begins, and with mixing wherever another group begins.
        for row in [*(torch.nonzero(index_B[1:] != index_B[:-1])[:, 0] + 1).tolist(), len(index_B)]:
            rows = row - bounds[-1]
            if row == len(index_B) or (rows >= CHUNK and (row in new_group or rows >= MOST_MIXED)):
                bounds.append(row)
        return bounds

    def _expected(self, batches: Iterable[Keys]) -> Iterator[Keys]:
        """Yield each batch once its files are fetched; files are fetched while earlier batches are rendered."""
        waiting: deque[tuple[Keys, Future[None]]] = deque()
        rows = 0
        with threads_of_generator(1, "expect") as thread:
            for keys in batches:
                waiting.append((keys, thread.submit(self.images.files.expect, self._decoded_for(*keys))))
                rows += len(keys[1])
                while rows > LOOKAHEAD:
                    (view_B, index_B), ready = waiting.popleft()
                    rows -= len(index_B)
                    ready.result()
                    yield view_B, index_B
            for keys, ready in waiting:
                ready.result()
                yield keys

    def _decoded_for(self, view_B: Tensor, index_B: Tensor) -> Tensor:
        """Return the samples whose images are decoded to render these keys, int64."""
        if self.recipe.mixing is None:
            return index_B
        return torch.cat([index_B, self.recipe.mixing.partners(view_B, index_B, len(self.images))])

    def _accept(self, chunk: Chunk | DhkdError) -> list[Tensor]:
        if isinstance(chunk, DhkdError):
            raise chunk
        if chunk.stack is not None and not self._told_of_frames:
            self._told_of_frames = True
            name = self.images.files.name(chunk.stack)
            log.warning("%s: %s has several frames; of such images, the first frame is read", self.images.name, name)
        for index, reason in chunk.unreadable:
            name = self.images.files.name(index)
            if name in self.unreadable:
                continue
            self.unreadable[name] = reason
            line = f"{self.images.name}: {name} (index {index}): expected an image, got: {reason}"
            if len(self.unreadable) > self._allow_bad:
                allowed = f"; {self._allow_bad} such files are allowed" if self._allow_bad else ""
                raise DataError(f"{line}{allowed}; replace it, or let a black image stand in with --allow-bad N")
            log.warning("%s; a black image stands in", line)
        return [torch.as_tensor(pixels_BHWC).to(self.device, non_blocking=True) for pixels_BHWC in chunk.by_recipe]


def _require_semaphores(workers: int) -> None:
    """Raise `OSError` if there is no space for the semaphores of so many workers.

    A DataLoader that fails on them prints a traceback when it is deleted.
    """
    context = get_context("fork")
    queues = [context.Queue() for _ in range(workers + 1)]
    context.Event()
    for queue in queues:
        queue.close()


def _as_it_is(chunk: T) -> T:
    """Return a chunk unchanged; a DataLoader would turn arrays into tensors."""
    return chunk
