"""A data set of encoded images, decoded and cut in worker processes.

A worker gets keys and gives pixels. The pixels of a key depend on nothing else, so any number of workers, even none,
gives the same. A file that can't be decoded stops everything with its name, unless some are allowed: then a black image
stands in for it in both stages, so that cache and data set stay aligned by key, and the file is listed.
"""

import contextlib
import hashlib
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from dhkd.data.errors import ConfigError, DataError, DhkdError
from dhkd.data.images.base import Decoding, Triple
from dhkd.data.images.decoding import Photo, decode
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.unaugmented import AsTheyAre
from dhkd.data.render import Keys
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

log = logging.getLogger("dhkd")

# Images that a worker decodes at a time: few, so that all workers share a batch; many, so that talk is cheap.
CHUNK = 64
LOOKAHEAD = 8192  # samples whose files are asked for ahead of time
CHUNKS_AHEAD = 3  # of each worker; a chunk of 224×224 pixels takes 9.6 MB of shared memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in units of full scale


class Photos(Protocol):
    """The images of a set, one by one; small enough to be handed to every worker."""

    def photo(self, index: int) -> Photo:
        """The image of sample `index`, decoded, as RGB. Raises `DataError` or `OSError`."""

    def name(self, index: int) -> str:
        """What to call sample `index` in a message."""

    def names(self, num_samples: int) -> bytes:
        """What the first samples are called, one a line, whatever the machine: for a fingerprint."""

    def expect(self, index_B: Tensor) -> None:
        """Fetch what will be read soon; called in the process that hands out keys, before a worker reads it."""


class EncodedFiles(ABC):
    """Images that lie encoded somewhere, and are read as bytes."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of sample `index`. Raises `DataError` or `OSError`."""

    def photo(self, index: int) -> Photo:
        """The image of sample `index`, decoded, as RGB. Raises `DataError` or `OSError`."""
        return decode(self.read(index))


@dataclass(frozen=True)
class PhotoSet:
    """One split of a data set of encoded images: `labels_N` int64 (N,); `mean` and `std` in units of full scale.

    Where nothing else is said, these are ImageNet's.
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
        """Not known before the images are decoded."""
        return None

    def first(self, num_samples: int) -> "PhotoSet":
        """The set's first `num_samples` samples, in its own order."""
        return replace(self, labels_N=self.labels_N[:num_samples])

    def normalized_with(self, mean: Triple | None, std: Triple | None) -> "PhotoSet":
        """The same images, to be shown to networks with this mean and std; None leaves each as it is."""
        return replace(self, mean=mean or self.mean, std=std or self.std)

    def in_memory(self, decoding: Decoding) -> ImageSet:
        """The same set with all images decoded, for sets whose images are small and all of one size.

        Raises `DataError` where one can't be decoded, `ConfigError` where one has another size than the first.
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
        """Height and width of the first image, or of the first readable one where some may be bad."""
        for index in range(min(allow_bad, len(self) - 1) + 1):
            try:
                photo = self.files.photo(index)
            except (DataError, OSError) as error:
                reason = f"{self.name}: {self.files.name(index)} (index {index}): expected an image, got: {error}"
            else:
                return photo.height, photo.width
        raise DataError(f"{reason}; replace it, or let black images stand in with --allow-bad N")

    def renderer(self, recipe: Recipe, device: torch.device, decoding: Decoding) -> "PhotoRenderer":
        """What makes pixels of any key of this set under the recipe."""
        return PhotoRenderer(self, recipe, device, workers=decoding.workers, allow_bad=decoding.allow_bad)

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over labels and files' names, in order; the witnesses tell whether pixels changed."""
        digest = hashlib.sha256(self.labels_N.contiguous().numpy().astype("<i8", copy=False).data)
        digest.update(self.files.names(len(self)))
        return digest.hexdigest()


