"""Check that the pixels of views are still the same as when the teacher saw them.

Random rows of the cache, each with a key (view, index), are rendered and compared with the cache's witnesses, the
checksums of each row's rendered pixels.
"""

import numpy as np
import torch
from dhkd.data.cache.reader import LogitReader
from dhkd.data.draws.philox import Domain, permutations, raw_rows
from dhkd.data.errors import CacheMismatch
from dhkd.data.images.witness import witnesses
from dhkd.data.render import Renderer
from torch import Tensor


def check_witnesses(
    renderer: Renderer, reader: LogitReader, *, seed: int, rows_per_block: int, max_blocks: int, versions: str = ""
) -> int:
    """Render random rows of random blocks, compare them with the cache's witnesses, and return the number of rows.

    Up to `max_blocks` blocks are checked, with up to `rows_per_block` rows each. No teacher is needed. Raises
    `CacheMismatch`, which names the first wrong key, if the pixels differ from those that the teacher saw. Possible
    causes are another order of the data set, a changed recipe or a changed library. The error message ends with
    `versions`, which describes the libraries now and when the cache was written.
    """
    blocks = reader.plan.blocks()
    numbers = _sample(seed, 0, len(blocks), max_blocks).tolist()
    rows = [_sample(seed, number + 1, len(blocks[number]), rows_per_block) for number in numbers]
    keys = [
        (torch.full_like(row_B, blocks[number].view), row_B + blocks[number].start)
        for number, row_B in zip(numbers, rows, strict=True)
    ]
    for number, row_B, (_, index_B), pixels in zip(numbers, rows, keys, renderer.render(keys), strict=True):
        block, got = blocks[number], witnesses(pixels)
        expected = reader.witness(block)[row_B.numpy()]
        wrong = np.flatnonzero(got != expected)
        if len(wrong):
            raise CacheMismatch(
                f"pixels differ from those that the teacher saw: {len(wrong)} of {len(got)} rows in {block},"
                f" first at view {block.view}, index {int(index_B[int(wrong[0])])} (crc32 expected"
                f" {int(expected[wrong[0]]):08x}, got {int(got[wrong[0]]):08x}); the data set, the recipe or a library"
                f" has changed since the cache was written{versions}"
            )
    return sum(len(row_B) for row_B in rows)


def _sample(seed: int, plane: int, num: int, at_most: int) -> Tensor:
    """Draw up to `at_most` different numbers below `num`, int64; each (seed, plane) has its own draws."""
    raw = raw_rows(seed, Domain.SPOT_CHECK, plane, 0, num)[:, 0]
    return torch.from_numpy(permutations(raw)[:at_most])
