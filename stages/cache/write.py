"""Stage one: missing blocks → mine → keys → pixels → teacher → store, three at a time.

One thread renders and launches the teacher, one takes what it said, and one writes the block before.

Every block is computed in the same batches whoever computes it, so that the number of processes, their order and
interruptions leave no trace in the bytes. Blocks of the same rows in several views can be rendered together, which lets
a photograph be decoded once for all of them; each is still classified by itself.

Runs that know nothing of each other share a cache: each looks before it computes a block, and goes on elsewhere when
another was faster. At the end everything is read back, and what is damaged is computed again.
"""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from dhkd.data.cache.blocks import WITNESS, Block
from dhkd.data.cache.manifest import teachers_own
from dhkd.data.cache.writer import LogitWriter
from dhkd.data.images.witness import witnesses
from dhkd.data.render import Keys, Renderer
from dhkd.stages.cache.hand_over import HandOver
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.progress import progress_bar
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger("dhkd")

Rows = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Written:
    """What this call did: blocks and rows over all processes, and how long it took.

    `remaining` counts the blocks that are left to others, other parts or other teachers: 0 when the cache is complete.
    """

    blocks: int
    rows: int
    seconds: float
    repaired: int
    remaining: int


def write_blocks(
    teacher: Teacher,
    renderer: Renderer,
    writer: LogitWriter,
    *,
    batch_size: int,
    processes: Processes,
    views_at_once: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Written:
    """Compute and write every missing block, shared out over the processes; check everything, and declare it complete.

    The first process lists what is missing and tells the others; at the end it lists again, until nothing is. `part`
    (number from 0, of how many) takes that share of all blocks; whoever finds nothing missing at the end finishes for
    all. Each process holds 2 · `views_at_once` blocks in memory, half of them being computed and half being written,
    the latter's encoded copies, and a few batches under way, whatever the cache's size. Raises `NonFiniteLoss` for
    values that can't be stored.
    """
    began = time.perf_counter()
    computed = torch.zeros(2, dtype=torch.int64, device=processes.device)  # blocks and rows, by this process
    fresh: set[Block] = set()  # of this call: the index of before does not know them
    repaired = remaining = 0
    while True:
        missing = processes.broadcast(writer.missing() if processes.is_first else None)
        number, parts = part
        units = _together(missing, views_at_once)
        # By a number of the unit's own, since parts begin at different times and list different blocks.
        todo = [
            units[unit]
            for unit in units
            if repaired or (unit[0] * writer.plan.blocks_per_view + unit[1]) % parts == number
        ]
        if todo:
            fresh.update(missing)
            # By position in the one list that all processes have: balanced however little is left.
            mine = todo[processes.rank :: processes.world_size]
            computed += _write(mine, teacher, renderer, writer, batch_size, processes)
            processes.wait()
            continue
        remaining = len(missing) or processes.broadcast(len(writer.missing_of_others()) if processes.is_first else None)
        if remaining:
            break
        damaged = _check(writer, fresh, processes)
        if not damaged:
            break
        fresh |= damaged
        repaired += len(damaged)
    blocks, rows = processes.sum(computed).tolist()  # which also waits for the first process
    return Written(blocks, rows, time.perf_counter() - began, repaired, remaining)


def _together(blocks: list[Block], views_at_once: int) -> dict[tuple[int, int], list[Block]]:
    """The blocks in units that hold the same rows of at most `views_at_once` views."""
    units: dict[tuple[int, int], list[Block]] = {}
    for block in blocks:
        units.setdefault((block.view // views_at_once, block.number), []).append(block)
    return units


def _check(writer: LogitWriter, fresh: set[Block], processes: Processes) -> set[Block]:
    """Read everything back; finish where all is good, else remove what is damaged. The blocks to be computed again."""
    blocks = writer.plan.blocks()[processes.rank :: processes.world_size]
    with progress_bar("checking", sum(map(len, blocks)), visible=processes.is_first) as advance:
        checked = writer.check(_advancing(blocks, advance), fresh)
    everything = processes.collect(checked)
    damages = [damage for part in everything for damage in part.damages]
    if not damages and processes.is_first:
        writer.finish(everything)
    for damage in checked.damages:
        log.warning("cache at %s: %s; its block is computed again", writer.location, damage)
    writer.discard(checked.damages)
    processes.wait()
    return {damage.block for damage in damages if damage.block is not None}


def _advancing(blocks: list[Block], advance: Callable[[int], None]) -> Iterator[Block]:
    for block in blocks:
        yield block
        advance(len(block))


def _write(
    units: list[list[Block]],
    teacher: Teacher,
    renderer: Renderer,
    writer: LogitWriter,
    batch_size: int,
    processes: Processes,
) -> Tensor:
    """Compute and write these units, but for blocks that others wrote meanwhile; how many blocks and rows."""
    signals = {name: teachers_own(name) for name in writer.signals}
    waiting, rendering = deque(units), deque[list[Block]]()
    computed = np.zeros(2, dtype=np.int64)
    pending: list[Future[bool]] = []
    with (
        progress_bar("caching", sum(len(b) for unit in units for b in unit), visible=processes.is_first) as advance,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as thread,
        HandOver(processes.device) as taking,
    ):

        def keys_of_units() -> Iterator[Keys]:
            while waiting:
                unit = waiting.popleft()
                left = [block for block in unit if not writer.has(block)]
                advance(sum(len(block) for block in unit) - sum(len(block) for block in left))
                if left:
                    rendering.append(left)
                    yield from _keys(left, batch_size)

        pixels = renderer.render(keys_of_units())
        for first in pixels:
            unit = rendering.popleft()
            rows, taken = _launch(unit, teacher, signals, chain([first], pixels), batch_size, advance, taking)
            computed += len(unit), sum(len(block) for block in unit)
            if not all(written.result() for written in pending) and waiting:
                waiting.rotate(-secrets.randbelow(len(waiting)))  # away from the run that is at the same place
            pending = [thread.submit(_put, writer, block, rows.pop(0), taken) for block in unit]
        for written in pending:
            written.result()
    return torch.from_numpy(computed).to(processes.device)


def _keys(unit: list[Block], batch_size: int) -> Iterator[Keys]:
    """For each run of `batch_size` rows the keys of all views of its first sample, then of its second, and so on."""
    view_V = torch.tensor([block.view for block in unit])
    for start, stop in unit[0].batches(batch_size):
        index_B = torch.arange(start, stop)
        yield view_V.repeat(len(index_B)), index_B.repeat_interleave(len(view_V))


def _launch(
    unit: list[Block],
    teacher: Teacher,
    signals: Mapping[str, str],
    pixels: Iterator[Tensor],
    batch_size: int,
    advance: Callable[[int], None],
    taking: HandOver,
) -> tuple[list[Rows], Future[None]]:
    """Each block's signals, float32 (rows, …), and witnesses, uint32 (rows,), once the future is done."""
    rows: list[Rows] = [{} for _ in unit]
    for start, stop in unit[0].batches(batch_size):
        of_all_views = next(pixels)
        for number, (block, arrays) in enumerate(zip(unit, rows, strict=True)):
            pixels_BCHW = of_all_views[number :: len(unit)]
            said = teacher.signals(pixels_BCHW, signals.values())
            batch = {name: said[own] for name, own in signals.items()}
            take = partial(_take, arrays, block, start, stop, advance)
            taken = taking.give({**batch, WITNESS: pixels_BCHW.contiguous()}, take)
    return rows, taken


def _take(
    arrays: Rows, block: Block, start: int, stop: int, advance: Callable[[int], None], batch: dict[str, Tensor]
) -> None:
    """Put a batch, on the CPU, into its block's arrays; under the witness's name come the pixels."""
    pixels_BCHW = batch.pop(WITNESS)
    taken = {name: values.numpy() for name, values in batch.items()}
    for name, values in {**taken, WITNESS: witnesses(pixels_BCHW)}.items():
        # Straight into the block: a list to be joined at the end would hold it twice.
        if name not in arrays:
            arrays[name] = np.empty((len(block), *values.shape[1:]), values.dtype)
        arrays[name][start - block.start : stop - block.start] = values
    advance(stop - start)


def _put(writer: LogitWriter, block: Block, rows: Rows, taken: Future[None]) -> bool:
    """Write a block when all of it is there; whether it was not there before."""
    taken.result()
    return writer.write(block, rows)
