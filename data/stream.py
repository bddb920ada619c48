"""The join of image, label and teacher's signals by key: the one place where a batch comes together.

Keys, order and views are functions of (seed, epoch), so every process computes them alike and takes its own share.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from dhkd.data.cache.contract import WITNESS, LogitReader, read_view
from dhkd.data.errors import CacheMismatch, ConfigError, one_of
from dhkd.data.philox import Domain, permutations, raw_rows
from dhkd.data.render import Normalization, Renderer, witnesses
from dhkd.data.schedule import SCHEDULES, order_of_epoch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One process's share of one training step.

    Keys `view_B` and `index_B` are int64 on the CPU; `images_BCHW` float32, `labels_B` int64 and every signal of
    `teacher` (as stored: (B, K) for logits) are on the device. `global_size` counts the rows of all processes.
    """

    view_B: Tensor
    index_B: Tensor
    images_BCHW: Tensor
    labels_B: Tensor
    teacher: Mapping[str, Tensor]
    global_size: int


class Signals(Protocol):
    """Where a stream takes the teacher's signals from."""

    num_views: int

    def prepare(self, epoch: int) -> None:
        """Have at hand what `gather` will ask for in this epoch."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """The rows of these keys of every signal: {name: (B, …)}."""


class NoSignals:
    """A stream without a teacher: views are free, nothing is gathered."""

    def __init__(self, num_views: int) -> None:
        self.num_views = num_views

    def prepare(self, epoch: int) -> None:
        """Nothing to fetch."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """No signals."""
        return {}


class ResidentSignals:
    """Every view of the named signals in memory, read once: any schedule can gather from it."""

    def __init__(self, reader: LogitReader, names: Sequence[str], device: torch.device) -> None:
        plan = reader.plan
        self.num_views = plan.num_views
        self._planes: dict[str, Tensor] = {}
        for name in names:
            signal = reader.manifest.signals[name]
            dtype = torch.from_numpy(np.empty(0, signal["dtype"])).dtype
            planes = torch.empty((plan.num_views, plan.num_samples, *signal["row"]), dtype=dtype, device=device)
            for block in plan.blocks():
                planes[block.view, block.start : block.stop] = torch.from_numpy(reader.read(block, name))
            self._planes[name] = planes

    def prepare(self, epoch: int) -> None:
        """Everything is at hand."""

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        """The rows of these keys of every signal: {name: (B, …)}."""
        return {name: planes[view_B, index_B] for name, planes in self._planes.items()}


class StreamedSignals:
    """One view of the named signals in memory at a time, the next one read while this one trains: for `cycle`."""

    def __init__(self, reader: LogitReader, names: Sequence[str], device: torch.device) -> None:
        self.num_views = reader.plan.num_views
        self._reader, self._names, self._device = reader, names, device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-view")
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._plane: tuple[int, dict[str, Tensor]] | None = None

    def prepare(self, epoch: int) -> None:
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
        return {name: plane[index_B] for name, plane in self._plane[1].items()}

    def _read(self, view: int) -> dict[str, Tensor]:
        return {name: torch.from_numpy(read_view(self._reader, view, name)).to(self._device) for name in self._names}


class Stream:
    """The training batches of one process: `epoch(e)` gives them in order."""

    def __init__(
        self,
        renderer: Renderer,
        normalize: Normalization,
        signals: Signals,
        *,
        schedule: str,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._views = one_of("schedule", schedule, SCHEDULES)
        self._renderer, self._normalize, self._signals = renderer, normalize, signals
        self._seed, self._rank = seed, rank
        self._labels = renderer.images.labels_N.to(renderer.device)
        self._shares = shares(len(renderer.images), batch_size, world_size)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has, the same for every process."""
        return len(self._shares)

    @property
    def samples_per_epoch(self) -> int:
        """How many samples all processes together see in an epoch."""
        return self._shares[-1][-1]

    def keys(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The whole epoch's keys in training order, before they are shared out: two int64 (N,)."""
        num_samples = len(self._renderer.images)
        index_N = order_of_epoch(self._seed, epoch, num_samples)
        return self._views(self._seed, epoch, num_samples, self._signals.num_views)[index_N], index_N

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of every batch of an epoch."""
        self._signals.prepare(epoch)
        view_N, index_N = self.keys(epoch)
        for bounds in self._shares:
            mine = slice(bounds[self._rank], bounds[self._rank + 1])
            view_B, index_B = view_N[mine], index_N[mine]
            on_device = index_B.to(self._renderer.device)
            yield Batch(
                view_B=view_B,
                index_B=index_B,
                images_BCHW=self._normalize(self._renderer.pixels(view_B, on_device)),
                labels_B=self._labels[on_device],
                teacher=self._signals.gather(view_B, index_B),
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


def check_witnesses(renderer: Renderer, reader: LogitReader, *, seed: int, rows_per_block: int, max_blocks: int) -> int:
    """Re-render random rows of random blocks and compare them with what the cache remembers; how many were compared.

    Needs no teacher. Raises `CacheMismatch`, naming keys, where the pixels are not those that the teacher saw: another
    order of the data set, a drift of the recipe or of a library, a wrong offset.
    """
    blocks = reader.plan.blocks()
    compared = 0
    for number in _sample(seed, 0, len(blocks), max_blocks).tolist():
        block = blocks[number]
        row_B = _sample(seed, number + 1, len(block), rows_per_block)
        index_B = row_B + block.start
        got = witnesses(renderer.pixels(torch.full_like(index_B, block.view), index_B))
        expected = np.asarray(reader.read(block, WITNESS))[row_B.numpy()]
        wrong = np.flatnonzero(got != expected)
        if len(wrong):
            first = int(index_B[int(wrong[0])])
            raise CacheMismatch(
                f"pixels differ from those that the teacher saw: {len(wrong)} of {len(got)} rows in {block},"
                f" first at view {block.view}, index {first} (crc32 expected {int(expected[wrong[0]]):08x},"
                f" got {int(got[wrong[0]]):08x}); the data set, the recipe or a library has changed since"
                f" the cache was written"
            )
        compared += len(got)
    return compared


def _sample(seed: int, plane: int, num: int, at_most: int) -> Tensor:
    """Different numbers below `num`, at most so many, int64."""
    raw = raw_rows(seed, Domain.SPOT_CHECK, plane, 0, num)[:, 0]
    return torch.from_numpy(permutations(raw)[:at_most])
