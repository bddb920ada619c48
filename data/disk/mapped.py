"""Files that are mapped into memory: all processes of a machine share the pages that the system keeps of them."""

import logging
import mmap as mmap_module
import os
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from typing import BinaryIO

import psutil

log = logging.getLogger("dhkd")

Content = bytes | mmap  # of a file, in memory of this process or mapped

# With this flag, the system finds all pages at once, and not one by one when they are first used.
_POPULATE = getattr(mmap_module, "MAP_POPULATE", 0)

# File systems on a disk or in the memory of this machine. A page of a mapped file may be read at any time. If a server
# doesn't answer then, the process is killed without a word, so files on other file systems are not mapped.
LOCAL = ("apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "overlay", "tmpfs", "xfs", "zfs")


def mapped(file: BinaryIO, content: bytes) -> Content:
    """Return the file mapped into memory, or `content`, its bytes, where it can't be mapped."""
    try:
        return mmap(file.fileno(), len(content), MAP_SHARED | _POPULATE, PROT_READ)
    except (OSError, ValueError) as error:  # too many open files, a file system without mapping, an empty file
        log.debug("%s: can't be mapped (%s)", file.name, error)
        return content


def file_system_of(path: Path) -> str:
    """Return the name of the file system on which `path` is, or will be made; "unknown" if the system doesn't tell."""
    actual = os.path.realpath(path)
    name, longest = "unknown", -1
    for mount in psutil.disk_partitions(all=True):
        point = mount.mountpoint.rstrip(os.sep)
        # Of several file systems that were mounted at one place, the last one is seen.
        if (actual == point or actual.startswith(point + os.sep)) and len(point) >= longest:
            name, longest = mount.fstype, len(point)
    return name
