"""Training batches: images, labels and the teacher's signals (outputs such as logits), joined by key (view, index).

Order and views are functions of (seed, epoch), so every process computes the same keys and takes its own share.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dhkd.data.draws.orders import order_of_epoch, windowed_order
from dhkd.data.draws.schedules import SCHEDULES
from dhkd.data.errors import ConfigError, one_of
from dhkd.data.recipes.base import Recipe
from dhkd.data.render import Keys, Normalization, Renderer
from dhkd.data.stream.labels import Labels, labels_of_batches
from dhkd.data.stream.signals import Signals
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One process's share of one training step's batch.

    The keys `view_B` and `index_B` are int64 on the CPU. The other tensors are on the device: `images_BCHW`, float32;
    `labels`; and the signals in `teacher`, each float32 (B, …); logits are (B, K) for K classes. `global_size` is the
    number of rows in all processes together; `epoch` counts from 0.
    """

    epoch: int
    view_B: Tensor
    index_B: Tensor
    images_BCHW: Tensor
    labels: Labels
    teacher: Mapping[str, Tensor]
    global_size: int


# A teacher that runs in every step. It takes pixels, uint8 (B, C, H, W) on the device, and returns signals, {name:
# float32 (B, …)}.
Live = Callable[[Tensor], dict[str, Tensor]]


class Stream:
    """The training batches of one process.

    Without `window`, an epoch's order is a full shuffle. With `window`, blocks of `block_rows` samples are shuffled,
    and then the samples within each window of about `window` samples. If `block_rows` is None, all samples make one
    block. `schedule`, a name in `SCHEDULES`, decides which view of a sample an epoch shows. `live` computes signals
    from pixels, in addition to those in `signals`; if it is None, only the signals in `signals` are used. These
    pixels are rendered with `live_recipe`; if it is None, they are the student's pixels.
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
        live_recipe: Recipe | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.renderer, self.num_samples, self.batch_size = renderer, len(renderer.images), batch_size
        self._seed, self._window, self._block_rows = seed, window, block_rows or self.num_samples
        self._schedule = one_of("schedule", schedule, SCHEDULES)
        self._shares, self._rank = shares(self.num_samples, batch_size, world_size), rank
        self._normalize, self._signals, self._live, self._live_recipe = normalize, signals, live, live_recipe
        labels_N = renderer.images.labels_N
        self._labels_N = None if labels_N is None else labels_N.to(renderer.device)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self._labels_N is not None

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch, the same for every process."""
        return len(self._shares)

    @property
    def repeatable(self) -> bool:
        """Whether any batch can be repeated at little cost, because images and signals are in memory."""
        return self.renderer.in_memory and self._signals.in_memory

    @property
    def samples_per_epoch(self) -> int:
        """The number of samples that all processes together see in an epoch."""
        return self._shares[-1][-1]

    def keys(self, epoch: int) -> Keys:
        """Return the keys of a whole epoch, for all processes, in training order: views and indices, int64 (N,)."""
        if self._window is None:
            index_N = order_of_epoch(self._seed, epoch, self.num_samples)
        else:
            index_N = windowed_order(self._seed, epoch, self.num_samples, self._block_rows, self._window)
        view_N = self._schedule(self._seed, epoch, self.num_samples, self._signals.num_views, self._block_rows)
        return view_N[index_N], index_N

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield this process's share of every batch of an epoch, in order."""
        view_N, index_N = self.keys(epoch)
        self._signals.prepare(epoch, view_N, index_N)
        own_rows = [slice(bounds[self._rank], bounds[self._rank + 1]) for bounds in self._shares]
        keys = [(view_N[rows], index_N[rows]) for rows in own_rows]
        keys_for_gather = keys
        if self.repeatable:  # one copy of all keys, because a copy for each batch would wait for work queued on the GPU
            views, indices = view_N.to(self.renderer.device), index_N.to(self.renderer.device)
            keys_for_gather = [(views[rows], indices[rows]) for rows in own_rows]
        rendered = self.renderer.render_twice(keys_for_gather, self._live_recipe)
        labels = labels_of_batches(self._labels_N, self.renderer, keys_for_gather)
        for own_keys, gather_keys, bounds, pixels, of_batch in zip(
            keys, keys_for_gather, self._shares, rendered, labels, strict=True
        ):
            yield self._join(epoch, own_keys, gather_keys, pixels, of_batch, bounds[-1] - bounds[0])

    def _join(
        self,
        epoch: int,
        keys: Keys,
        gather_keys: Keys,
        pixels: tuple[Tensor, Tensor],
        labels: Labels,
        global_size: int,
    ) -> Batch:
        """Build the batch of these keys; `gather_keys` are equal, but on the device if `repeatable`.

        `pixels` are the student's and the live teacher's.
        """
        pixels_BCHW, teachers_pixels_BCHW = pixels
        signals = self._signals.gather(*gather_keys)
        if self._live is not None:
            signals |= self._live(teachers_pixels_BCHW)
        return Batch(
            epoch=epoch,
            view_B=keys[0],
            index_B=keys[1],
            images_BCHW=self._normalize(pixels_BCHW),
            labels=labels,
            teacher=signals,
            global_size=global_size,
        )


def shares(num_samples: int, batch_size: int, world_size: int) -> list[list[int]]:
    """Divide each step's batch among the processes.

    Return, for every step, world_size + 1 bounds: process r takes positions bounds[r] to bounds[r + 1] of the
    epoch's order.

    `batch_size` counts the rows of all processes; the processes' shares differ by at most one row. The last batch may
    be smaller, and is dropped if a process would get fewer than two rows, because batch norm needs two.
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
