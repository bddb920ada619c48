"""Rates on a GPU of training steps with each `--compile` setting, several students at once, caching, and `online.py`.

`dhkd bench --only gpu` measures nothing without a GPU. No files are needed: the images, as many as in CIFAR-100 and
of the same shape, are random, and so are the logits, which are kept in memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from dhkd.benchmarks.caches import complete_cache, manifest_of, writer_at
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.online import online
from dhkd.benchmarks.pairs import PAIRS
from dhkd.benchmarks.setup import Sizes
from dhkd.benchmarks.steps import (
    MEAN,
    NUM_CLASSES,
    RECIPE,
    STD,
    Loop,
    batches_of,
    random_images,
    stream_of,
    train_side_by_side,
)
from dhkd.data.cache.reader import open_cache
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.render import Normalization
from dhkd.data.stream.signals import ResidentSignals
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.side_by_side import SideBySide
from dhkd.stages.train.step import Compile
from torch.profiler import ProfilerActivity, profile

BATCH = 64
EPOCHS, SAMPLES = 240, 50_000  # as in the published runs
STUDENTS = 8
SCRIPT = "online script, aligned, 4 workers"
WARM_UP = 200  # steps, during which CUDA graphs are captured and kernels compiled
WAYS: tuple[Compile, ...] = ("off", "reduce-overhead", "max")


def gpu(sizes: Sizes, folder: Path, processes: Processes, ways: Sequence[Compile] = WAYS) -> list[Figure]:
    """Measure the rates of the published training on this device."""
    samples = sizes.gpu_samples
    images = random_images(samples, NUM_CLASSES)
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    reader = open_cache(complete_cache(folder / "gpu.zarr", manifest_of(8, samples, NUM_CLASSES, -(-samples // 3))))
    signals = ResidentSignals(reader, {"logits": ["logits"]}, processes.device)
    figures: list[Figure] = []
    for networks in PAIRS:
        loops = _warm_loops(networks, renderer, signals, processes, ways)
        figures += _training(sizes, networks, loops, images, processes)
    captured: Compile = "reduce-overhead" if "reduce-overhead" in ways else "off"
    figures.append(_together(sizes, renderer, signals, processes, captured))
    figures.append(_stage_one(images, renderer, folder, processes))
    return figures


def _warm_loops(
    networks: tuple[str, str],
    renderer: ResidentRenderer,
    signals: ResidentSignals,
    processes: Processes,
    ways: Sequence[Compile],
) -> dict[str, Loop]:
    loops = {
        f"{objective}, compile {how}": Loop(
            objective, stream_of(renderer, signals, BATCH), processes, networks=networks, compiled=how
        )
        for objective in ("ce", "dhkd")
        for how in ways
    }
    for loop in loops.values():
        _run(loop.step, WARM_UP, processes)
    return loops


def _training(
    sizes: Sizes, networks: tuple[str, str], loops: Mapping[str, Loop], images: ImageSet, processes: Processes
) -> list[Figure]:
    """Measure the steps per second of each loop and of the online script.

    The fastest loop's rate is also converted to the duration of a published run.
    """
    (student, teacher), steps = networks, sizes.gpu_steps
    script = online(
        images, student=student, teacher=teacher, aligned=True, batch_size=BATCH, workers=4, device=processes.device
    )
    actions = {name: partial(_run, loop.step, steps, processes) for name, loop in loops.items()}
    actions[SCRIPT] = partial(_run, partial(next, script), steps // 4, processes)
    seconds = interleaved(actions, sizes.gpu_rounds, warm_up=1)
    rates = {name: steps / values for name, values in seconds.items()}
    rates[SCRIPT] /= 4
    detail = f"{student} ← {teacher}, batch {BATCH}, {processes.precision}"
    figures = [middle(f"gpu: {name}", rate, "steps/s", detail) for name, rate in rates.items()]
    fastest = max((name for name in rates if name.startswith("dhkd")), key=lambda name: float(rates[name].mean()))
    run = EPOCHS * -(-SAMPLES // BATCH) / rates[fastest]
    bound = 300.0 if student == "resnet8x4" else None
    busy = _busy_share(loops[fastest].step, steps, processes)
    return [
        *figures,
        middle(f"gpu: steps of {EPOCHS} epochs, {fastest}", run, "s", f"{detail}, reckoned", at_most=bound),
        middle(f"gpu: {fastest} / online script", rates[fastest] / rates[SCRIPT], "×", detail),
        Figure(f"gpu: busy share, {fastest}", busy, "", detail),
    ]


def _run(step: Callable[[], object], steps: int, processes: Processes) -> None:
    for _ in range(steps):
        step()
    if processes.device.type == "cuda":
        torch.cuda.synchronize()


def _busy_share(step: Callable[[], object], steps: int, processes: Processes) -> float:
    """Compute the sum of all kernels' durations, divided by the elapsed time.

    The share of time in which at least one kernel runs is at most this number.
    """
    on_gpu = processes.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    began = perf_counter()
    with profile(activities=activities) as profiled:
        _run(step, steps, processes)
        passed = perf_counter() - began
    events = profiled.key_averages()
    busy = sum(event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events)
    return float(busy) / 1e6 / passed


def _together(
    sizes: Sizes, renderer: ResidentRenderer, signals: ResidentSignals, processes: Processes, how: Compile
) -> Figure:
    """Measure several students on shared batches, relative to training them one after the other."""
    steps = sizes.gpu_steps
    stream = stream_of(renderer, signals, BATCH)
    loops = [Loop("dhkd", stream, processes, compiled=how, alone=False) for _ in range(STUDENTS)]
    batches = batches_of(stream)
    with SideBySide(STUDENTS, processes.device) as side_by_side:

        def all_at_once() -> None:
            train_side_by_side(side_by_side, loops, *next(batches))

        def one_after_the_other() -> Iterator[None]:
            while True:
                for loop in loops:
                    for _ in range(steps):
                        loop.train_on(*next(batches))
                        yield

        alone = one_after_the_other()
        _run(all_at_once, WARM_UP, processes)
        actions = {
            "one": partial(_run, partial(next, alone), STUDENTS * steps, processes),
            "all": partial(_run, all_at_once, steps, processes),
        }
        seconds = interleaved(actions, sizes.gpu_rounds, warm_up=1)
    detail = f"{STUDENTS} × resnet20, batch {BATCH}, {processes.precision}, compile {how}"
    return middle("gpu: together / one after the other", seconds["one"] / seconds["all"], "×", detail, at_least=3.0)


def _stage_one(images: ImageSet, renderer: ResidentRenderer, folder: Path, processes: Processes) -> Figure:
    """Measure the seconds to cache a few views, and scale them to all views."""
    teacher = Teacher(build_network("resnet32x4", NUM_CLASSES), Normalization(MEAN, STD), processes)
    views, block_rows, seconds = 4, -(-len(images) // 3), []
    for number in range(3):
        manifest = manifest_of(views, len(images), NUM_CLASSES, block_rows)
        writer = writer_at(folder / f"stage-one-{number}.zarr", manifest)
        written = write_blocks(teacher, renderer, writer, batch_size=2048, processes=processes)
        seconds.append(written.seconds * RECIPE.num_crops / views * SAMPLES / len(images))
    detail = f"resnet32x4, batch 2048, {processes.precision}, {views} views × {len(images):,} written, reckoned for all"
    return middle(f"gpu: caching {RECIPE.num_crops} views", seconds[1:], "s", detail, at_most=180.0)
