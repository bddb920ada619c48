"""Stage one: missing blocks → mine → keys → pixels → teacher → store. The write of a block overlaps the next forward.

Every block is computed in the same batches whoever computes it, so that the number of processes, their order and
interruptions leave no trace in the bytes.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from dhkd.data.cache.contract import WITNESS, Block, LogitReader, LogitWriter, tolerance
from dhkd.data.errors import CacheMismatch
from dhkd.data.philox import Domain, below, raw_rows
from dhkd.data.render import Normalization, Renderer, witnesses
from dhkd.stages.processes import Processes
from dhkd.stages.progress import progress_bar
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger("dhkd")

Rows = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Written:
    """What this call did: blocks and rows over all processes, and how long the computing and writing took."""

    blocks: int
    rows: int
    seconds: float


class Teacher:
    """A frozen network and how its input is normalised: keys in, raw logits and witnesses out."""

    def __init__(
        self, network: torch.nn.Module, normalize: Normalization, renderer: Renderer, processes: Processes
    ) -> None:
        self._network = network.eval().requires_grad_(False)
        self._network.to(processes.device).to(memory_format=torch.channels_last)
        self._normalize, self._renderer, self._processes = normalize, renderer, processes

    @torch.inference_mode()
    def __call__(self, view_B: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 (B, K) and pixels uint8 (B, C, H, W) of the keys, both on the device."""
        pixels_BCHW = self._renderer.pixels(view_B, index_B)
        with self._processes.autocast():
            logits_BK: Tensor = self._network(self._normalize(pixels_BCHW))
        return logits_BK.float(), pixels_BCHW


def write_blocks(teacher: Teacher, writer: LogitWriter, *, batch_size: int, processes: Processes) -> Written:
    """Compute and write every missing block of the cache, shared out over the processes, and declare it complete.

    The first process lists what is missing and tells the others; at the end it lists again, until nothing is. Each
    holds two blocks in memory, one being computed and one being written, and the latter's encoded copies, whatever the
    cache's size. Raises `NonFiniteLoss` for logits that can't be stored.
    """
    began = time.perf_counter()
    computed = torch.zeros(2, dtype=torch.int64, device=processes.device)  # blocks and rows, by this process
    while missing := processes.broadcast(writer.missing() if processes.is_first else None):
        # By position in the one list that all processes have: balanced however little is left.
        mine = missing[processes.rank :: processes.world_size]
        _write(mine, teacher, writer, batch_size, processes)
        computed += torch.tensor([len(mine), sum(len(block) for block in mine)], device=processes.device)
        processes.wait()
    if processes.is_first:
        writer.finish()
    blocks, rows = processes.sum(computed).tolist()  # which also waits for the first process
    return Written(blocks, rows, time.perf_counter() - began)


def _write(mine: list[Block], teacher: Teacher, writer: LogitWriter, batch_size: int, processes: Processes) -> None:
    total = sum(len(block) for block in mine)
    pending: Future[None] | None = None
    with (
        progress_bar("caching", total, visible=processes.is_first) as advance,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as thread,
    ):
        for block in mine:
            rows = compute_block(teacher, block, batch_size, advance)
            if pending is not None:
                pending.result()
            pending = thread.submit(writer.write, block, rows)
        if pending is not None:
            pending.result()


def compute_block(teacher: Teacher, block: Block, batch_size: int, advance: Callable[[int], None]) -> Rows:
    """A block's logits, float32 (rows, K), and witnesses, uint32 (rows,)."""
    rows: Rows = {}
    for start, stop in block.batches(batch_size):
        index_B = torch.arange(start, stop)
        logits_BK, pixels_BCHW = teacher(torch.full_like(index_B, block.view), index_B)
        batch = {"logits": logits_BK.cpu().numpy(), WITNESS: witnesses(pixels_BCHW)}
        for name, values in batch.items():
            # Straight into the block: a list to be joined at the end would hold it twice.
            if name not in rows:
                rows[name] = np.empty((len(block), *values.shape[1:]), values.dtype)
            rows[name][start - block.start : stop - block.start] = values
        advance(stop - start)
    return rows


def compare_with_live(
    teacher: Teacher, reader: LogitReader, *, precision: str, seed: int, num_rows: int, repair: str
) -> float:
    """Recompute the logits of `num_rows` random keys and compare them with the cache's; the largest |difference|.

    Raises `CacheMismatch`, naming the worst key and the likely cause, where a row lies beyond `tolerance`; `repair`
    is the remedy that its message ends with.
    """
    plan, signal = reader.plan, reader.manifest.signals["logits"]
    view_B, index_B = random_keys(seed, plan.num_views, plan.num_samples, num_rows)
    live_BK = teacher(view_B, index_B)[0].cpu().numpy()
    stored_BK = np.stack(
        [
            np.asarray(reader.read(block, "logits"), dtype=np.float32)[index - block.start]
            for view, index in zip(view_B.tolist(), index_B.tolist(), strict=True)
            for block in [plan.block(view, index // plan.block_rows)]
        ]
    )
    difference_B = np.abs(stored_BK - live_BK).max(axis=1)
    allowed_B = tolerance(signal["dtype"], precision, live_BK)[:, 0]
    worst = int(np.argmax(difference_B - allowed_B))
    beyond = int((difference_B > allowed_B).sum())
    if not beyond:
        return float(difference_B.max())
    raise CacheMismatch(
        f"logits beyond tolerance: {beyond} of {num_rows} rows differ from a live forward, worst at"
        f" view {int(view_B[worst])}, index {int(index_B[worst])}: |difference|"
        f" expected at most {allowed_B[worst]:.3g}, got {difference_B[worst]:.3g}; {repair}"
    )


def random_keys(seed: int, num_views: int, num_samples: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """Random keys for a spot check: view and index, two int64 (num_rows,)."""
    raw = raw_rows(seed, Domain.SPOT_CHECK, 0, 0, num_rows, width=2)
    return torch.from_numpy(below(raw[:, 0], num_views)), torch.from_numpy(below(raw[:, 1], num_samples))
