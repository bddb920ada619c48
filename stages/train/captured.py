"""A training step as a CUDA graph: what launching its kernels costs the host is paid once.

On a GPU a small network's step is hundreds of kernels of microseconds each, and launching them takes longer than
running them. A graph replays them all with one launch. Rendering stays outside: it is a few kernels, launched while the
step before still runs.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch
from dhkd.data.stream.batches import Batch

WARM_UP = 2  # steps that run as they are before one of their kind is captured: libraries set themselves up in them


class CapturedStep:
    """`step(batch, kind)` captured for each kind of step and shape of batch, and replayed.

    What outlives a step must be written in place, and `step` must not read from the device. `kind` tells steps of
    one sort from those of the other; `generators` are those that it draws from, beside torch's own.
    """

    def __init__(
        self, step: Callable[[Batch, bool], None], generators: Callable[[], Sequence[torch.Generator]]
    ) -> None:
        self._step, self._generators = step, generators
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Batch]] = {}
        self._seen: Counter[Hashable] = Counter()
        # Where capturing has to happen, and what comes before it.
        self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's

    def forget(self) -> None:
        """Capture anew: what a step does has changed."""
        self._graphs.clear()

    def __call__(self, batch: Batch, kind: bool) -> None:
        """Do what `step(batch, kind)` does."""
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.teacher.items())
        key = (kind, batch.images_BCHW.shape, batch.global_size, shapes)
        if self._seen[key] < WARM_UP:
            self._seen[key] += 1
            self._aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._aside):
                self._step(batch, kind)
            torch.cuda.current_stream().wait_stream(self._aside)
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(batch, kind)
        graph, captured = self._graphs[key]
        captured.images_BCHW.copy_(batch.images_BCHW)
        captured.labels_B.copy_(batch.labels_B)
        for name, values in captured.teacher.items():
            values.copy_(batch.teacher[name])
        graph.replay()

    def _capture(self, batch: Batch, kind: bool) -> tuple[torch.cuda.CUDAGraph, Batch]:
        captured = replace(
            batch,
            images_BCHW=batch.images_BCHW.clone(),  # which keeps the memory format
            labels_B=batch.labels_B.clone(),
            teacher={name: values.clone() for name, values in batch.teacher.items()},
        )
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators():
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self._aside):
            self._step(captured, kind)
        return graph, captured
