"""A training step captured as a CUDA graph, which replays all kernels of the step with a single launch.

On a GPU, the step of a small network consists of hundreds of kernels that take microseconds each, and launching them
takes longer than running them. The batch's images are rendered outside the graph: rendering needs only a few kernels,
which are launched while the previous step is still running.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch
from dhkd.stages.processes import Processes
from dhkd.stages.train.objectives.contract import Objective
from dhkd.stages.train.optimizers import skips_on_device

WARM_UP = 2  # the number of uncaptured steps before a capture, in which libraries initialize themselves


def require_capturable(
    compiled: str,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    *,
    in_memory: bool,
    accumulate: int = 1,
) -> None:
    """Raise `ConfigError`, listing every reason, if the steps of this run can't be captured.

    `compiled` is the value of the option `compile`; `in_memory` says whether all images and signals (teacher outputs
    such as logits) are held in memory. A graph runs without the host, so nothing in the step may need the host or
    another process.
    """
    hindrances = {
        "several processes": processes.world_size > 1,
        "precision fp16": processes.precision == "fp16",
        "an objective that works on the host": not objective.capturable,
        "images or a cache that are not all in memory": not in_memory,
        "an optimizer other than sgd with fused kernels": not _is_fused_sgd(optimizer),
        "a batch in several parts": accumulate > 1,
    }
    reasons = [reason for reason, applies in hindrances.items() if applies]
    if reasons:
        raise ConfigError(f"compile {compiled}: a graph can't hold a step with {' and '.join(reasons)}; use off")


def _is_fused_sgd(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer) is torch.optim.SGD and skips_on_device(optimizer)


class CapturedStep:
    """A wrapper that captures `step(batch, kind)` once for each kind of step and batch shape, and then replays it.

    `step` must not read values back from the device, and must write in place to every tensor that outlives the step.
    `kind` distinguishes steps that launch different kernels. `generators` returns the random generators that the step
    uses besides torch's default generator.
    """

    def __init__(
        self, step: Callable[[Batch, bool], None], generators: Callable[[], Sequence[torch.Generator]]
    ) -> None:
        self._step, self._generators = step, generators
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Batch]] = {}
        self._warm_ups: Counter[Hashable] = Counter()
        # Capturing and the warm-up steps before it must happen in a separate stream.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's

    def forget(self) -> None:
        """Drop all graphs after the computation of a step has changed; the next steps capture new graphs."""
        self._graphs.clear()

    def __call__(self, batch: Batch, kind: bool) -> None:
        """Run `step(batch, kind)`, by replaying its graph after `WARM_UP` steps of the same kind and batch shapes."""
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.teacher.items())
        key = (kind, batch.images_BCHW.shape, batch.labels.are_mixed, batch.global_size, shapes)
        if self._warm_ups[key] < WARM_UP:
            self._warm_ups[key] += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step(batch, kind)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(batch, kind)
        graph, captured = self._graphs[key]
        captured.images_BCHW.copy_(batch.images_BCHW)
        captured.labels.copy_(batch.labels)
        for name, values in captured.teacher.items():
            values.copy_(batch.teacher[name])
        graph.replay()

    def _capture(self, batch: Batch, kind: bool) -> tuple[torch.cuda.CUDAGraph, Batch]:
        captured = replace(
            batch,
            images_BCHW=batch.images_BCHW.clone(),  # clone keeps the memory format
            labels=batch.labels.map(torch.clone),
            teacher={name: values.clone() for name, values in batch.teacher.items()},
        )
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators():
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self._stream):
            self._step(captured, kind)
        return graph, captured
