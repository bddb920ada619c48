"""A batch in parts: its gradient, its metrics and its errors are those of the whole batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.data.errors import ConfigError, NonFiniteLoss
from dhkd.stages.models.student import SeededDropout, Student
from dhkd.stages.processes import Processes
from dhkd.stages.train.accumulation import parts_of, require_divisible
from dhkd.stages.train.cuda_graph import require_capturable
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.loop import Task, train, train_together
from dhkd.stages.train.objectives import OBJECTIVES, build_objective, combined_objective
from torch import Tensor, nn

from tests.runs import read_metrics
from tests.stages.train.worlds import OPTIONS, OneBadRow, World, new_student, objective_of, task_of

TOGETHER = ("crd", "dist", "rkd")  # they compare rows
DIVISIBLE = [*sorted(set(OBJECTIVES) - set(TOGETHER)), "dhkd + reviewkd", "kd + 0.5 * mse"]


def without_coupled_rows(student: Student) -> Student:
    """Replace batch norm, which sees the rows of a part, and dropout, whose draws depend on the number of rows."""
    for module in list(student.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))
            elif isinstance(child, SeededDropout):
                setattr(module, name, nn.Identity())
    return student


def in_parts(task: Task, parts: int, **changes: Any) -> Task:
    return replace(task, accumulate=parts, **changes)


def change_of(world: World, processes: Processes, out: Path, parts: int, **options: Any) -> tuple[Tensor, Task]:
    """Return by how much one epoch of four steps changes the weights."""
    student = without_coupled_rows(new_student(options["objective"]))
    before = torch.cat([p.detach().flatten().clone() for p in student.parameters()])
    task = in_parts(task_of(world, out, student=student, epochs=1, **options), parts)
    train(task, processes)
    return torch.cat([p.detach().flatten() for p in student.parameters()]) - before, task


@pytest.mark.parametrize("objective", DIVISIBLE)
def test_the_parts_of_a_batch_have_its_gradient(objective: str, processes: Processes, tmp_path: Path) -> None:
    """The batches have 10 and 7 rows, in parts of 3, 3 and 4, and of 2, 2 and 3, which weigh as much as they have."""
    world = World(tmp_path, processes, "float32", objective)
    options = {"objective": objective, "lr": 0.01}
    whole, _ = change_of(world, processes, tmp_path / "whole", 1, **options)
    parts, _ = change_of(world, processes, tmp_path / "parts", 3, **options)
    assert whole.norm() > 0
    assert (whole - parts).norm() < 1e-4 * whole.norm()
    (one,), (other,) = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    timed = {"train_seconds", "seconds", "samples_per_second"}
    assert one.keys() == other.keys()
    assert {k: v for k, v in other.items() if k not in timed} == pytest.approx(
        {k: v for k, v in one.items() if k not in timed}, rel=1e-3
    )


@pytest.mark.parametrize("alignment", [Alignment(("ce",), None, 1), Alignment(("ce",), None, 2)])
def test_the_projection_is_that_of_the_whole_batch(alignment: Alignment, processes: Processes, tmp_path: Path) -> None:
    """At this rate gradients conflict; a coefficient of each part alone would give other weights."""
    world = World(tmp_path, processes, "float32", "dhkd")
    options: dict[str, Any] = {"objective": "dhkd", "alignment": alignment, "lr": 0.3}
    whole, _ = change_of(world, processes, tmp_path / "whole", 1, **options)
    parts, _ = change_of(world, processes, tmp_path / "parts", 3, **options)
    assert (whole - parts).norm() < 1e-5 * whole.norm()
    (one,), (other,) = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert one["conflicting_steps"] == other["conflicting_steps"] > 0


@pytest.mark.parametrize("rows", [2, 3, 5, 8, 9, 31])
@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_parts_are_the_rows_in_order(rows: int, number: int, processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    batch = next(world.stream(batch_size=rows).epoch(0))
    parts = list(parts_of(batch, number, 1))
    assert torch.equal(torch.cat([part.index_B for part in parts]), batch.index_B)
    assert torch.equal(torch.cat([part.view_B for part in parts]), batch.view_B)
    assert torch.equal(torch.cat([part.images_BCHW for part in parts]), batch.images_BCHW)
    assert torch.equal(torch.cat([part.labels.classes_B for part in parts]), batch.labels.classes_B)
    assert torch.equal(torch.cat([part.teacher["logits"] for part in parts]), batch.teacher["logits"])
    sizes = [len(part.index_B) for part in parts]
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == max(1, min(number, rows // 2))
    assert {part.global_size for part in parts} == {rows}
    if number == 1:
        assert parts[0] is batch


def test_processes_with_shares_of_two_sizes_make_equally_many_parts(processes: Processes, tmp_path: Path) -> None:
    """Four processes share 31 rows; those with 8 rows could make four parts, the one with 7 only three."""
    world = World(tmp_path, processes)
    shares = [next(world.stream(batch_size=rows).epoch(0)) for rows in (7, 8)]
    assert [len(list(parts_of(replace(share, global_size=31), 4, 4))) for share in shares] == [3, 3]


@pytest.mark.parametrize("objective", [*TOGETHER, "kd + 0.5 * rkd", "kd + crd"])
def test_an_objective_that_compares_rows_is_refused(objective: str) -> None:
    require_divisible(objective_of(objective), 1)
    with pytest.raises(ConfigError, match=r"accumulate 4: the objective \(.*\) compares the rows") as error:
        require_divisible(objective_of(objective), 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("objective", DIVISIBLE)
def test_any_other_objective_is_not(objective: str) -> None:
    require_divisible(objective_of(objective), 4)


def test_a_resumed_run_of_parts_ends_with_the_same_weights(processes: Processes, tmp_path: Path) -> None:
    """With batch norm and dropout, whose draws follow one another from part to part."""
    world = World(tmp_path, processes)
    options: dict[str, Any] = {"objective": "dhkd", "clip_norm": 1.0}
    train(whole := in_parts(task_of(world, tmp_path / "whole", **options), 4), processes)
    for epochs in (1, 3):
        torch.manual_seed(epochs)
        train(cut := in_parts(task_of(world, tmp_path / "cut", epochs=epochs, **options), 4), processes)
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(cut.student.state_dict()[name], tensor), name


def test_students_side_by_side_are_what_each_is_alone(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    stream = world.stream()

    def task(name: str, parts: int) -> Task:
        return in_parts(task_of(world, tmp_path / name, stream=stream, epochs=2, lr=0.02), parts)

    together = [task("one", 1), task("two", 2), task("four", 4)]
    train_together(together, processes)
    for name, parts, other in zip(("a", "b", "c"), (1, 2, 4), together, strict=True):
        train(alone := task(name, parts), processes)
        assert all(map(torch.equal, alone.student.state_dict().values(), other.student.state_dict().values()))


@pytest.mark.parametrize("look_every", [1, 3])
def test_a_loss_that_is_not_finite_is_named_whichever_part_it_is_in(
    look_every: int, processes: Processes, tmp_path: Path
) -> None:
    world = World(tmp_path, processes)
    view_N, index_N = world.stream().keys(0)
    view, index = int(view_N[18]), int(index_N[18])  # in the last part of the second batch
    signals: Any = OneBadRow(world.signals, view, index)
    options: dict[str, Any] = {"objective": "kd", "signals": signals, "fused": True, "look_every": look_every}
    task = in_parts(task_of(world, tmp_path / "run", **options), 4)
    with pytest.raises(NonFiniteLoss, match=rf"loss term kd .* step 2, keys \(view, index\) \({view}, {index}\);"):
        train(task, processes)


def test_a_graph_holds_no_parts(processes: Processes) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, fused=True)
    objective = build_objective("kd", {})
    require_capturable("max", objective, optimizer, processes, in_memory=True)
    with pytest.raises(ConfigError, match="a batch in several parts"):
        require_capturable("max", objective, optimizer, processes, in_memory=True, accumulate=2)
    adamw = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=0.1, fused=True)
    with pytest.raises(ConfigError, match="an optimizer other than sgd"):
        require_capturable("max", objective, adamw, processes, in_memory=True)


def test_no_objective_is_forgotten() -> None:
    """Each objective is either divisible or refused, in combinations, too."""
    assert {name for name in OBJECTIVES if _refused(name)} == set(TOGETHER)


def _refused(name: str) -> bool:
    objective = combined_objective(name, OPTIONS)
    return objective.couples_rows or objective.remembers_rows
