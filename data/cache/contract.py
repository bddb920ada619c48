"""What a cache promises: blocks, and how a store lays them out as objects.

A block is a run of consecutive indices of one view: the unit of work, of ownership by a process, of storage, of
resumption and of reading. A store gives each block its own objects for each signal and for the witness, and every
object is put once, whole. Writer and reader are the same for all stores and all places.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

WITNESS = "witness"  # the array beside the signals: a checksum of each row's rendered pixels

Array = NDArray[np.generic]
Part = tuple[str, tuple[int, ...]]  # dtype and shape of a row


@dataclass(frozen=True, order=True)
class Block:
    """Rows `start` to `stop` (exclusive) of view `view`; `number` counts a view's blocks."""

    view: int
    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"view {self.view}, rows {self.start} to {self.stop}"

    def batches(self, batch_size: int) -> Iterator[tuple[int, int]]:
        """The block's rows in runs of `batch_size`, as (start, stop): the same whoever computes them."""
        for start in range(self.start, self.stop, batch_size):
            yield start, min(start + batch_size, self.stop)


@dataclass(frozen=True)
class Plan:
    """How (num_views, num_samples) rows are cut into blocks of at most `block_rows` rows.

    `block_rows` is balanced, so that a view's last block is at most a few rows shorter than the others.
    """

    num_views: int
    num_samples: int
    block_rows: int

    @classmethod
    def balanced(cls, num_views: int, num_samples: int, row_bytes: int, block_bytes: int) -> "Plan":
        """The fewest equal blocks of at most `block_bytes` each (at least one row)."""
        largest = max(1, block_bytes // row_bytes)
        per_view = -(-num_samples // largest)
        return cls(num_views, num_samples, -(-num_samples // per_view))

    @property
    def blocks_per_view(self) -> int:
        """How many blocks a view has."""
        return -(-self.num_samples // self.block_rows)

    def block(self, view: int, number: int) -> Block:
        """Block `number` of view `view`."""
        start = number * self.block_rows
        return Block(view, number, start, min(start + self.block_rows, self.num_samples))

    def blocks_of_view(self, view: int) -> list[Block]:
        """A view's blocks, in order."""
        return [self.block(view, number) for number in range(self.blocks_per_view)]

    def blocks(self) -> list[Block]:
        """All blocks, view by view."""
        return [block for view in range(self.num_views) for block in self.blocks_of_view(view)]


class Layout(Protocol):
    """How a store lays one cache's blocks out as objects: keys, sizes and bytes, and nothing of where they lie.

    Arrays go by name: each signal's, and the witness's. An array's parts are what its codec makes of it.
    """

    def structure(self) -> dict[str, bytes]:
        """The objects beside the blocks, in the order of writing; the last holds the manifest."""

    def objects(self, name: str, block: Block) -> dict[str, int]:
        """The objects of a block of an array: their sizes by their keys."""

    def pack(self, name: str, block: Block, parts: Mapping[str, Array]) -> dict[str, bytes]:
        """A block of an array as objects; the same bytes whenever and wherever."""

    def unpack(self, name: str, block: Block, contents: Mapping[str, bytes]) -> dict[str, Array]:
        """The inverse of `pack`, for contents that passed `checksum`."""

    def checksum(self, key: str, content: bytes) -> int:
        """What the index remembers of an object's bytes; raises `CacheDamaged` where they contradict themselves."""
