"""What `dhkd bench` runs: the claims about speed and memory as one table of figures, each beside its target.

Not a test: a figure on a shared machine may miss its target without a fault, so nothing fails and the load is written
down beside it. A ratio is the median over the repetitions of one run in which both sides took turns (A, B, B, A, …):
what slows the machine for a while slows both. Everything runs on the CPU, on random images of CIFAR-100's shape; the
sides compared are the project's own code and, where a figure says so, a plain PyTorch script. Accuracy is not
measured here, nor several processes; a GPU by the point `gpu` alone.
"""

import copy
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count, cycle
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from dhkd.benchmarks.caches import complete_cache, manifest_of, writer_at
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.gpu import gpu
from dhkd.benchmarks.online import PictureSet, online
from dhkd.benchmarks.pairs import pairs
from dhkd.benchmarks.photographs import decoding, large_index
from dhkd.benchmarks.profiled import profiled
from dhkd.benchmarks.steps import (
    MEAN,
    NUM_CLASSES,
    RECIPE,
    STD,
    STUDENT,
    TEACHER,
    Loop,
    random_images,
    steps_per_second,
    stream_of,
)
from dhkd.benchmarks.stores import stores
from dhkd.benchmarks.together import together
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.errors import ConfigError, unknown
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.render import Normalization
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.signals import NoSignals, ResidentSignals, Signals
from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.environment import hardware, versions
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.models.signals import Shapes, parse
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.objectives import OBJECTIVES, combined_objective
from dhkd.stages.train.objectives.contract import Setting
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

MEGABYTE = 1e6

progress = Console(stderr=True)


@dataclass(frozen=True)
class Sizes:
    """How much is measured: the full run, or a smoke whose figures mean nothing."""

    samples: int  # in the training set of the steps and in the cache that is opened
    views: int  # in that cache
    blocks_per_view: int
    batch_sizes: tuple[int, ...]
    step_rounds: int  # repetitions of one step
    plain_rounds: int  # repetitions of a run of steps of the plain script
    plain_steps: int  # steps in such a run, after as many to warm up
    pair_rounds: int
    together_rounds: int
    profile_steps: int
    teacher_rows: int  # in a view; two views are cached in every repetition
    teacher_batch: int
    teacher_rounds: int
    render_samples: int
    render_rounds: int
    open_rounds: int
    store_rounds: int
    store_rows: int  # in a view
    photographs: int
    photograph_rounds: int
    large_samples: int  # in the cache of ImageNet's size
    method_samples: int
    method_rounds: int
    gpu_steps: int
    gpu_rounds: int
    gpu_samples: int
    block_megabytes: float  # as computed, of the blocks whose memory is measured


FULL = Sizes(
    samples=5_000,
    views=RECIPE.num_views,
    blocks_per_view=3,  # as many files as all views of CIFAR-100 have in blocks of 4 MiB
    batch_sizes=(64, 128),
    step_rounds=60,
    plain_rounds=3,
    plain_steps=10,
    pair_rounds=7,
    together_rounds=15,
    profile_steps=78,  # an epoch of the 5,000 samples
    teacher_rows=512,
    teacher_batch=256,
    teacher_rounds=10,
    render_samples=50_000,
    render_rounds=20,
    open_rounds=9,
    store_rounds=9,
    store_rows=50_000,
    photographs=256,
    photograph_rounds=9,
    large_samples=1_281_167,
    method_samples=50_000,
    method_rounds=30,
    gpu_steps=400,
    gpu_rounds=5,
    gpu_samples=50_000,
    block_megabytes=32.0,
)
QUICK = Sizes(
    samples=500,
    views=8,
    blocks_per_view=1,
    batch_sizes=(16,),
    step_rounds=3,
    plain_rounds=1,
    plain_steps=3,
    pair_rounds=2,
    together_rounds=2,
    profile_steps=4,
    teacher_rows=32,
    teacher_batch=32,
    teacher_rounds=2,
    render_samples=500,
    render_rounds=3,
    open_rounds=3,
    store_rounds=2,
    store_rows=2_000,
    photographs=64,
    photograph_rounds=2,
    large_samples=40_000,
    method_samples=500,
    method_rounds=2,
    gpu_steps=20,
    gpu_rounds=2,
    gpu_samples=2_000,
    block_megabytes=8.0,
)