class PhotoRenderer:
    """Pixels of any key of a `PhotoSet` under one recipe, decoded by `workers` processes (0: by this one).

    `unreadable` collects what was wrong with each file that a black image stands in for, at most `allow_bad` of them.
    """

    in_memory = False
    exact = False  # decoders differ by a grey level from version to version

    def __init__(
        self, images: PhotoSet, recipe: Recipe, device: torch.device, *, workers: int = 0, allow_bad: int = 0
    ) -> None:
        assert recipe.shape is not None, "images of several sizes make no batch"
        self.images, self.recipe, self.device = images, recipe, device
        self.unreadable: dict[str, str] = {}
        self._workers, self._allow_bad = workers, allow_bad

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        """For each batch of keys, in order, uint8 (B, C, H, W) on the renderer's device, channels last in memory.

        An image is decoded once for all views of it that follow one another. Raises `DataError` for files that can't be
        decoded beyond those allowed, and where a worker dies.
        """
        try:
            yield from self._render(batches)
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise DataError(
                f"{self.images.name}: a worker process that decodes images died"
                f" ({' '.join(str(error).split())[:200]}); use fewer with --workers, or 0"
            ) from error

    def _render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        chunks_of_batches: deque[int] = deque()
        loader = DataLoader(
            _Photos(self.images.files, self.recipe),
            sampler=self._chunks(batches, chunks_of_batches),
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=CHUNKS_AHEAD if self._workers else None,
            multiprocessing_context="fork" if self._workers else None,  # they inherit the files and import nothing
            pin_memory=self.device.type == "cuda",
        )
        rendered = iter(loader)
        try:
            while True:
                chunks: list[Tensor] = []
                while not chunks_of_batches or len(chunks) < chunks_of_batches[0]:
                    try:
                        chunk = next(rendered)
                    except StopIteration:
                        assert not chunks
                        return
                    chunks.append(self._accept(chunk))
                chunks_of_batches.popleft()
                pixels_BHWC = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
                yield pixels_BHWC.permute(0, 3, 1, 2)
        finally:
            # Now, and not when the iterator is forgotten, which an error's traceback delays: as long as torch watches a
            # worker that died, it raises an error in whatever the main thread does when any child process ends.
            with contextlib.suppress(RuntimeError):
                if isinstance(rendered, _MultiProcessingDataLoaderIter):
                    rendered._shutdown_workers()
            del rendered, loader

    def _chunks(self, batches: Iterable[Keys], counts: deque[int]) -> Iterator[Keys]:
        """The batches cut into what a worker does at a time; `counts` is told into how many each was cut."""
        for view_B, index_B in self._expected(batches):
            bounds = [0]
            # A cut may come wherever another image begins.
            for row in [*(torch.nonzero(index_B[1:] != index_B[:-1])[:, 0] + 1).tolist(), len(index_B)]:
                if row - bounds[-1] >= CHUNK or row == len(index_B):
                    bounds.append(row)
            counts.append(len(bounds) - 1)
            for start, stop in pairwise(bounds):
                yield view_B[start:stop], index_B[start:stop]

    def _expected(self, batches: Iterable[Keys]) -> Iterator[Keys]:
        """The batches, whose files were asked for while the ones before them are worked on."""
        waiting: deque[tuple[Keys, Future[None]]] = deque()
        rows = 0
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="expect") as thread:
            for keys in batches:
                waiting.append((keys, thread.submit(self.images.files.expect, keys[1])))
                rows += len(keys[1])
                while rows > LOOKAHEAD:
                    (view_B, index_B), ready = waiting.popleft()
                    rows -= len(index_B)
                    ready.result()
                    yield view_B, index_B
            for keys, ready in waiting:
                ready.result()
                yield keys

    def _accept(self, chunk: "_Chunk | DhkdError") -> Tensor:
        if isinstance(chunk, DhkdError):
            raise chunk
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
        return chunk.pixels_BHWC.to(self.device, non_blocking=True)


class _Chunk(NamedTuple):
    pixels_BHWC: Tensor
    unreadable: list[tuple[int, str]]


class _Photos(Dataset["_Chunk | DhkdError"]):
    """What a worker has: bytes by index, and the recipe."""

    def __init__(self, files: Photos, recipe: Recipe) -> None:
        self._files, self._recipe = files, recipe

    def __getitem__(self, keys: Keys) -> "_Chunk | DhkdError":
        # An error is handed over as a value: raised in a worker, it would arrive with the worker's traceback as text.
        try:
            return self._render(*keys)
        except DhkdError as error:
            return error

    def _render(self, view_B: Tensor, index_B: Tensor) -> _Chunk:
        shape = self._recipe.shape
        assert shape is not None
        pixels_BHWC = torch.zeros((len(index_B), *shape, 3), dtype=torch.uint8)
        rows, draws_BD = pixels_BHWC.numpy(), self._recipe.draws(view_B, index_B)
        unreadable: list[tuple[int, str]] = []
        # Consecutive keys of one image are its views: it is decoded once for all of them.
        changes = (torch.nonzero(index_B[1:] != index_B[:-1])[:, 0] + 1).tolist()
        for start, stop in pairwise([0, *changes, len(index_B)]):
            index = int(index_B[start])
            try:
                rows[start:stop] = self._recipe.pixels(self._files.photo(index), draws_BD[start:stop])
            except ConfigError as error:
                raise ConfigError(f"{self._files.name(index)} (index {index}): {error}") from error
            except DataError as error:
                unreadable.append((index, str(error)))
            except OSError as error:
                unreadable.append((index, error.strerror or str(error)))
        return _Chunk(pixels_BHWC, unreadable)
