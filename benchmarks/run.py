"""Run `dhkd bench`: measure the claims about speed and memory, and print a table of figures with their targets.

This is not a test: on a shared machine, a figure may miss its target although nothing is wrong. So nothing fails, and
the machine's load is recorded with the figures. A ratio is the median over the repetitions of one run in which both
sides took turns (A, B, B, A, …), so whatever slows the machine for a while slows both sides. A *point* is a
group of figures that `--only` can choose. All points but `gpu` run on the CPU, on random images of CIFAR-100's shape.
Figures compare the project's code with itself or, if they say so, with a plain PyTorch script. Accuracy and training
with several processes are left out on purpose.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from dhkd.benchmarks.caching import caching, opening
from dhkd.benchmarks.engines import engines
from dhkd.benchmarks.figure import Figure
from dhkd.benchmarks.gpu import gpu
from dhkd.benchmarks.large_cache import large_cache
from dhkd.benchmarks.memory import memory
from dhkd.benchmarks.method_steps import method_steps
from dhkd.benchmarks.own_data import own_data
from dhkd.benchmarks.pairs import pairs
from dhkd.benchmarks.photographs import decoding
from dhkd.benchmarks.profiled import profiled
from dhkd.benchmarks.rendering import rendering
from dhkd.benchmarks.setup import FULL, QUICK, Setup, Sizes, set_up
from dhkd.benchmarks.shared_cache import shared_cache
from dhkd.benchmarks.stores import stores
from dhkd.benchmarks.student_step import alignment, student_step
from dhkd.benchmarks.together import together
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import ConfigError, unknown
from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.environment import hardware, versions
from dhkd.stages.processes import Processes
from rich.console import Console

progress = Console(stderr=True)

ENGINES = "engines"
ON_THE_CPU: dict[str, Callable[[Setup], list[Figure]]] = {
    "step": student_step,
    "pairs": pairs,
    "together": together,
    "profile": profiled,
    "caching": caching,
    "rendering": rendering,
    "alignment": alignment,
    "opening": opening,
    "memory": memory,
    "shared": shared_cache,
    "stores": stores,
    "photographs": decoding,
    "own-data": own_data,
    "large": large_cache,
    "methods": method_steps,
    ENGINES: engines,
}
GPU = "gpu"
POINTS = (*ON_THE_CPU, GPU)


@dataclass(frozen=True)
class Bench:
    """The figures and the machine they were measured on; the fields are the keys of the JSON file."""

    date: str
    quick: bool
    hardware: str
    gpu: str | None
    cores: int | None
    load_at_start: float
    versions: Mapping[str, str]
    load_at_end: float
    seconds: float
    figures: Sequence[Figure]

    def as_json(self) -> dict[str, Any]:  # the JSON object
        """Convert to plain values, with the key `reached` in every figure for whether it reached its target."""
        return {**asdict(self), "figures": [{**asdict(figure), "reached": figure.reached} for figure in self.figures]}


def bench(points: Sequence[str], *, quick: bool, out: Path) -> tuple[dict[str, Any], str]:
    """Measure these points and write `out`, a JSON file; return its contents, and the same as a table."""
    unknown_points = [point for point in points if point not in POINTS]
    if unknown_points:
        raise ConfigError(unknown("point", unknown_points[0], POINTS))
    out.parent.mkdir(parents=True, exist_ok=True)
    date, load_at_start, began = (
        datetime.now(UTC).isoformat(timespec="seconds"),
        os.getloadavg()[0],
        time.perf_counter(),
    )
    # In the folder of the results, so that the caches are on the kind of disk that users have their caches on.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="bench-") as folder:
        figures = measure(QUICK if quick else FULL, Path(folder), points)
    result = Bench(
        date=date,
        quick=quick,
        hardware=hardware(torch.device("cpu")),
        gpu=hardware(torch.device("cuda")) if torch.cuda.is_available() else None,
        cores=os.cpu_count(),
        load_at_start=load_at_start,
        versions=versions(),
        load_at_end=os.getloadavg()[0],
        seconds=round(time.perf_counter() - began, 1),
        figures=figures,
    )
    tree = result.as_json()
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    write_atomically(out, lambda stream: stream.write(text.encode()))
    return tree, _table(result, out)


def measure(sizes: Sizes, folder: Path, points: Sequence[str]) -> list[Figure]:
    """Measure the named points one after the other, writing caches to `folder`."""
    began = time.perf_counter()

    def report(line: str) -> None:
        progress.print(f"{time.perf_counter() - began:5.0f} s  {line}", highlight=False)

    processes = Processes("float32", cpu=True)
    report("writing the cache that the students read")
    setup = set_up(sizes, folder, processes)
    figures: list[Figure] = []
    for point in points:
        if point == ENGINES and find_spec("ray") is None:
            progress.print("        skipped: engines; pip install 'dhkd[ray]'", highlight=False)
        elif point != GPU:
            report(point)
            figures += ON_THE_CPU[point](setup)
    processes.end()
    if GPU in points and torch.cuda.is_available():
        report(GPU)
        processes = Processes("bf16")
        figures += gpu(sizes, folder, processes)
        processes.end()
    elif GPU in points:
        progress.print("        skipped: gpu; torch.cuda finds none", highlight=False)
    report("done")
    return figures


def _table(result: Bench, out: Path) -> str:
    columns = ["figure", "of", "median", "", "quartiles", "target", "reached"]
    lines = [
        plain_table(columns, [figure.row() for figure in result.figures]),
        f"{result.hardware} of {result.cores} cores, load {result.load_at_start:.1f} at the start;"
        f" {', '.join(f'{name} {version}' for name, version in result.versions.items())}; {result.date};"
        f" {result.seconds:.0f} s; also in {out}",
    ]
    if result.quick:
        lines.append("--quick: far too small to measure anything; run it without for figures")
    return "\n".join(lines)
