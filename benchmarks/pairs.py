"""What a student's step costs with and without the cache, for the two pairs that are most often compared."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.online import online
from dhkd.benchmarks.steps import RECIPE, Loop, steps_per_second, stream_of
from dhkd.data.cache.reader import LogitReader
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import NoSignals, ResidentSignals
from dhkd.stages.processes import Processes
from dhkd.stages.train.step import Compile

PAIRS = (("resnet20", "resnet56"), ("resnet8x4", "resnet32x4"))
STEPS = 4  # in a repetition: as many as a coefficient is used for
ALIGNED = "online script, teacher live, aligned"
REFRESHED = "dhkd, coefficient of every 4th step"
COMPILED = "dhkd, --compile max"


def pairs(
    rounds: int,
    worker_steps: int,
    batch_size: int,
    images: ImageSet,
    reader: LogitReader,
    processes: Processes,
) -> list[Figure]:
    """Each way's step over cross-entropy's on the same data path, and dhkd's rate over that of the online script."""
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    resident = ResidentSignals(reader, {"logits": ["logits"]}, processes.device)
    figures: list[Figure] = []
    for student, teacher in PAIRS:
        step = partial(_step_of, processes, (student, teacher))
        script = partial(online, images, student=student, batch_size=batch_size)
        with_cache = {
            "ce": step("ce", stream_of(renderer, NoSignals(resident.num_views), batch_size)),
            "kd": step("kd", stream_of(renderer, resident, batch_size)),
            "dhkd": step("dhkd", stream_of(renderer, resident, batch_size)),
            REFRESHED: step("dhkd", stream_of(renderer, resident, batch_size), every=4),
            COMPILED: step("dhkd", stream_of(renderer, resident, batch_size), compiled="max"),
        }
        without = {
            "online script, ce": script(teacher=None),
            "online script, teacher live": script(teacher=teacher),
            ALIGNED: script(teacher=teacher, aligned=True),
        }
        actions = {name: partial(_repeat, step) for name, step in with_cache.items()}
        actions |= {name: partial(_take, steps) for name, steps in without.items()}
        seconds = interleaved(actions, rounds, warm_up=1)
        bounds = {"kd": 1.02, REFRESHED: 1.25}
        detail = f"{student} ← {teacher}, batch {batch_size}"
        figures += [
            middle(f"step: {name} / ce", values / seconds["ce"], "×", detail, at_most=bounds.get(name))
            for name, values in seconds.items()
            if name != "ce"
        ]
        rates = {name: STEPS * batch_size / values for name, values in seconds.items()}
        for workers in (1, 2):  # each loader anew, so that nothing was fetched while others had their turn
            rate = steps_per_second(script(teacher=teacher, aligned=True, workers=workers), worker_steps)
            rates[f"{ALIGNED}, {workers} workers"] = np.array([rate * batch_size])
        figures += [middle(f"rate: {name}", values, "images/s", detail) for name, values in rates.items()]
        at_least = 2.0 if student == "resnet20" else None
        for name in ("dhkd", COMPILED):
            speed_up = seconds[ALIGNED] / seconds[name]
            figures.append(middle(f"{name} / online script, aligned", speed_up, "×", detail, at_least=at_least))
        best = max(float(np.median(rates[name])) for name in rates if name.startswith(ALIGNED))
        figures.append(
            Figure(
                "dhkd / online script, aligned, with its best number of workers",
                float(np.median(rates["dhkd"])) / best,
                "×",
                detail,
            )
        )
    return figures


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
