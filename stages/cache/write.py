"""Stage one: missing blocks → mine → keys → pixels → teacher → store. The write of a block overlaps the next forward.

Every block is computed in the same batches whoever computes it, so that the number of processes, their order and
interruptions leave no trace in the bytes. Blocks of the same rows in several views can be rendered together, which lets
a photograph be decoded once for all of them; each is still classified by itself.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from dhkd.data.cache.contract import WITNESS, Block, LogitReader, LogitWriter, tolerance
from dhkd.data.errors import CacheMismatch
from dhkd.data.philox import Domain, below, raw_rows
from dhkd.data.render import Keys, Normalization, Renderer, witnesses
from dhkd.stages.processes import Processes
from dhkd.stages.progress import progress_bar
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger("dhkd")

LIVE_BATCH = 64  # rows recomputed at a time

Rows = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Written:
    """What this call did: blocks and rows over all processes, and how long the computing and writing took."""

    blocks: int
    rows: int
    seconds: float


class Teacher:
    """A frozen network, how its input is normalised, and where its pixels come from: keys in, raw logits out."""

    def __init__(
        self, network: torch.nn.Module, normalize: Normalization, renderer: Renderer, processes: Processes
    ) -> None:
        self._network = network.eval().requires_grad_(False)
        self._network.to(processes.device).to(memory_format=torch.channels_last)
        self._normalize, self._renderer, self._processes = normalize, renderer, processes

    def render(self, batches: Iterator[Keys]) -> Iterator[Tensor]:
        """Pixels uint8 (B, C, H, W) of each batch of keys, on the device."""
        return self._renderer.render(batches)

    @torch.inference_mode()
    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits float32 (B, K) of pixels uint8 (B, C, H, W), both on the device."""
        with self._processes.autocast():
            logits_BK: Tensor = self._network(self._normalize(pixels_BCHW))
        return logits_BK.float()


def write_blocks(
    teacher: Teacher, writer: LogitWriter, *, batch_size: int, processes: Processes, views_at_once: int = 1
) -> Written:
    """Compute and write every missing block of the cache, shared out over the processes, and declare it complete.

    The first process lists what is missing and tells the others; at the end it lists again, until nothing is. Each
    holds 2 · `views_at_once` blocks in memory, half of them being computed and half being written, and the latter's
    encoded copies, whatever the cache's size. Raises `NonFiniteLoss` for logits that can't be stored.
    """
    began = time.perf_counter()
    computed = torch.zeros(2, dtype=torch.int64, device=processes.device)  # blocks and rows, by this process
    while missing := processes.broadcast(writer.missing() if processes.is_first else None):
        # By position in the one list that all processes have: balanced however little is left.
        mine = _together(missing, views_at_once)[processes.rank :: processes.world_size]
        _write(mine, teacher, writer, batch_size, processes)
        blocks = [block for unit in mine for block in unit]
        computed += torch.tensor([len(blocks), sum(len(block) for block in blocks)], device=processes.device)
        processes.wait()
    if processes.is_first:
        writer.finish()
    blocks, rows = processes.sum(computed).tolist()  # which also waits for the first process
    return Written(blocks, rows, time.perf_counter() - began)


def _together(blocks: list[Block], views_at_once: int) -> list[list[Block]]:
    """The blocks in lists of at most `views_at_once` that hold the same rows of different views."""
    if views_at_once == 1:
        return [[block] for block in blocks]
    of_rows: dict[int, list[Block]] = {}
    for block in blocks:
        of_rows.setdefault(block.number, []).append(block)
    return [
        same_rows[start : start + views_at_once]
        for same_rows in of_rows.values()
        for start in range(0, len(same_rows), views_at_once)
    ]


def _write(
    units: list[list[Block]], teacher: Teacher, writer: LogitWriter, batch_size: int, processes: Processes
) -> None:
    total = sum(len(block) for unit in units for block in unit)
    pixels = teacher.render(keys for unit in units for keys in _keys(unit, batch_size))
    pending: list[Future[None]] = []
    with (
        progress_bar("caching", total, visible=processes.is_first) as advance,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as thread,
    ):
        for unit in units:
            rows = _compute(unit, teacher, pixels, batch_size, advance)
            for written in pending:
                written.result()
            pending = [thread.submit(writer.write, block, rows.pop(0)) for block in unit]
        for written in pending:
            written.result()


def _keys(unit: list[Block], batch_size: int) -> Iterator[Keys]:
    """For each run of `batch_size` rows the keys of all views of its first sample, then of its second, and so on."""
    view_V = torch.tensor([block.view for block in unit])
    for start, stop in unit[0].batches(batch_size):
        index_B = torch.arange(start, stop)
        yield view_V.repeat(len(index_B)), index_B.repeat_interleave(len(view_V))


def _compute(
    unit: list[Block], teacher: Teacher, pixels: Iterator[Tensor], batch_size: int, advance: Callable[[int], None]
) -> list[Rows]:
    """Each block's logits, float32 (rows, K), and witnesses, uint32 (rows,)."""
    rows: list[Rows] = [{} for _ in unit]
    for start, stop in unit[0].batches(batch_size):
        of_all_views = next(pixels)
        for number, (block, arrays) in enumerate(zip(unit, rows, strict=True)):
            pixels_BCHW = of_all_views[number :: len(unit)]
            batch = {"logits": teacher.logits(pixels_BCHW).cpu().numpy(), WITNESS: witnesses(pixels_BCHW)}
            for name, values in batch.items():
                # Straight into the block: a list to be joined at the end would hold it twice.
                if name not in arrays:
                    arrays[name] = np.empty((len(block), *values.shape[1:]), values.dtype)
                arrays[name][start - block.start : stop - block.start] = values
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
    keys = zip(torch.split(view_B, LIVE_BATCH), torch.split(index_B, LIVE_BATCH), strict=True)
    live_BK = torch.cat([teacher.logits(pixels_BCHW).cpu() for pixels_BCHW in teacher.render(keys)]).numpy()
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