def student_step(sizes: Sizes, images: ImageSet, reader: LogitReader, processes: Processes) -> list[Figure]:
    """Point 1: what a step with a resident cache costs over a cross-entropy step on the same renderer."""
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    resident = ResidentSignals(reader, {"logits": ["logits"]}, processes.device)
    signals: dict[str, Signals] = {"ce": NoSignals(resident.num_views), "kd": resident, "binary-kl": resident}
    figures = []
    for batch_size in sizes.batch_sizes:
        loops = {name: Loop(name, stream_of(renderer, signals[name], batch_size), processes) for name in signals}
        seconds = interleaved({name: loop.step for name, loop in loops.items()}, sizes.step_rounds)
        detail = f"{STUDENT}, batch {batch_size}"
        figures += [
            middle(f"step: {name} from the cache / ce", seconds[name] / seconds["ce"], "×", detail, at_most=1.02)
            for name in ("kd", "binary-kl")
        ]
        plain = partial(online, images, student=STUDENT, teacher=None, batch_size=batch_size)
        runs: dict[str, Callable[[], Iterator[None]]] = {
            "dhkd's loop, ce": loops["ce"].steps,
            "plain PyTorch, ce, 0 workers": partial(plain, workers=0),
            "plain PyTorch, ce, 2 workers": partial(plain, workers=2),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(sizes.plain_rounds):
            for name, start in runs.items():
                rates[name].append(batch_size * steps_per_second(start(), sizes.plain_steps))
        figures += [middle(f"rate: {name}", values, "images/s", detail) for name, values in rates.items()]
    return figures


def caching(sizes: Sizes, images: ImageSet, folder: Path, processes: Processes) -> Figure:
    """Point 2: rows a second of stage one over those of the teacher alone, on batches that are ready."""
    images = images.first(sizes.teacher_rows)
    network = build_network(TEACHER, NUM_CLASSES)
    normalize = Normalization(MEAN, STD)
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    teacher = Teacher(network, normalize, processes)
    index_N = torch.arange(len(images))
    views = range(2)
    ready = [
        normalize(renderer.pixels(torch.full_like(index_B, view), index_B))
        for view in views
        for index_B in torch.split(index_N, sizes.teacher_batch)
    ]
    warm_up = 1
    manifest = manifest_of(len(views), len(images), NUM_CLASSES, sizes.teacher_batch)
    caches = (writer_at(folder / f"written-{n}.zarr", manifest) for n in range(warm_up + sizes.teacher_rounds))
    writers = iter(list(caches))

    @torch.inference_mode()
    def forward() -> None:
        for batch_BCHW in ready:
            network(batch_BCHW)

    def cache() -> None:
        write_blocks(teacher, renderer, next(writers), batch_size=sizes.teacher_batch, processes=processes)

    seconds = interleaved({"forward": forward, "cache": cache}, sizes.teacher_rounds, warm_up)
    rate = len(views) * len(images) / median(seconds["cache"])
    detail = f"{TEACHER}, batch {sizes.teacher_batch}, float32: {rate:,.0f} rows/s into the cache"
    return middle("caching / the teacher's forward", seconds["forward"] / seconds["cache"], "×", detail, at_least=0.95)


def rendering(sizes: Sizes, images: ImageSet, processes: Processes) -> Figure:
    """Point 3: images a second of the renderer over torchvision's transforms, sample by sample in one process."""
    ours, theirs, batch_size = 20, 1, 128  # batches in a repetition: neither side too short to time
    renderer, normalize = ResidentRenderer(images, RECIPE, processes.device), Normalization(MEAN, STD)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(PictureSet(images), batch_size, shuffle=True, drop_last=True)
    batches = (batch for _ in count() for batch in loader)

    def render() -> None:
        for _ in range(ours):
            view_B = torch.randint(RECIPE.num_views, (batch_size,), generator=generator)
            index_B = torch.randint(len(images), (batch_size,), generator=generator)
            normalize(renderer.pixels(view_B, index_B))

    def load() -> None:
        for _ in range(theirs):
            next(batches)

    seconds = interleaved({"render": render, "load": load}, sizes.render_rounds)
    rate = ours * batch_size / median(seconds["render"])
    detail = f"batch {batch_size} of {len(images):,} images, DataLoader without workers: {rate:,.0f} images/s rendered"
    speedup = (seconds["load"] / theirs) / (seconds["render"] / ours)
    return middle("rendering / torchvision's transforms", speedup, "×", detail, at_least=20)


def alignment(sizes: Sizes, images: ImageSet, reader: LogitReader, processes: Processes) -> list[Figure]:
    """Point 4: an aligned dhkd step over one forward, two backward passes and an update, on batches that are ready."""
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    resident = ResidentSignals(reader, {"logits": ["logits"]}, processes.device)
    figures = []
    for batch_size in sizes.batch_sizes:
        stream = stream_of(renderer, resident, batch_size)
        aligned, bare = Loop("dhkd", stream, processes), Loop("dhkd", stream, processes)
        ready = list(enumerate(stream.epoch(0)))[:-1]  # the last one is smaller
        actions = {
            "aligned": partial(_turn, aligned.train_on, cycle(ready)),
            "bare": partial(_turn, partial(_bare_update, bare), cycle(ready)),
        }
        seconds = interleaved(actions, sizes.step_rounds)
        detail = f"{STUDENT} with a nonlinear auxiliary head, batch {batch_size}"
        ratios = seconds["aligned"] / seconds["bare"]
        figures.append(middle("dhkd's step / forward + two backwards", ratios, "×", detail, at_most=1.02))
    return figures


def _turn(update: Callable[[int, int, Batch], None], batches: Iterator[tuple[int, Batch]]) -> None:
    step, batch = next(batches)
    update(0, step, batch)


def _bare_update(loop: Loop, epoch: int, step: int, batch: Batch) -> None:
    """What aligning can't do without: both gradients, added up, and an update."""
    terms = loop.objective.terms(loop.student(batch.images_BCHW), batch.labels, batch.teacher)
    kept, rest = terms.values()
    parameters = list(loop.student.parameters())
    first = torch.autograd.grad(kept, parameters, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(rest, parameters, allow_unused=True)
    for parameter, g1, g2 in zip(parameters, first, second, strict=True):
        parameter.grad = g2 if g1 is None else g1 if g2 is None else g1 + g2
    loop.optimizer.step()
    loop.optimizer.zero_grad()


def method_steps(sizes: Sizes, folder: Path, processes: Processes) -> list[Figure]:
    """What a step of each method costs over a cross-entropy step: signals from the cache, whole maps from the teacher.

    CRD's memory is that of as many samples as there are images.
    """
    images = random_images(sizes.method_samples, NUM_CLASSES)
    torch.manual_seed(0)
    network = build_network(TEACHER, NUM_CLASSES).eval()
    teacher = Teacher(copy.deepcopy(network), Normalization(MEAN, STD), processes)
    shapes = Shapes(TEACHER, NUM_CLASSES, (32, 32))
    setting = Setting(Shapes(STUDENT, NUM_CLASSES, (32, 32)), shapes, images.labels_N, 0)
    objectives = {name: combined_objective(name, {}) for name in (*OBJECTIVES, "dhkd + reviewkd")}
    needs = {name: list(objective.needs(setting)) for name, objective in objectives.items()}
    of_maps = {own for names in needs.values() for own in names if parse(own).kind in ("map", "last_map")}
    cached = {own: shapes.row(own) for names in needs.values() for own in names if own not in of_maps}
    manifest = manifest_of(1, len(images), NUM_CLASSES, len(images) // 5, signals=cached)
    reader = open_cache(complete_cache(folder / "signals.zarr", manifest))
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    loops, details = {}, {}
    for name, wanted in needs.items():
        live = [own for own in wanted if own in of_maps]
        names = {own: [own] for own in wanted if own in cached}
        signals = ResidentSignals(reader, names, processes.device) if names else NoSignals(1)
        run = partial(teacher.signals, names=live) if live else None
        loops[name] = Loop(name, stream_of(renderer, signals, sizes.batch_sizes[0], run), processes, network)
        details[name] = "live" if live else "cached" if names else "no teacher"
    seconds = interleaved({name: loop.step for name, loop in loops.items()}, sizes.method_rounds)
    detail = f"{TEACHER} → {STUDENT}, batch {sizes.batch_sizes[0]}, {len(images):,} samples"
    return [
        middle(f"step: {name} ({details[name]}) / ce", seconds[name] / seconds["ce"], "×", detail)
        for name in loops
        if name != "ce"
    ]


def opening(sizes: Sizes, cache: Path) -> Figure:
    """Point 5: seconds from a path to the first view of a complete cache in memory."""

    def open_and_read() -> None:
        reader = open_cache(cache)
        reader.require_present()
        reader.read_view(0)

    seconds = interleaved({"open": open_and_read}, sizes.open_rounds, warm_up=1)["open"]
    plan = open_cache(cache).plan
    files = 2 * len(plan.blocks())
    detail = f"{plan.num_views} views × {plan.num_samples:,} rows × {NUM_CLASSES}, {files} files, lately written"
    return middle("opening a cache, reading a view", seconds, "s", detail, at_most=1.0)


def memory(sizes: Sizes, folder: Path) -> list[Figure]:
    """Point 6: how far resident memory grows while a cache is written, in blocks, for 2 views and for 8.

    A block is counted as it is computed, in float32; it is stored in half as many bytes. Which of the copies on the
    way meet depends on how writing and computing overlap, so the growth differs from run to run by a block or so; six
    views more are twelve blocks.
    """
    few, many = 2, 8
    block_bytes = sizes.block_megabytes * MEGABYTE
    grown = dict(zip((few, many), _growths(int(block_bytes), (few, many), folder), strict=True))
    figures = [
        Figure(
            f"memory: growth while caching {views} views",
            growth / block_bytes,
            "blocks",
            f"blocks of {sizes.block_megabytes:g} MB in float32 as computed, two a view: {growth / MEGABYTE:.1f} MB",
            at_most=4,
        )
        for views, growth in grown.items()
    ]
    difference = abs(grown[many] - grown[few]) / block_bytes
    detail = f"caching {many} views against caching {few}"
    return [*figures, Figure("memory: difference", difference, "blocks", detail, at_most=1.5)]


def _growths(block_bytes: int, views: Sequence[int], folder: Path) -> list[int]:
    """For each number of views the bytes by which a process that caches them grows.

    Each has a process of its own, watched from this one: a thread inside would wait for the interpreter at the peaks.
    """
    spawn = multiprocessing.get_context("spawn")
    children = []
    for number in views:
        here, there = spawn.Pipe()
        arguments = (there, block_bytes, number, folder / f"memory-{number}.zarr")
        child = spawn.Process(target=_write_when_told, args=arguments, daemon=True)
        child.start()
        there.close()
        children.append((child, here))
    for _, connection in children:
        connection.recv()  # it is warm
    growths = []
    for child, connection in children:
        watched = psutil.Process(child.pid)
        before = peak = watched.memory_info().rss
        connection.send("write")
        while not connection.poll(0.001):
            peak = max(peak, watched.memory_info().rss)
        connection.recv()  # raises EOFError if it failed
        child.join()
        growths.append(peak - before)
    return growths


def _write_when_told(parent: Connection, block_bytes: int, views: int, cache: Path) -> None:
    """Two blocks a view, of a teacher that costs next to nothing."""
    num_classes, batch_size = 1000, 256
    block_rows = block_bytes // (np.dtype(np.float32).itemsize * num_classes)
    images = random_images(2 * block_rows, num_classes, size=8)
    processes = Processes("float32", cpu=True)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))

    def write(images: ImageSet, views: int, path: Path) -> None:
        teacher = Teacher(network, Normalization(MEAN, STD), processes)  # type: ignore[arg-type]  # logits suffice
        manifest = manifest_of(views, len(images), num_classes, min(block_rows, len(images)))
        write_blocks(teacher, renderer, writer_at(path, manifest), batch_size=batch_size, processes=processes)

    renderer = ResidentRenderer(images, RECIPE, processes.device)
    write(images.first(batch_size), 1, cache.with_suffix(".warm-up.zarr"))
    parent.send("warm")
    parent.recv()
    write(images, views, cache)
    parent.send("written")


GPU = "gpu"
POINTS = (
    "step",
    "pairs",
    "together",
    "profile",
    "caching",
    "rendering",
    "alignment",
    "opening",
    "memory",
    "stores",
    "photographs",
    "large",
    "methods",
    GPU,
)


def measure(sizes: Sizes, folder: Path, points: Sequence[str]) -> list[Figure]:
    """The named points, one after the other; `folder` takes the caches that are written."""
    processes = Processes("float32", cpu=True)
    began = time.perf_counter()
    progress.print("    0 s  writing the cache that the students read", highlight=False)
    images = random_images(sizes.samples, NUM_CLASSES)
    block_rows = -(-sizes.samples // sizes.blocks_per_view)
    cache = complete_cache(folder / "complete.zarr", manifest_of(sizes.views, sizes.samples, NUM_CLASSES, block_rows))
    reader = open_cache(cache)
    measurements: dict[str, Callable[[], Figure | list[Figure]]] = {
        "step": lambda: student_step(sizes, images, reader, processes),
        "pairs": lambda: pairs(sizes.pair_rounds, sizes.plain_steps, sizes.batch_sizes[0], images, reader, processes),
        "together": lambda: together(sizes.together_rounds, sizes.batch_sizes[0], images, processes),
        "profile": lambda: profiled(
            sizes.profile_steps, sizes.together_rounds, sizes.batch_sizes[0], images, reader, folder, processes
        ),
        "caching": lambda: caching(sizes, images, folder, processes),
        "rendering": lambda: rendering(sizes, random_images(sizes.render_samples, NUM_CLASSES), processes),
        "alignment": lambda: alignment(sizes, images, reader, processes),
        "opening": lambda: opening(sizes, cache),
        "memory": lambda: memory(sizes, folder),
        "stores": lambda: stores(sizes.store_rounds, sizes.store_rows, folder),
        "photographs": lambda: decoding(sizes.photograph_rounds, sizes.photographs),
        "large": lambda: large_index(sizes.large_samples, folder),
        "methods": lambda: method_steps(sizes, folder, processes),
    }
    figures: list[Figure] = []
    for point in [point for point in points if point != GPU]:
        progress.print(f"{time.perf_counter() - began:5.0f} s  {point}", highlight=False)
        found = measurements[point]()
        figures += found if isinstance(found, list) else [found]
    processes.end()
    if GPU in points and torch.cuda.is_available():
        progress.print(f"{time.perf_counter() - began:5.0f} s  {GPU}", highlight=False)
        processes = Processes("bf16")
        figures += gpu(sizes.gpu_steps, sizes.gpu_rounds, sizes.gpu_samples, folder, processes)
        processes.end()
    elif GPU in points:
        progress.print("        skipped: gpu; torch.cuda finds none", highlight=False)
    progress.print(f"{time.perf_counter() - began:5.0f} s  done", highlight=False)
    return figures


def bench(points: Sequence[str], *, quick: bool, out: Path) -> tuple[dict[str, Any], str]:
    """Measure these points and write `out`, a JSON file; what it holds, and the same as a table."""
    unknown_points = [point for point in points if point not in POINTS]
    if unknown_points:
        raise ConfigError(unknown("point", unknown_points[0], POINTS))
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "hardware": hardware(torch.device("cpu")),
        "gpu": hardware(torch.device("cuda")) if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "versions": versions(),
    }
    began = time.perf_counter()
    # Beside the results, so that caches are written to the kind of disk that users write theirs to.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="bench-") as folder:
        figures = measure(QUICK if quick else FULL, Path(folder), points)
    facts |= {"load_at_end": os.getloadavg()[0], "seconds": round(time.perf_counter() - began, 1)}
    result = {**facts, "figures": [{**asdict(figure), "reached": figure.reached} for figure in figures]}
    out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    columns = ["figure", "of", "median", "", "quartiles", "target", "reached"]
    lines = [
        plain_table(columns, [figure.row() for figure in figures]),
        f"{facts['hardware']} of {facts['cores']} cores, load {facts['load_at_start']:.1f} at the start;"
        f" {', '.join(f'{name} {version}' for name, version in versions().items())}; {facts['date']};"
        f" {facts['seconds']:.0f} s; also in {out}",
    ]
    if quick:
        lines.append("--quick: far too small to measure anything; run it without for figures")
    return result, "\n".join(lines)
