"""Checking that a cache holds what its teacher computes today: random rows are recomputed and compared."""

import numpy as np
import torch
from dhkd.data.cache.manifest import teachers_own
from dhkd.data.cache.reader import LogitReader
from dhkd.data.draws.philox import Domain, below, raw_rows
from dhkd.data.errors import CacheMismatch
from dhkd.data.progress import progress
from dhkd.data.render import Renderer
from dhkd.stages.models.teacher import Teacher
from torch import Tensor

LIVE_BATCH = 64  # rows recomputed at a time

# How far two forward passes of the same row may differ, relative to the row's largest |logit|. Kernels differ with
# batch size, device and version, and the error grows over a network's depth. float32 passes differ by about 1e-6, so
# 1e-4 is generous.
COMPUTE_ERROR = {"float32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}


def compare_with_live(
    teacher: Teacher, renderer: Renderer, reader: LogitReader, name: str, *, seed: int, num_rows: int, repair: str
) -> float:
    """Recompute the signal `name` for `num_rows` random keys (view, index); return the largest |difference| found.

    The recomputed values are compared with the cached values. A row may differ by the error bound of its stored values
    plus `COMPUTE_ERROR` times the row's largest |value|. Raises `CacheMismatch`, naming the worst key, if a row differs
    by more; the message ends with the remedy `repair`.
    """
    plan, signal = reader.plan, reader.manifest.signals[name]
    view_B, index_B = random_keys(seed, plan.num_views, plan.num_samples, num_rows)
    keys = zip(torch.split(view_B, LIVE_BATCH), torch.split(index_B, LIVE_BATCH), strict=True)
    own = teachers_own(name)
    batches: list[Tensor] = []
    with progress("recomputing", num_rows, bar=False) as advance:
        for _, pixels_BCHW in renderer.render_twice(keys, teacher.recipe):
            batches.append(teacher.signals(pixels_BCHW, [own])[own].cpu())
            advance(len(pixels_BCHW))
    live_B = torch.cat(batches).numpy()
    difference_B, allowed_B = np.empty(num_rows), np.empty(num_rows)
    for row, (view, index) in enumerate(zip(view_B.tolist(), index_B.tolist(), strict=True)):
        block = plan.block(view, index // plan.block_rows)
        position = slice(index - block.start, index - block.start + 1)
        parts = {part: array[position] for part, array in reader.stored(block, name).items()}
        difference_B[row] = signal.codec.difference(parts, live_B[row : row + 1])
        storage = float(signal.codec.errors(parts)[0]) + reader.manifest.error_before(name)
        allowed_B[row] = storage + COMPUTE_ERROR[signal.precision] * np.abs(live_B[row]).max()
    worst = int(np.argmax(difference_B - allowed_B))
    beyond = int((difference_B > allowed_B).sum())
    if not beyond:
        return float(difference_B.max())
    raise CacheMismatch(
        f"{own} beyond tolerance: {beyond} of {num_rows} rows differ from a live forward, worst at"
        f" view {int(view_B[worst])}, index {int(index_B[worst])}: |difference|"
        f" expected at most {allowed_B[worst]:.3g}, got {difference_B[worst]:.3g}; {repair}"
    )


def random_keys(seed: int, num_views: int, num_samples: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """Draw random keys for a spot check: views and indices, two int64 tensors (num_rows,)."""
    raw = raw_rows(seed, Domain.SPOT_CHECK, 0, 0, num_rows, width=2)
    return torch.from_numpy(below(raw[:, 0], num_views)), torch.from_numpy(below(raw[:, 1], num_samples))
