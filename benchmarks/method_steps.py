"""What a training step of each method costs."""

import copy
from functools import partial

import torch
from dhkd.benchmarks.caches import complete_cache, manifest_of
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import MEAN, NUM_CLASSES, RECIPE, STD, STUDENT, TEACHER, Loop, random_images, stream_of
from dhkd.data.cache.reader import open_cache
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.render import Normalization
from dhkd.data.stream.signals import NoSignals, ResidentSignals
from dhkd.stages.models import build_network
from dhkd.stages.models.signals import Shapes, parse
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.train.objectives import OBJECTIVES, combined_objective
from dhkd.stages.train.objectives.contract import Setting


def method_steps(setup: Setup) -> list[Figure]:
    """Measure a step of each method, relative to a step with cross-entropy.

    The teacher runs live for methods that need whole feature maps. The memory bank of `crd` has as many samples as
    there are images.
    """
    images = random_images(setup.sizes.method_samples, NUM_CLASSES)
    torch.manual_seed(0)
    network = build_network(TEACHER, NUM_CLASSES).eval()
    teacher = Teacher(copy.deepcopy(network), Normalization(MEAN, STD), setup.processes)
    shapes = Shapes(TEACHER, NUM_CLASSES, (32, 32))
    setting = Setting(Shapes(STUDENT, NUM_CLASSES, (32, 32)), shapes, images.labels_N, 0)
    names = (*OBJECTIVES, "dhkd + reviewkd")
    needs = {name: list(combined_objective(name, {}).needs(setting)) for name in names}
    signals = dict.fromkeys(signal for needed in needs.values() for signal in needed)
    cached = {signal: shapes.row(signal) for signal in signals if not _is_map(signal)}
    manifest = manifest_of(1, len(images), NUM_CLASSES, len(images) // 5, signals=cached)
    reader = open_cache(complete_cache(setup.folder / "signals.zarr", manifest))
    renderer = ResidentRenderer(images, RECIPE, setup.processes.device)
    loops, origins = {}, {}
    for name, needed in needs.items():
        live, stored = [s for s in needed if s not in cached], {s: [s] for s in needed if s in cached}
        resident = ResidentSignals(reader, stored, setup.processes.device) if stored else NoSignals(1)
        run_teacher = partial(teacher.signals, names=live) if live else None
        stream = stream_of(renderer, resident, setup.batch_size, run_teacher)
        loops[name] = Loop(name, stream, setup.processes, network)
        origins[name] = "live" if live else "cached" if stored else "no teacher"
    seconds = interleaved({name: loop.step for name, loop in loops.items()}, setup.sizes.method_rounds)
    detail = f"{TEACHER} → {STUDENT}, batch {setup.batch_size}, {len(images):,} samples"
    return [
        middle(f"step: {name} ({origins[name]}) / ce", seconds[name] / seconds["ce"], "×", detail)
        for name in loops
        if name != "ce"
    ]


def _is_map(signal: str) -> bool:
    return parse(signal).kind in ("map", "last_map")
