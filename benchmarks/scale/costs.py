"""What the real code costs at this size: the schedule, the messages, the list of what is missing, and the index."""

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dhkd.benchmarks.scale.store import Limits, SimulatedBucket
from dhkd.data.cache.blocks import Block
from dhkd.data.cache.index import Bound, Index
from dhkd.data.cache.layouts import layout_of
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.missing import missing_blocks
from dhkd.pipeline.engines.schedule import Schedule

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Processor seconds of one step, and the largest resident memory of this process so far, in GB."""

    step: str
    seconds: float
    memory_gb: float
    detail: str = ""


def schedule_seconds(units: Sequence[tuple[Block, ...]], workers: int) -> float:
    """Return the processor seconds that one unit costs: given, pickled, taken back with a small result.

    The engine's library adds what sending costs; see docs/scale.md.
    """
    schedule, began = Schedule(units), time.process_time()
    names = [f"worker {number}" for number in range(workers)]
    busy = [name for name in names if schedule.give(name) is not None]
    ended = 0
    while busy:
        still = []
        for name in busy:
            unit = schedule.end(name)
            pickle.loads(pickle.dumps((name, len(unit), sum(map(len, unit)))))
            ended += 1
            given = schedule.give(name)
            if given is not None:
                pickle.dumps(given)
                still.append(name)
        busy = still
    assert schedule.is_done
    assert ended == len(units)
    return (time.process_time() - began) / len(units)


def index_costs(manifest: Manifest) -> list[Cost]:
    """Measure what the coordinator of a complete cache does with all blocks: list, index, write and read the index."""
    costs: list[Cost] = []

    def measured(step: str, function: Callable[[], T]) -> T:
        began = time.process_time()
        result = function()
        costs.append(Cost(step, time.process_time() - began, _memory_gb()))
        return result

    layout, bucket = layout_of("zarr", manifest), SimulatedBucket(Limits())
    for block in measured("blocks of the plan", manifest.plan.blocks):
        for name in manifest.names:
            bucket.objects |= layout.objects(name, block)
    missing = measured("missing blocks, of a listing", lambda: missing_blocks(bucket, "zarr", manifest, manifest.names))
    assert not missing
    entries = {key: (size, number % 2**32) for number, (key, size) in enumerate(bucket.objects.items())}
    bounds = {name: Bound(error=0.01) for name in manifest.signals}
    index = measured("index made", lambda: Index.of_entries("zarr", manifest, {}, entries, bounds))
    content = measured("index written", index.to_bytes)
    measured("index read", lambda: Index.from_bytes(content, "the simulation"))
    costs[-1] = Cost(costs[-1].step, costs[-1].seconds, costs[-1].memory_gb, f"{len(content) / 1e6:.1f} MB of JSON")
    return costs


def _memory_gb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM:"))
