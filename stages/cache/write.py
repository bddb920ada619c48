"""Stage one: missing blocks → this process's share → keys → pixels → teacher → store.

A block is a run of consecutive samples of one view; a key is the pair (view, index) of one row. Three threads work at
the same time: one renders pixels and launches the teacher, one collects the teacher's signals (outputs such as logits)
for earlier batches, and one writes the previous block.

A block is always computed in the same batches, so the number of processes, their order and interruptions don't affect
the stored bytes. Blocks of the same rows in several views can be rendered together, so that a photograph is decoded
once for all of these views; the teacher still sees each view in separate batches.

Runs that don't know of each other can share a cache: each run checks whether a block exists before computing it, and
continues elsewhere in its list if another run was faster. At the end everything is read back, and damaged blocks are
computed again.
"""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from dhkd.data.cache.blocks import WITNESS, Block, Plan
from dhkd.data.cache.manifest import teachers_own
from dhkd.data.cache.reader import Damage
from dhkd.data.cache.writer import LogitWriter
from dhkd.data.images.witness import witnesses
from dhkd.data.progress import progress
from dhkd.data.render import Keys, Renderer
from dhkd.stages.cache.hand_over import HandOver
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger("dhkd")

Rows = dict[str, NDArray[np.generic]]  # one block's signals and witness (a checksum of each row's rendered pixels)
Unit = list[Block]  # blocks of the same rows in several views, which are computed together
Batches = Callable[[Block], Iterator[tuple[int, int]]]  # a block's rows in batches, as (start, stop)


@dataclass(frozen=True)
class Computing:
    """What computes the blocks of a cache: a teacher, the renderer of its images, and the writer of its signals.

    Blocks of the same rows in `views_at_once` views are computed together. Batches have at most `batch_size` rows; they
    begin and end between groups of `group` consecutive samples, where they can, because a renderer may need all images
    of a group for any of them.
    """

    teacher: Teacher
    renderer: Renderer
    writer: LogitWriter
    batch_size: int
    views_at_once: int = 1
    group: int = 1

    def batches_of(self, block: Block) -> Iterator[tuple[int, int]]:
        """Yield a block's rows in batches, as (start, stop)."""
        return block.batches(self.batch_size, self.group)


class Computed(NamedTuple):
    """How many blocks and rows were computed."""

    blocks: int
    rows: int


