"""Four ways to hold a teacher's signals: none, all in memory, a view at a time, a window of blocks at a time."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from dhkd.data.cache.blocks import Array
from dhkd.data.cache.reader import LogitReader
from dhkd.data.stream.read_ahead import ReadAhead
from numpy.typing import NDArray
from torch import Tensor


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
