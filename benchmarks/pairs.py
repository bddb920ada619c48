"""What a student's step costs with and without the cache, for the two pairs of networks that papers use most often."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.online import online
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import Loop, steps_per_second, stream_of
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import NoSignals
from dhkd.stages.processes import Processes
from dhkd.stages.train.step import Compile
from numpy.typing import NDArray

PAIRS = (("resnet20", "resnet56"), ("resnet8x4", "resnet32x4"))
STEPS = 4  # steps in a repetition; `REFRESHED` also computes its gradient coefficient only once in so many steps
ALIGNED = "online script, teacher live, aligned"
REFRESHED = "dhkd, coefficient of every 4th step"
COMPILED = "dhkd, --compile max"


def pairs(setup: Setup) -> list[Figure]:
    """Measure steps relative to a step of dhkd with cross-entropy, and dhkd's rate relative to the online script's."""
    return [figure for student, teacher in PAIRS for figure in _pair(setup, student, teacher)]


def _pair(setup: Setup, student: str, teacher: str) -> list[Figure]:
    batch_size, detail = setup.batch_size, f"{student} ← {teacher}, batch {setup.batch_size}"
    script = partial(online, setup.images, student=student, batch_size=batch_size)
    seconds = _seconds(setup, (student, teacher), script)
    bounds = {"kd": 1.02, REFRESHED: 1.25}
    figures = [
        middle(f"step: {name} / ce", values / seconds["ce"], "×", detail, at_most=bounds.get(name))
        for name, values in seconds.items()
        if name != "ce"
    ]
    rates = {name: STEPS * batch_size / values for name, values in seconds.items()}
    for workers in (1, 2):  # each with a new loader, so that no batch was fetched during another measurement
        steps = script(teacher=teacher, aligned=True, workers=workers)
        rate = steps_per_second(steps, setup.sizes.plain_steps) * batch_size
        rates[f"{ALIGNED}, {workers} workers"] = np.array([rate])
    figures += [middle(f"rate: {name}", values, "images/s", detail) for name, values in rates.items()]
    at_least = 2.0 if student == "resnet20" else None
    for name in ("dhkd", COMPILED):
        speed_up = seconds[ALIGNED] / seconds[name]
        figures.append(middle(f"{name} / online script, aligned", speed_up, "×", detail, at_least=at_least))
    best = max(float(np.median(rates[name])) for name in rates if name.startswith(ALIGNED))
    over_best = float(np.median(rates["dhkd"])) / best
    name = "dhkd / online script, aligned, with its best number of workers"
    return [*figures, Figure(name, over_best, "×", detail)]


def _seconds(
    setup: Setup, networks: tuple[str, str], script: Callable[..., Iterator[None]]
) -> dict[str, NDArray[np.float64]]:
    """Measure the seconds of all repetitions of each variant; the variants take turns."""
    renderer, resident, batch_size = setup.renderer(), setup.signals(), setup.batch_size
    step = partial(_step_of, setup.processes, networks)
    with_cache = {
        "ce": step("ce", stream_of(renderer, NoSignals(resident.num_views), batch_size)),
        "kd": step("kd", stream_of(renderer, resident, batch_size)),
        "dhkd": step("dhkd", stream_of(renderer, resident, batch_size)),
        REFRESHED: step("dhkd", stream_of(renderer, resident, batch_size), every=4),
        COMPILED: step("dhkd", stream_of(renderer, resident, batch_size), compiled="max"),
    }
    _, teacher = networks
    without_cache = {
        "online script, ce": script(teacher=None),
        "online script, teacher live": script(teacher=teacher),
        ALIGNED: script(teacher=teacher, aligned=True),
    }
    actions = {name: partial(_repeat, take_step) for name, take_step in with_cache.items()}
    actions |= {name: partial(_take, steps) for name, steps in without_cache.items()}
    return interleaved(actions, setup.sizes.pair_rounds, warm_up=1)


def _step_of(
    processes: Processes,
    networks: tuple[str, str],
    objective: str,
    stream: Stream,
    every: int = 1,
    compiled: Compile = "off",
) -> Callable[[], None]:
    return Loop(objective, stream, processes, networks=networks, every=every, compiled=compiled).step


def _repeat(step: Callable[[], None]) -> None:
    for _ in range(STEPS):
        step()


def _take(steps: Iterator[None]) -> None:
    for _ in islice(steps, STEPS):
        pass
