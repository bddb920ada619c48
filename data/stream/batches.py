"""The join of image, label and teacher's signals by key: the one place where a batch comes together.

Keys, order and views are functions of (seed, epoch), so every process computes them alike and takes its own share.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dhkd.data.draws.orders import order_of_epoch, windowed_order
from dhkd.data.draws.schedules import SCHEDULES
from dhkd.data.errors import ConfigError, one_of
from dhkd.data.render import Keys, Normalization, Renderer
from dhkd.data.stream.labels import Labels
from dhkd.data.stream.signals import Signals
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One process's share of one training step.

    Keys `view_B` and `index_B` are int64 on the CPU; `images_BCHW` float32, `labels` and every signal of `teacher`,
    float32 ((B, K) for logits), are on the device. `global_size` counts the rows of all processes, `epoch`
    from 0.
    """

    epoch: int
    view_B: Tensor
    index_B: Tensor
    images_BCHW: Tensor
    labels: Labels
    teacher: Mapping[str, Tensor]
    global_size: int


# From pixels uint8 (B, C, H, W) on the device to signals float32 {name: (B, …)}: a teacher that runs in every step.
Live = Callable[[Tensor], dict[str, Tensor]]


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
        return self.renderer.in_memory and self._signals.in_memory

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
                labels=Labels(self._labels[used_B[1].to(self._labels.device)]),
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
