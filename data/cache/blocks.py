"""Blocks: runs of consecutive indices of one view, the unit of work, ownership, storage, resumption and reading.

In every layout, each block of a signal (a teacher output such as logits) or of the witness (a checksum of each row's
rendered pixels) has its own objects. Each object is written once, as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WITNESS = "witness"  # the array beside the signals: a checksum of each row's rendered pixels

MOST_BLOCKS = 500_000  # of a cache; every process lists them, so a manifest with more would take minutes and gigabytes

Array = NDArray[np.generic]
Part = tuple[str, tuple[int, ...]]  # a stored array's dtype, and the shape of one of its rows


@dataclass(frozen=True, order=True)
class Block:
    """Rows `start` to `stop` (exclusive) of view `view`; `number` is the block's position in its view, from 0."""

    view: int
    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"view {self.view}, rows {self.start} to {self.stop}"

    def batches(self, batch_size: int, group: int = 1) -> Iterator[tuple[int, int]]:
        """Yield the block's rows in runs of at most `batch_size`, as (start, stop) indices of the view.

        A run that isn't the last ends at a multiple of `group`, if it reaches one. The runs depend only on the block,
        `batch_size` and `group`.
        """
        start = self.start
        while start < self.stop:
            stop = min(start + batch_size, self.stop)
            if stop < self.stop and stop // group * group > start:
                stop = stop // group * group
            yield start, stop
            start = stop


@dataclass(frozen=True)
class Plan:
    """How (num_views, num_samples) rows are cut into blocks of at most `block_rows` rows.

    In a plan that `balanced` built, the last block of a view is at most a few rows shorter than the others.
    """

    num_views: int
    num_samples: int
    block_rows: int

    @classmethod
    def balanced(cls, num_views: int, num_samples: int, row_bytes: int, block_bytes: int) -> "Plan":
        """Build the plan with the fewest equal blocks of at most `block_bytes` each; a block has at least one row."""
        largest = max(1, block_bytes // row_bytes)
        per_view = -(-num_samples // largest)
        return cls(num_views, num_samples, -(-num_samples // per_view))

    @property
    def blocks_per_view(self) -> int:
        """The number of blocks of a view."""
        return -(-self.num_samples // self.block_rows)

    @property
    def num_blocks(self) -> int:
        """The number of blocks of all views."""
        return self.num_views * self.blocks_per_view

    def block(self, view: int, number: int) -> Block:
        """Return block `number` of view `view`."""
        start = number * self.block_rows
        return Block(view, number, start, min(start + self.block_rows, self.num_samples))

    def blocks_of_view(self, view: int) -> list[Block]:
        """Return a view's blocks, in order."""
        return [self.block(view, number) for number in range(self.blocks_per_view)]

    def blocks(self) -> list[Block]:
        """Return all blocks, view by view."""
        return [block for view in range(self.num_views) for block in self.blocks_of_view(view)]
