"""What a student's step costs: with signals from the cache, in a plain script, and with aligned gradients."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.online import online
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import STUDENT, Loop, steps_per_second, stream_of
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.signals import NoSignals, Signals


def student_step(setup: Setup) -> list[Figure]:
    """Measure a step with a cache in memory, relative to a step with cross-entropy, and the rate of a plain script."""
    renderer, resident = setup.renderer(), setup.signals()
    signals: dict[str, Signals] = {"ce": NoSignals(resident.num_views), "kd": resident, "binary-kl": resident}
    figures = []
    for batch_size in setup.sizes.batch_sizes:
        streams = {name: stream_of(renderer, signals[name], batch_size) for name in signals}
        loops = {name: Loop(name, stream, setup.processes) for name, stream in streams.items()}
        seconds = interleaved({name: loop.step for name, loop in loops.items()}, setup.sizes.step_rounds)
        detail = f"{STUDENT}, batch {batch_size}"
        figures += [
            middle(f"step: {name} from the cache / ce", seconds[name] / seconds["ce"], "×", detail, at_most=1.02)
            for name in ("kd", "binary-kl")
        ]
        figures += _rates(setup, loops["ce"], batch_size, detail)
    return figures


def _rates(setup: Setup, loop: Loop, batch_size: int, detail: str) -> list[Figure]:
    """Measure images per second with cross-entropy, for dhkd's loop and for a plain script with and without workers."""
    plain = partial(online, setup.images, student=STUDENT, teacher=None, batch_size=batch_size)
    starts: dict[str, Callable[[], Iterator[None]]] = {
        "dhkd's loop, ce": loop.steps,
        "plain PyTorch, ce, 0 workers": partial(plain, workers=0),
        "plain PyTorch, ce, 2 workers": partial(plain, workers=2),
    }
    rates: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(setup.sizes.plain_rounds):
        for name, start in starts.items():
            rates[name].append(batch_size * steps_per_second(start(), setup.sizes.plain_steps))
    return [middle(f"rate: {name}", values, "images/s", detail) for name, values in rates.items()]


def alignment(setup: Setup) -> list[Figure]:
    """Measure dhkd's step with aligned gradients, relative to one forward pass, two backward passes and an update.

    Both use prepared batches.
    """
    renderer, resident = setup.renderer(), setup.signals()
    figures = []
    for batch_size in setup.sizes.batch_sizes:
        stream = stream_of(renderer, resident, batch_size)
        aligned, bare = Loop("dhkd", stream, setup.processes), Loop("dhkd", stream, setup.processes)
        batches = list(enumerate(stream.epoch(0)))[:-1]  # without the last batch, which is smaller
        actions = {
            "aligned": partial(_update_on_next, aligned.train_on, cycle(batches)),
            "bare": partial(_update_on_next, partial(_bare_update, bare), cycle(batches)),
        }
        seconds = interleaved(actions, setup.sizes.step_rounds)
        detail = f"{STUDENT} with a nonlinear auxiliary head, batch {batch_size}"
        ratios = seconds["aligned"] / seconds["bare"]
        figures.append(middle("dhkd's step / forward + two backwards", ratios, "×", detail, at_most=1.02))
    return figures


def _update_on_next(update: Callable[[int, int, Batch], None], batches: Iterator[tuple[int, Batch]]) -> None:
    step, batch = next(batches)
    update(0, step, batch)


def _bare_update(loop: Loop, epoch: int, step: int, batch: Batch) -> None:
    """Do the least work that alignment needs: compute both gradients and their sum, and update the weights."""
    terms = loop.objective.terms(loop.student(batch.images_BCHW), batch.labels, batch.teacher)
    kept, rest = terms.values()
    parameters = list(loop.student.parameters())
    first = torch.autograd.grad(kept, parameters, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(rest, parameters, allow_unused=True)
    for parameter, g1, g2 in zip(parameters, first, second, strict=True):
        parameter.grad = g2 if g1 is None else g1 if g2 is None else g1 + g2
    loop.optimizer.step()
    loop.optimizer.zero_grad()
