"""The join of image, label and teacher's signals by key: the one place where a batch comes together.

Keys, order and views are functions of (seed, epoch), so every process computes them alike and takes its own share.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from dhkd.data.cache.contract import Array
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch, ConfigError, one_of
from dhkd.data.philox import Domain, permutations, raw_rows
from dhkd.data.read_ahead import ReadAhead
from dhkd.data.render import Keys, Normalization, Renderer, ResidentRenderer, witnesses
from dhkd.data.schedule import SCHEDULES, order_of_epoch, windowed_order
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One process's share of one training step.

    Keys `view_B` and `index_B` are int64 on the CPU; `images_BCHW` float32, `labels_B` int64 and every signal of
    `teacher`, float32 ((B, K) for logits), are on the device. `global_size` counts the rows of all processes, `epoch`
    from 0.
    """

    epoch: int
    view_B: Tensor
    index_B: Tensor
    images_BCHW: Tensor
    labels_B: Tensor
    teacher: Mapping[str, Tensor]
    global_size: int


class Signals(Protocol):
    """Where a stream takes the teacher's signals from."""

    num_views: int
    in_memory: bool  # all of them, so that any rows can be gathered at any time

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Be told the epoch's keys in training order, and have at hand what `gather` will ask for first."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """The rows of these keys of every signal: {name: (B, …)}.

        Keys are on the CPU, or where the signals are if those are in memory.
        """


# From pixels uint8 (B, C, H, W) on the device to signals float32 {name: (B, …)}: a teacher that runs in every step.
Live = Callable[[Tensor], dict[str, Tensor]]


class NoSignals:
    """A stream without a teacher: views are free, nothing is gathered."""

    in_memory = True

    def __init__(self, num_views: int) -> None:
        self.num_views = num_views

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Nothing to fetch."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """No signals."""
        return {}


# What a batch calls a signal, and the cache's signals whose mean it is: several where several teachers are cached.
Names = Mapping[str, Sequence[str]]
Parts = dict[str, dict[str, Tensor]]  # by the cache's signal and part


class _Decoder:
    """From stored parts to values: signals stay as they are stored until a batch of them was gathered."""

    def __init__(self, reader: LogitReader, names: Names) -> None:
        self._names, self._signals = names, reader.manifest.signals
        self.stored = sorted({signal for signals in names.values() for signal in signals})

    def __call__(self, parts: Parts) -> dict[str, Tensor]:
        """Values float32 (B, …) by the batch's names."""
        values = {name: self._signals[name].codec.decode(parts[name], self._signals[name].row) for name in self.stored}
        return {
            name: values[signals[0]] if len(signals) == 1 else torch.stack([values[s] for s in signals]).mean(dim=0)
            for name, signals in self._names.items()
        }


class ResidentSignals:
    """Every view of the named signals in memory, as stored, read once: any schedule can gather from it."""

    in_memory = True

    def __init__(self, reader: LogitReader, names: Names, device: torch.device) -> None:
        plan = reader.plan
        self.num_views = plan.num_views
        self._decode = _Decoder(reader, names)
        self._planes: Parts = {}
        for name in self._decode.stored:
            self._planes[name] = {
                part: torch.empty((plan.num_views, plan.num_samples, *row), dtype=_torch_dtype(dtype), device=device)
                for part, (dtype, row) in reader.manifest.parts(name).items()
            }
            for block, stored in zip(plan.blocks(), reader.stored_each(plan.blocks(), name), strict=True):
                for part, array in stored.items():
                    self._planes[name][part][block.view, block.start : block.stop] = torch.from_numpy(array.copy())

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Everything is at hand."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """The rows of these keys of every signal: {name: (B, …)}."""
        return self._decode(
            {
                name: {part: plane[view_B, index_B] for part, plane in parts.items()}
                for name, parts in self._planes.items()
            }
        )


class StreamedSignals:
    """One view of the named signals in memory at a time, the next one read while this one trains: for `cycle`."""

    in_memory = False

    def __init__(self, reader: LogitReader, names: Names, device: torch.device) -> None:
        self.num_views = reader.plan.num_views
        self._reader, self._device = reader, device
        self._decode = _Decoder(reader, names)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-view")
        self._ahead: tuple[int, Future[Parts]] | None = None
        self._plane: tuple[int, Parts] | None = None

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Make the epoch's view the one in memory, and start to read the next."""
        view = epoch % self.num_views
        if self._plane is None or self._plane[0] != view:
            if self._ahead is None or self._ahead[0] != view:
                self._ahead = (view, self._thread.submit(self._read, view))
            self._plane = (view, self._ahead[1].result())
        following = (view + 1) % self.num_views
        if following != view:
            self._ahead = (following, self._thread.submit(self._read, following))

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """The rows of these keys of every signal: {name: (B, …)}; all of the view in memory."""
        assert self._plane is not None
        assert bool((view_B == self._plane[0]).all())
        return self._decode(
            {name: {part: plane[index_B] for part, plane in parts.items()} for name, parts in self._plane[1].items()}
        )

    def _read(self, view: int) -> Parts:
        planes: Parts = {}
        for name in self._decode.stored:
            blocks = list(self._reader.stored_each(self._reader.plan.blocks_of_view(view), name))
            planes[name] = {
                part: torch.from_numpy(np.concatenate([block[part] for block in blocks])).to(self._device)
                for part in blocks[0]
            }
        return planes


