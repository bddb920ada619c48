"""How many cores and how much memory this process may use: the machine's, or less in a container or a batch job.

Containers and batch systems limit a control group (cgroup), of version 1 or 2. Its limits, and those of the groups
around it, are files in a folder for each group.

This is a separate module, because the command line needs it before anything heavy is imported.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def available_cores(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return how many cores this process may use, at least 1; a part of a core counts as a core."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _folders("cpu", groups, own):
        quota, period = _numbers(folder / "cpu.max", 2)
        if quota is None:
            (quota,), (period,) = _numbers(folder / "cpu.cfs_quota_us", 1), _numbers(folder / "cpu.cfs_period_us", 1)
        if quota is not None and period and quota > 0:
            cores = min(cores, quota / period)
    return max(1, int(-(-cores // 1)))


def available_memory(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return how many bytes of memory this process may still take."""
    free = _machines_memory()
    for folder in _folders("memory", groups, own):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            (limit,), (used,) = _numbers(folder / limit_name, 1), _numbers(folder / used_name, 1)
            if limit is not None and used is not None:
                # Pages of files that were read and are not in use count as used, but are given up on demand.
                free = min(free, limit - used + _reclaimable(folder))
    return max(0, free)


def _machines_memory() -> int:
    import psutil

    try:
        return int(psutil.virtual_memory().available)
    except (OSError, RuntimeError):  # without /proc
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _folders(controller: str, groups: Path, own: Path) -> Iterator[Path]:
    """Yield the folder of this process's group of the controller, and those of all groups around it."""
    paths = {"/"}  # the container's own group, even if the others can't be seen
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                paths.add(path)
    for top in (groups, groups / controller):  # of version 2 and of version 1
        folders = {top / path.lstrip("/") for path in paths}
        around = {each for folder in folders for each in (folder, *folder.parents) if each.is_relative_to(top)}
        yield from sorted(around)


def _numbers(file: Path, count: int) -> list[int | None]:
    """Return the first `count` numbers of a file; None stands for a number that is absent or unlimited."""
    try:
        words = file.read_text().split()[:count]
    except OSError:
        words = []
    return [int(words[i]) if i < len(words) and words[i].isdecimal() else None for i in range(count)]


def _reclaimable(folder: Path) -> int:
    try:
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(facts.get("total_inactive_file") or facts.get("inactive_file") or 0)
    except (OSError, ValueError):
        return 0
