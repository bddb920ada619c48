"""The parts of a run that was interrupted, and how many processes trained each of them.

Order, views and the size of a batch don't depend on the number of processes, so a run may go on with another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Consecutive `epochs` that the same number of `processes` trained."""

    epochs: int
    processes: int


def with_epoch(parts: Sequence[Part], processes: int) -> list[Part]:
    """Return the parts after one more epoch, which so many processes trained."""
    if parts and parts[-1].processes == processes:
        return [*parts[:-1], Part(parts[-1].epochs + 1, processes)]
    return [*parts, Part(1, processes)]


def change(parts: Sequence[Part], processes: int, batch_size: int) -> str | None:
    """Return what changes if so many processes go on with a run of these parts, or None if nothing does."""
    if not parts or parts[-1].processes == processes:
        return None
    before = parts[-1].processes
    return (
        f"goes on with {processes} process{'es' * (processes > 1)} instead of {before}: a batch is still {batch_size}"
        f" samples in the same order, {_share(batch_size, processes)} in each process instead of"
        f" {_share(batch_size, before)}, over which batch norm takes its statistics; the learning rate is unchanged"
    )


def _share(batch_size: int, processes: int) -> str:
    least, rest = divmod(batch_size, processes)
    return f"{least} or {least + 1}" if rest else str(least)
