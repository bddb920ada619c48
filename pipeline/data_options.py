"""Options that depend on the machine and are not part of an experiment: where data is and how it is read.

This is a separate module, because the command line needs it before anything heavy is imported.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class DataOptions:
    """Where a data set's files are (`root`: a folder or a URL) and how they are read.

    `workers` processes decode photographs for this process; None means one for each core in its share of the cores. Up
    to `allow_bad` files may be unreadable in each process. Files fetched from URLs take up to `fetched_gb` GB of disk.
    """

    root: str | None = None
    download: bool = False
    workers: int | None = None
    allow_bad: int = 0
    fetched_gb: int = 20

    @property
    def num_workers(self) -> int:
        """The number of processes that decode photographs for this process."""
        if self.workers is not None:
            return self.workers
        return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
