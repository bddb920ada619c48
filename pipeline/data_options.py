"""Where data is and how it is read: what differs from machine to machine and is no part of an experiment.

Of its own, since the command line needs it before anything heavy is imported.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class DataOptions:
    """`root` is a folder or a URL. `workers` processes decode photographs, None: as many as this process has cores.

    `allow_bad` files may be unreadable. Shards fetched from a URL take `fetched_gb` of disk.
    """

    root: str | None = None
    download: bool = False
    workers: int | None = None
    allow_bad: int = 0
    fetched_gb: int = 20

    @property
    def num_workers(self) -> int:
        """How many processes decode for this one."""
        if self.workers is not None:
            return self.workers
        return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
