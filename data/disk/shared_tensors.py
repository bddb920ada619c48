"""Tensors that many processes of a machine hold, such as decoded images: one copy in a file, which all of them map.

A file is named by a checksum of its bytes, and compared with the tensor that it stands for. So a damaged file, or one
of other values, is never used, and nobody has to trust who wrote it.
"""

import logging
from collections.abc import Callable
from mmap import ACCESS_COPY, mmap
from typing import BinaryIO

import numpy as np
import torch
from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.mapped import LOCAL, file_system_of
from google_crc32c import value as crc32c
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger("dhkd")

Keep = Callable[[Tensor], Tensor]  # returns an equal tensor, perhaps in shared memory

LEAST_BYTES = 32 * 10**6  # smaller tensors are not worth a file
COMPARED_AT_ONCE = 1 << 24  # bytes


def private(tensor: Tensor) -> Tensor:
    """Return the tensor itself, which other processes don't share."""
    return tensor


def sharing_with(copies: BoundedCopies) -> Keep:
    """Return a function that moves large tensors of a CPU into files among `copies`, and maps them.

    Where this isn't possible, or another file system than that of a local disk holds the copies, it returns the tensor
    itself.
    """

    def keep(tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu" or not LEAST_BYTES <= tensor.nbytes <= copies.keep_bytes:
            return tensor
        place = file_system_of(copies.folder)
        if place not in LOCAL:
            log.info("%s may be on another machine (%s), so each process holds its own images", copies.folder, place)
            return tensor
        try:
            return _mapped(tensor, copies)
        except OSError as error:
            log.info("%s: %s, so each process holds its own images", copies.folder, error.strerror)
            return tensor

    return keep


def _mapped(tensor: Tensor, copies: BoundedCopies) -> Tensor:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    name = f"{crc32c(content):08x}-{len(content)}.tensor"

    def write(file: BinaryIO) -> None:
        file.write(content.data)

    for _ in range(2):
        with copies.open(name, write) as file:
            if file.seek(0, 2) == len(content):
                # Processes share the pages that none of them writes to; a mapping without writing makes torch warn.
                same = torch.frombuffer(mmap(file.fileno(), len(content), access=ACCESS_COPY), dtype=torch.uint8)
                if _equal(content, same.numpy()):
                    return same.view(tensor.dtype).view(tensor.shape)
        copies.forget(name)
    return tensor


def _equal(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    starts = range(0, len(one), COMPARED_AT_ONCE)
    return all(np.array_equal(one[at : at + COMPARED_AT_ONCE], other[at : at + COMPARED_AT_ONCE]) for at in starts)