@dataclass(frozen=True)
class Written:
    """What one call of `write_blocks` did: how many blocks and rows all processes computed, and how long it took.

    `repaired` counts damaged blocks that were computed again. `remaining` counts the missing blocks that calls with
    another `part` or another teacher must compute; it is 0 when the cache is complete.
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
    group: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Written:
    """Compute and write every missing block, shared among the processes; then check everything and finish the cache.

    The first process lists the missing blocks and sends the list to the others, again and again until nothing is
    missing. `part` is the pair (number of this part, from 0; number of parts), and only this part's share of all blocks
    is computed; by default, that is all blocks. The part that finds nothing missing at the end finishes the cache for
    all parts. The other arguments are those of `Computing`. Whatever the size of the cache, each process holds in
    memory a few batches and 2 · `views_at_once` blocks: half are being computed, and half are being written and are
    held in encoded form as well. Raises `NonFiniteLoss` for values that can't be stored.
    """
    began = time.perf_counter()
    computing = Computing(teacher, renderer, writer, batch_size, views_at_once, group)
    computed = torch.zeros(2, dtype=torch.int64, device=processes.device)  # this process's blocks and rows
    fresh: set[Block] = set()  # blocks written by this call; an existing index is older than they are
    repaired = remaining = 0
    while True:
        missing = processes.broadcast(writer.missing() if processes.is_first else None)
        units = units_of(missing, views_at_once)
        # Damaged blocks are computed again by the part that found the damage.
        todo = list(units.values()) if repaired else _of_part(units, part, writer.plan)
        if todo:
            fresh.update(missing)
            # All processes have the same list, and each takes every `world_size`-th unit; so the shares stay balanced
            # however few units are left.
            mine = todo[processes.rank :: processes.world_size]
            with progress("caching", sum(map(rows_of, mine)), visible=processes.is_first) as advance:
                done = compute(mine, computing, processes.device, advance)
            computed += torch.tensor(done, device=processes.device)
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
    blocks, rows = processes.sum(computed).tolist()  # also waits for the first process
    return Written(blocks, rows, time.perf_counter() - began, repaired, remaining)


# missing blocks → units → this part's units


def units_of(blocks: Iterable[Block], views_at_once: int) -> dict[tuple[int, int], Unit]:
    """Group blocks into units of at most `views_at_once` views.

    The key of a unit is the pair (number of its group of views, block number in each of the views).
    """
    units: dict[tuple[int, int], Unit] = {}
    for block in blocks:
        units.setdefault((block.view // views_at_once, block.number), []).append(block)
    return units


def rows_of(unit: Iterable[Block]) -> int:
    """Return the number of rows in the blocks of a unit."""
    return sum(map(len, unit))


def _of_part(units: Mapping[tuple[int, int], Unit], part: tuple[int, int], plan: Plan) -> list[Unit]:
    """Return the units of `part`, a pair (number from 0, number of parts).

    The part of a unit depends only on the unit's key, not on its position in `units`, because a part that begins later
    finds fewer missing blocks.
    """
    number, parts = part
    return [unit for (views, block), unit in units.items() if (views * plan.blocks_per_view + block) % parts == number]


# units → keys → pixels → teacher → blocks → store


def compute(
    units: Iterable[Unit], computing: Computing, device: torch.device, advance: Callable[[int], None]
) -> Computed:
    """Compute and write these units, except blocks that other runs have written in the meantime.

    `advance` is told numbers of rows that are computed, or that others had written.
    """
    waiting, rendering = deque(units), deque[Unit]()
    writer, batches_of = computing.writer, computing.batches_of
    blocks = rows = 0
    writes: list[Future[bool]] = []
    with (
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as thread,
        HandOver(device) as hand_over,
    ):

        def keys_of_units() -> Iterator[Keys]:
            while waiting:
                unit = waiting.popleft()
                lacking = [block for block in unit if not writer.has(block)]
                advance(rows_of(unit) - rows_of(lacking))
                if len(lacking) < len(unit) and waiting:
                    # Another run is at work here. Following it would mean to catch up with it again and again.
                    waiting.rotate(-secrets.randbelow(len(waiting)))
                if lacking:
                    rendering.append(lacking)
                    yield from _keys(lacking, batches_of)

        pixels = computing.renderer.render_twice(keys_of_units(), computing.teacher.recipe)
        for first in pixels:
            unit = rendering.popleft()
            arrays_of_blocks, collected = _launch(
                unit, computing.teacher, writer.signals, chain([first], pixels), batches_of, advance, hand_over
            )
            blocks, rows = blocks + len(unit), rows + rows_of(unit)
            if not all(write.result() for write in writes) and waiting:
                waiting.rotate(-secrets.randbelow(len(waiting)))  # away from another run that computes the same blocks
            writes = [
                thread.submit(_put, writer, block, arrays, collected)
                for block, arrays in zip(unit, arrays_of_blocks, strict=True)
            ]
        for write in writes:
            write.result()
    return Computed(blocks, rows)


def _keys(unit: Unit, batches_of: Batches) -> Iterator[Keys]:
    """Yield the keys of a batch of samples at a time: all views of the first sample, then all of the second, …"""
    view_V = torch.tensor([block.view for block in unit])
    for start, stop in batches_of(unit[0]):
        index_B = torch.arange(start, stop)
        yield view_V.repeat(len(index_B)), index_B.repeat_interleave(len(view_V))


def _launch(
    unit: Unit,
    teacher: Teacher,
    names: list[str],
    pixels: Iterator[tuple[Tensor, Tensor]],
    batches_of: Batches,
    advance: Callable[[int], None],
    hand_over: HandOver,
) -> tuple[list[Rows], Future[None]]:
    """Launch the teacher on a unit's batches, to compute the signals `names`.

    `pixels` yields pairs of the student's pixels, from which the witness (a checksum of each row) is computed, and the
    teacher's pixels. Returns each block's signals, float32 (rows, …), and witness, uint32 (rows,). The arrays are
    complete when the returned future is done.
    """
    own_names = {name: teachers_own(name) for name in names}
    rows: list[Rows] = [{} for _ in unit]
    for start, stop in batches_of(unit[0]):
        pixels_of_views, teachers_pixels = next(pixels)
        for number, (block, arrays) in enumerate(zip(unit, rows, strict=True)):
            pixels_BCHW = pixels_of_views[number :: len(unit)]
            signals = teacher.signals(teachers_pixels[number :: len(unit)], own_names.values())
            batch = {name: signals[own] for name, own in own_names.items()}
            collect = partial(_collect, arrays, block, start, stop, advance)
            collected = hand_over.give({**batch, WITNESS: pixels_BCHW.contiguous()}, collect)
    return rows, collected


def _collect(
    arrays: Rows, block: Block, start: int, stop: int, advance: Callable[[int], None], batch: dict[str, Tensor]
) -> None:
    """Copy a batch's signals and its pixels' witness into the block's arrays; `batch[WITNESS]` holds the pixels."""
    pixels_BCHW = batch.pop(WITNESS)
    signals = {name: values.numpy() for name, values in batch.items()}
    for name, values in {**signals, WITNESS: witnesses(pixels_BCHW)}.items():
        # Batches are copied straight into the block, since joining them at the end would hold the block twice.
        if name not in arrays:
            arrays[name] = np.empty((len(block), *values.shape[1:]), values.dtype)
        arrays[name][start - block.start : stop - block.start] = values
    advance(stop - start)


def _put(writer: LogitWriter, block: Block, rows: Rows, collected: Future[None]) -> bool:
    """Write a block once all of its batches are collected; return False if another run had written the block."""
    collected.result()
    return writer.write(block, rows)


# store → checked → index


def _check(writer: LogitWriter, fresh: set[Block], processes: Processes) -> set[Block]:
    """Read all blocks back, shared among the processes; finish the cache, or remove damaged objects if there are any.

    Returns the blocks of the damaged objects that any process has found.
    """
    blocks = writer.plan.blocks()[processes.rank :: processes.world_size]
    with progress("checking", sum(map(len, blocks)), visible=processes.is_first) as advance:
        checked = writer.check(_advancing(blocks, advance), fresh)
    everything = processes.collect(checked)
    damages = [damage for part in everything for damage in part.damages]
    if not damages and processes.is_first:
        writer.finish(everything)
    discard(writer, checked.damages)
    processes.wait()
    return {damage.block for damage in damages if damage.block is not None}


def discard(writer: LogitWriter, damages: Sequence[Damage]) -> None:
    """Remove damaged objects, so that their blocks count as missing, and log a warning for each."""
    for damage in damages:
        log.warning("cache at %s: %s; its block is computed again", writer.location, damage)
    writer.discard(damages)


def _advancing(blocks: list[Block], advance: Callable[[int], None]) -> Iterator[Block]:
    for block in blocks:
        yield block
        advance(len(block))