class WindowedSignals:
    """The blocks of the named signals that a window of the training order needs, and the next window's: on the host.

    For orders and schedules in which a block's samples follow one another closely and share a view.
    """

    in_memory = False

    def __init__(self, reader: LogitReader, names: Names, device: torch.device, window: int) -> None:
        self.num_views = reader.plan.num_views
        self._reader, self._device = reader, device
        self._decode = _Decoder(reader, names)
        self._position_of_index = np.zeros(0, dtype=np.int64)
        self._blocks = ReadAhead(self._read, capacity=2 * max(1, window // reader.plan.block_rows))

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Learn which blocks the epoch will use in what order."""
        self._position_of_index = np.empty(len(index_N), dtype=np.int64)
        self._position_of_index[index_N.numpy()] = np.arange(len(index_N))
        self._blocks.follow(self._items(view_N, index_N))

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """The rows of these keys of every signal: {name: (B, …)}."""
        item_B, index = self._items(view_B, index_B), index_B.numpy()
        blocks = self._blocks.take(np.unique(item_B).tolist(), int(self._position_of_index[index].min()))
        rows: Parts = {}
        for name, parts in next(iter(blocks.values())).items():
            rows[name] = {}
            for part, first in parts.items():
                gathered = np.empty((len(index), *first.shape[1:]), first.dtype)
                for item, block in blocks.items():
                    here = item_B == item
                    gathered[here] = block[name][part][index[here] % self._reader.plan.block_rows]
                rows[name][part] = torch.from_numpy(gathered).to(self._device)
        return self._decode(rows)

    def _items(self, view_N: Tensor, index_N: Tensor) -> NDArray[np.int64]:
        """Each key's block as one number."""
        plan = self._reader.plan
        items: NDArray[np.int64] = view_N.numpy() * plan.blocks_per_view + index_N.numpy() // plan.block_rows
        return items

    def _read(self, item: int) -> dict[str, dict[str, Array]]:
        plan = self._reader.plan
        block = plan.block(*divmod(item, plan.blocks_per_view))
        return {name: self._reader.stored(block, name) for name in self._decode.stored}


def _torch_dtype(dtype: str) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Stream:
    """The training batches of one process: `epoch(e)` gives them in order.

    Without `window` an epoch's order is a full shuffle; with it, blocks of `block_rows` samples are shuffled, then the
    samples within every `window` of them. `live` makes signals of pixels, beside those that are cached.
    """

    def __init__(
        self,
        renderer: Renderer,
        normalize: Normalization,
        signals: Signals,
        *,
        schedule: str,
        seed: int,
        batch_size: int,
        block_rows: int | None = None,
        window: int | None = None,
        live: Live | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._views = one_of("schedule", schedule, SCHEDULES)
        self._live = live
        self.renderer, self._normalize, self._signals = renderer, normalize, signals
        self._seed, self._rank = seed, rank
        self._labels = renderer.images.labels_N.to(renderer.device)
        self.num_samples = len(renderer.images)
        self._block_rows, self._window = block_rows or self.num_samples, window
        self._shares = shares(self.num_samples, batch_size, world_size)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has, the same for every process."""
        return len(self._shares)

    @property
    def repeatable(self) -> bool:
        """Whether any batch can be made again at little cost: images and signals are in memory."""
        return isinstance(self.renderer, ResidentRenderer) and self._signals.in_memory

    @property
    def samples_per_epoch(self) -> int:
        """How many samples all processes together see in an epoch."""
        return self._shares[-1][-1]

    def keys(self, epoch: int) -> Keys:
        """The whole epoch's keys in training order, before they are shared out: two int64 (N,)."""
        if self._window is None:
            index_N = order_of_epoch(self._seed, epoch, self.num_samples)
        else:
            index_N = windowed_order(self._seed, epoch, self.num_samples, self._block_rows, self._window)
        view_N = self._views(self._seed, epoch, self.num_samples, self._signals.num_views, self._block_rows)
        return view_N[index_N], index_N

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of every batch of an epoch."""
        view_N, index_N = self.keys(epoch)
        self._signals.prepare(epoch, view_N, index_N)
        mine = [slice(bounds[self._rank], bounds[self._rank + 1]) for bounds in self._shares]
        keys = [(view_N[rows], index_N[rows]) for rows in mine]
        used = keys
        if self.repeatable:  # all at once: a copy to a GPU for each batch would wait for what was launched before
            views, indices = view_N.to(self.renderer.device), index_N.to(self.renderer.device)
            used = [(views[rows], indices[rows]) for rows in mine]
        batches = zip(keys, used, self._shares, self.renderer.render(used), strict=True)
        for (view_B, index_B), used_B, bounds, pixels_BCHW in batches:
            signals = self._signals.gather(*used_B)
            if self._live is not None:
                signals |= self._live(pixels_BCHW)
            yield Batch(
                epoch=epoch,
                view_B=view_B,
                index_B=index_B,
                images_BCHW=self._normalize(pixels_BCHW),
                labels_B=self._labels[used_B[1].to(self._labels.device)],
                teacher=signals,
                global_size=bounds[-1] - bounds[0],
            )


def shares(num_samples: int, batch_size: int, world_size: int) -> list[list[int]]:
    """Where each step's batch is cut between the processes: for every step world_size + 1 bounds into the order.

    The batch size is that of all processes together; their shares differ by at most one row. The last batch may be
    smaller. A batch that would leave a process fewer than two rows is dropped, since batch norm can't use one.
    """
    if batch_size < 2 * world_size:
        raise ConfigError(f"batch_size: expected at least 2 rows for each of {world_size} processes, got {batch_size}")
    steps = []
    for start in range(0, num_samples, batch_size):
        rows = min(batch_size, num_samples - start)
        if rows // world_size >= 2:
            steps.append([start + rows * rank // world_size for rank in range(world_size + 1)])
    if not steps:
        raise ConfigError(f"data: {num_samples} samples are too few for {world_size} processes")
    return steps


def check_witnesses(
    renderer: Renderer, reader: LogitReader, *, seed: int, rows_per_block: int, max_blocks: int, versions: str = ""
) -> int:
    """Re-render random rows of random blocks and compare them with what the cache remembers; how many were compared.

    Needs no teacher. Raises `CacheMismatch`, naming keys, where the pixels are not those that the teacher saw: another
    order of the data set, a drift of the recipe or of a library, a wrong offset. `versions` is what the error says of
    the libraries on both sides.
    """
    blocks = reader.plan.blocks()
    numbers = _sample(seed, 0, len(blocks), max_blocks).tolist()
    rows = [_sample(seed, number + 1, len(blocks[number]), rows_per_block) for number in numbers]
    keys = [
        (torch.full_like(row_B, blocks[number].view), row_B + blocks[number].start)
        for number, row_B in zip(numbers, rows, strict=True)
    ]
    for number, row_B, (_, index_B), pixels in zip(numbers, rows, keys, renderer.render(keys), strict=True):
        block, got = blocks[number], witnesses(pixels)
        expected = reader.witness(block)[row_B.numpy()]
        wrong = np.flatnonzero(got != expected)
        if len(wrong):
            raise CacheMismatch(
                f"pixels differ from those that the teacher saw: {len(wrong)} of {len(got)} rows in {block},"
                f" first at view {block.view}, index {int(index_B[int(wrong[0])])} (crc32 expected"
                f" {int(expected[wrong[0]]):08x}, got {int(got[wrong[0]]):08x}); the data set, the recipe or a library"
                f" has changed since the cache was written{versions}"
            )
    return sum(len(row_B) for row_B in rows)


def _sample(seed: int, plane: int, num: int, at_most: int) -> Tensor:
    """Different numbers below `num`, at most so many, int64."""
    raw = raw_rows(seed, Domain.SPOT_CHECK, plane, 0, num)[:, 0]
    return torch.from_numpy(permutations(raw)[:at_most])
