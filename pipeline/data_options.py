"""Options that depend on the machine and are not part of an experiment: where the data is and how it is read.

This is a separate module, because the command line needs it before anything heavy is imported.
"""

from dataclasses import dataclass

from dhkd.pipeline.launch import processes_here
from dhkd.pipeline.limits import available_cores


@dataclass(frozen=True)
class DataOptions:
    """Where a data set's files are (`root`: a folder or a URL) and how they are read.

    `workers` is the number of processes that decode photographs for each compute process; None means one for each core
    in the compute process's share of the cores. Up to `allow_bad` files may be unreadable in each compute process.
    Image shards fetched from URLs take up to `fetched_gb` GB of disk, and fetched parts of caches as much again. With
    `shared`, large images in memory are among the latter, in files that the processes of this machine map.
    """

    root: str | None = None
    download: bool = False
    workers: int | None = None
    allow_bad: int = 0
    fetched_gb: int = 20
    shared: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether other processes on this machine are known or expected to hold the same images."""
        return self.shared or processes_here() > 1

    @property
    def num_workers(self) -> int:
        """The number of processes that decode photographs for this compute process."""
        if self.workers is not None:
            return self.workers
        return max(1, available_cores() // processes_here())
