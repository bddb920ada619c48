"""No fast path changes results: compiling, reading a cache ahead, and capturing a step on a GPU.

Tests that need a GPU are skipped, with that reason, if there is none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import ConfigError, NonFiniteLoss
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import Signals, StreamedSignals, WindowedSignals
from dhkd.stages.processes import Precision, Processes
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.loop import Task, train, train_together
from dhkd.stages.train.step import TrainingStep
from torch import Tensor

from tests.runs import read_metrics
from tests.stages.train.worlds import BATCH, OneBadRow, World, task_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, torch.cuda finds none")


def weights_of(task: Task) -> Tensor:
    return torch.cat([tensor.detach().flatten().double().cpu() for tensor in task.student.state_dict().values()])


def close(one: Tensor, other: Tensor, start: Tensor, share: float) -> bool:
    """Whether two ends are closer to each other than this share of the distance from their common start."""
    return bool((one - other).norm() < share * (one - start).norm())


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # a pool of processes would import torch again
    world = World(tmp_path, processes)
    plain = task_of(world, tmp_path / "plain", objective="dhkd", lr=0.005, epochs=1)
    compiled = task_of(world, tmp_path / "compiled", objective="dhkd", lr=0.005, epochs=1, compiled="max")
    start = weights_of(plain)
    figures = [train(task, processes) for task in (plain, compiled)]
    assert close(weights_of(compiled), weights_of(plain), start, 1e-3)
    assert compiled.student.state_dict().keys() == plain.student.state_dict().keys()
    assert figures[0].last_top1 == pytest.approx(figures[1].last_top1, rel=1e-3)


@pytest.mark.parametrize(("schedule", "window"), [("cycle", None), ("cycle", 20), ("block", 20)])
def test_reading_ahead_changes_nothing(schedule: str, window: int | None, processes: Processes, tmp_path: Path) -> None:
    """Signals that a thread fetches while a student trains, against signals that were in memory from the start."""
    world = World(tmp_path, processes)
    reader, names = open_cache(tmp_path / "c.zarr"), {"logits": ["logits"]}
    ahead: Signals = StreamedSignals(reader, names, processes.device)
    if window is not None:
        ahead = WindowedSignals(reader, names, processes.device, window)
    ends = []
    for name, signals in (("ahead", ahead), ("resident", world.signals)):
        stream = Stream(
            world.renderer,
            world.normalize,
            signals,
            schedule=schedule,
            seed=2,
            batch_size=BATCH,
            block_rows=reader.plan.block_rows,
            window=window,
        )
        task = task_of(world, tmp_path / name, stream=stream)
        train(task, processes)
        ends.append(weights_of(task))
    assert torch.equal(*ends)


def test_a_graph_needs_a_gpu(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    with pytest.raises(ConfigError, match="compile reduce-overhead: expected a GPU"):
        train(task_of(world, tmp_path / "run", compiled="reduce-overhead"), processes)
    assert not (tmp_path / "run").exists()


@pytest.fixture(params=["float32", "bf16"])
def on_gpu(request: pytest.FixtureRequest) -> Iterator[Processes]:
    processes = Processes(request.param)
    yield processes
    processes.end()


@pytest.fixture
def in_float32() -> Iterator[Processes]:
    precision: Precision = "float32"
    processes = Processes(precision)
    yield processes
    processes.end()


CASES: list[dict[str, Any]] = [
    {"objective": "ce"},
    {"objective": "kd"},
    {"objective": "dhkd"},
    {"objective": "dhkd", "alignment": Alignment(("ce",), None, 2)},
    {"objective": "dkd"},  # its weights change in the first epochs
    {"objective": "dhkd", "clip_norm": 0.5},
    {"objective": "dhkd + reviewkd"},
]


@needs_gpu
@pytest.mark.parametrize("compiled", ["reduce-overhead", pytest.param("max", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_a_captured_step_is_a_launched_one(
    case: dict[str, Any], compiled: str, on_gpu: Processes, tmp_path: Path
) -> None:
    """Over three epochs, with a last batch that is smaller and a rate that changes in every step."""
    world = World(tmp_path, on_gpu, objective=case["objective"])
    ends, losses = [], []
    for name, how in (("launched", "off"), ("captured", compiled)):
        task = task_of(world, tmp_path / name, lr=0.005, fused=True, compiled=how, **case)
        start = weights_of(task)
        train(task, on_gpu)
        ends.append(weights_of(task))
        losses.append([line["loss"] for line in read_metrics(tmp_path / name)])
    tolerance = 1e-3 if on_gpu.precision == "float32" else 0.05
    assert close(*ends, start, tolerance)
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)


@needs_gpu
def test_a_captured_run_resumes(in_float32: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, in_float32)
    options: dict[str, Any] = {"lr": 0.005, "fused": True, "compiled": "reduce-overhead"}
    whole = task_of(world, tmp_path / "whole", **options)
    start = weights_of(whole)
    train(whole, in_float32)
    for epochs in (1, 3):
        cut = task_of(world, tmp_path / "cut", epochs=epochs, **options)
        train(cut, in_float32)
    assert close(weights_of(whole), weights_of(cut), start, 1e-3)


@needs_gpu
def test_a_captured_step_leaves_out_updates_too(in_float32: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, in_float32)
    view, index = (int(keys[14]) for keys in world.stream().keys(2))  # in an epoch whose steps are replayed
    bad = OneBadRow(world.signals, view, index)
    task = task_of(world, tmp_path / "run", signals=bad, fused=True, compiled="reduce-overhead", objective="kd")
    with pytest.raises(NonFiniteLoss, match=rf"\({view}, {index}\)"):
        train(task, in_float32)
    assert bool(weights_of(task).isfinite().all())


@needs_gpu
@pytest.mark.parametrize("compiled", ["off", "reduce-overhead"])
def test_several_students_on_one_gpu(compiled: str, in_float32: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, in_float32)
    stream, names = world.stream(), ["ce", "kd", "dhkd", "binary-kl"]
    options: dict[str, Any] = {"stream": stream, "lr": 0.005, "fused": True, "compiled": compiled}
    alone = [task_of(world, tmp_path / f"alone-{name}", objective=name, **options) for name in names]
    starts = [weights_of(task) for task in alone]
    for task in alone:
        train(task, in_float32)
    together = [task_of(world, tmp_path / f"together-{name}", objective=name, **options) for name in names]
    train_together(together, in_float32)
    for one, other, start in zip(alone, together, starts, strict=True):
        assert close(weights_of(one), weights_of(other), start, 1e-3)


@needs_gpu
@pytest.mark.parametrize("compiled", ["off", "reduce-overhead"])
def test_the_host_waits_for_nothing_in_a_step(compiled: str, on_gpu: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, on_gpu)
    task = task_of(world, tmp_path / "run", fused=True)
    training_step = TrainingStep(
        task.student,
        task.optimizer,
        task.objective,
        task.stream,
        learning_rate=LearningRate(0.01, "cosine", epochs=9),
        seed=0,
        clip_norm=None,
        processes=on_gpu,
        compiled=compiled,
    )
    for epoch in range(4):  # the first epochs set everything up and capture the steps
        training_step.begin_epoch(epoch)
        batches = enumerate(task.stream.epoch(epoch))
        training_step(*next(batches))
        torch.cuda.set_sync_debug_mode("error" if epoch == 3 else "default")
        try:
            for step, batch in batches:
                training_step(step, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        training_step.end_epoch(1.0)
