"""What a cache promises: blocks, signals, and the pair of protocols that every store keeps.

A block is a run of consecutive indices of one view: the unit of work, of ownership by a process, of storage, of
resumption and of reading. A store gives each block one chunk of each array and puts it once, whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from dhkd.data.cache.manifest import Manifest
from dhkd.data.errors import NonFiniteLoss
from numpy.typing import NDArray

WITNESS = "witness"  # the array beside the signals: a checksum of each row's rendered pixels

# Largest relative error of a stored value: half a unit in the last place.
STORAGE_ERROR = {"float32": 2.0**-24, "float16": 2.0**-11}

# How far two forwards of the same rows may lie apart, relative to the row's largest logit: kernels differ with batch
# size, device and version, and the error grows over a network's depth. float32 differs by some 1e-6, so 1e-4 has room.
COMPUTE_ERROR = {"float32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}


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


class LogitWriter(Protocol):
    """Puts blocks into a cache; any number of writers may work on different blocks of one cache."""

    @property
    def plan(self) -> Plan:
        """How the cache is cut into blocks."""

    def missing(self) -> list[Block]:
        """The blocks that are not finished, by listing what is stored."""

    def write(self, block: Block, rows: Mapping[str, NDArray[np.generic]]) -> None:
        """Put one block: every signal, float (rows, …), and the witness, uint32 (rows,). Durable on return."""

    def finish(self) -> None:
        """Declare the cache complete; raises `CacheIncomplete` when a block is missing."""


class LogitReader(Protocol):
    """Reads a complete cache."""

    @property
    def manifest(self) -> Manifest:
        """What is cached."""

    @property
    def plan(self) -> Plan:
        """How the cache is cut into blocks."""

    def require_complete(self) -> None:
        """Raise `CacheIncomplete` unless every block is there, `CacheDamaged` when the cache was changed since."""

    def read(self, block: Block, name: str) -> NDArray[np.generic]:
        """One block of one array, as stored: (rows, …). Raises `CacheDamaged`, never gives fill values."""


def read_view(reader: LogitReader, view: int, name: str) -> NDArray[np.generic]:
    """One whole view of a signal or of the witness: (N, …)."""
    return np.concatenate([reader.read(block, name) for block in reader.plan.blocks_of_view(view)])


def tolerance(signal_dtype: str, precision: str, live: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far a stored row may lie from the same row computed live: float32 (B, 1) for logits (B, K).

    The error of storing plus that of computing in `precision`, both relative to the row's largest |logit|.
    """
    largest = np.abs(live).max(axis=-1, keepdims=True)
    return np.asarray((STORAGE_ERROR[signal_dtype] + COMPUTE_ERROR[precision]) * largest, dtype=np.float32)


def encode(name: str, block: Block, values: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """Values (rows, …) as they are stored in `dtype`.

    Raises `NonFiniteLoss`, naming the first key, where a value is not finite or does not fit the dtype.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    bad_rows: Sequence[int] = np.flatnonzero(~np.isfinite(stored).reshape(len(stored), -1).all(axis=1)).tolist()
    if bad_rows:
        row = bad_rows[0]
        worst = float(np.abs(values[row]).max())
        remedy = "use cache.dtype=float32" if np.isfinite(worst) else "check the teacher's weights and precision"
        raise NonFiniteLoss(
            f"signal {name}, view {block.view}, index {block.start + row}: expected finite {dtype} values,"
            f" got a largest magnitude of {worst:g}; {len(bad_rows)} rows of this block are affected; {remedy}"
        )
    return stored
