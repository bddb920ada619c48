"""Four ways to hold a teacher's signals, i.e. its outputs such as logits.

They are: no signals, all signals in memory, one view at a time, or one window of blocks at a time. A block is a run of
consecutive indices of one view. Signals stay in their stored form until the rows of a batch are gathered; only those
rows are decoded. Blocks are mapped from files where that is possible, so that the processes of a machine share them.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from dhkd.data.cache.blocks import Array
from dhkd.data.cache.reader import LogitReader
from dhkd.data.stream.held import Held, Parts, held_views
from dhkd.data.stream.read_ahead import ReadAhead
from numpy.typing import NDArray
from torch import Tensor

# Maps the name of each signal in a batch to names of cached signals: one name, or one for each of several teachers. The
# batch's signal is the mean of the cached signals.
Names = Mapping[str, Sequence[str]]


class Signals(Protocol):
    """Where a stream takes the teacher's signals from."""

    num_views: int
    in_memory: bool  # whether any rows can be gathered at any time

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Prepare for an epoch with these keys (view, index), in training order: int64 (N,) each."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """Return the rows of every signal for these keys: {name: float32 (B, …)}.

        Keys are on the CPU; if `in_memory` is true, they may also be on the signals' device.
        """


# none


class NoSignals:
    """Signals of a stream without a teacher: any view can be drawn, and nothing is gathered."""

    in_memory = True

    def __init__(self, num_views: int) -> None:
        self.num_views = num_views

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Do nothing."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """Return no signals."""
        return {}


# all in memory


class ResidentSignals:
    """All views of the named signals, read once at the start, so that any schedule can gather from them."""

    in_memory = True

    def __init__(self, reader: LogitReader, names: Names, device: torch.device) -> None:
        self.num_views = reader.plan.num_views
        self._decode = _Decoder(reader, names)
        self._held = held_views(reader, self._decode.stored, range(self.num_views), device)

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Do nothing."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """Return the rows of every signal for these keys: {name: float32 (B, …)}."""
        return self._decode(self._held.rows(view_B, index_B))


# one view at a time


class StreamedSignals:
    """One view of the named signals in memory, while the next view is read; requires the schedule `cycle`."""

    in_memory = False

    def __init__(self, reader: LogitReader, names: Names, device: torch.device) -> None:
        self.num_views = reader.plan.num_views
        self._reader, self._device = reader, device
        self._decode = _Decoder(reader, names)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-view")
        self._next: tuple[int, Future[Held]] | None = None  # the view that is being read
        self._current: tuple[int, Held] | None = None  # the view in memory

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Load the epoch's view into memory, and begin to read the next view."""
        view = epoch % self.num_views
        if self._current is None or self._current[0] != view:
            if self._next is None or self._next[0] != view:
                self._next = (view, self._thread.submit(self._read, view))
            self._current = (view, self._next[1].result())
        following = (view + 1) % self.num_views
        if following != view:
            self._next = (following, self._thread.submit(self._read, following))

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """Return the rows of every signal for keys of the epoch's view, and no other: {name: float32 (B, …)}."""
        assert self._current is not None
        view, held = self._current
        assert bool((view_B == view).all())
        return self._decode(held.rows(view_B, index_B))

    def _read(self, view: int) -> Held:
        return held_views(self._reader, self._decode.stored, range(view, view + 1), self._device)


# a window of blocks at a time


class WindowedSignals:
    """The blocks of the named signals that two windows of the training order need, the current and the next one.

    The blocks are in host memory. The order must keep a block's samples close together, and the schedule must give all
    samples of a block the same view.
    """

    in_memory = False

    def __init__(self, reader: LogitReader, names: Names, device: torch.device, window: int) -> None:
        self.num_views = reader.plan.num_views
        self._reader, self._device = reader, device
        self._decode = _Decoder(reader, names)
        self._position_N = np.zeros(0, dtype=np.int64)  # where each index comes in the epoch's order
        capacity = 2 * max(1, window // reader.plan.block_rows)
        unmapped = reader.why_unmapped(self._decode.stored, min(capacity, reader.plan.num_blocks))
        self._stored = reader.mapped if unmapped is None else reader.stored
        self._blocks = ReadAhead(self._read, capacity)

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        """Find out which blocks the epoch uses, and in which order."""
        self._position_N = np.empty(len(index_N), dtype=np.int64)
        self._position_N[index_N.numpy()] = np.arange(len(index_N))
        self._blocks.follow(self._block_ids(view_N, index_N))

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """Return the rows of every signal for these keys: {name: float32 (B, …)}."""
        id_B, indices = self._block_ids(view_B, index_B), index_B.numpy()
        blocks = self._blocks.take(np.unique(id_B).tolist(), int(self._position_N[indices].min()))
        rows: Parts = {}
        for name, parts in next(iter(blocks.values())).items():
            rows[name] = {}
            for part, first in parts.items():
                gathered = np.empty((len(indices), *first.shape[1:]), first.dtype)
                for block_id, block in blocks.items():
                    in_block = id_B == block_id
                    gathered[in_block] = block[name][part][indices[in_block] % self._reader.plan.block_rows]
                rows[name][part] = torch.from_numpy(gathered).to(self._device)
        return self._decode(rows)

    def _block_ids(self, view_N: Tensor, index_N: Tensor) -> NDArray[np.int64]:
        """Return each key's block as one number: view · blocks_per_view + the block's number in its view."""
        plan = self._reader.plan
        ids: NDArray[np.int64] = view_N.numpy() * plan.blocks_per_view + index_N.numpy() // plan.block_rows
        return ids

    def _read(self, block_id: int) -> dict[str, dict[str, Array]]:
        plan = self._reader.plan
        block = plan.block(*divmod(block_id, plan.blocks_per_view))
        return {name: self._stored(block, name) for name in self._decode.stored}


class _Decoder:
    """Decodes stored rows to the signals of a batch."""

    def __init__(self, reader: LogitReader, names: Names) -> None:
        self._names, self._signals = names, reader.manifest.signals
        self.stored = sorted({signal for signals in names.values() for signal in signals})

    def __call__(self, rows: Parts) -> dict[str, Tensor]:
        """Decode the rows of a batch: {name of a signal in the batch: float32 (B, …)}."""
        values = {name: self._signals[name].codec.decode(rows[name], self._signals[name].row) for name in self.stored}
        return {
            name: values[signals[0]] if len(signals) == 1 else torch.stack([values[s] for s in signals]).mean(dim=0)
            for name, signals in self._names.items()
        }
