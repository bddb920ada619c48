"""The training loop: a cached step equals a live one, resuming changes nothing, a broken loss stops the update."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.data.errors import DhkdError, NonFiniteLoss, RunMismatch
from dhkd.data.runs.folder import RunFolder
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.signals import NoSignals
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.processes import Processes
from dhkd.stages.train.gradients import Alignment, backward
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.loop import Figures, Task, train, train_together
from dhkd.stages.train.objectives import OBJECTIVES, build_objective
from dhkd.stages.train.step import dropout_seed
from torch import Tensor

from tests.few import few
from tests.runs import read_metrics
from tests.stages.train.worlds import VIEWS, OneBadRow, World, new_student, objective_of, run_train, task_of

DISTILLING = [*sorted(set(OBJECTIVES) - {"ce", "label-smoothing"}), "dhkd + reviewkd", "kd + 0.5 * rkd"]


@pytest.mark.parametrize(
    ("objective_name", "dtype", "tolerance"),
    few(
        [
            *((name, "float32", 1e-5) for name in DISTILLING),
            *((name, "float16", 3e-3) for name in ("dhkd", "kd", "reviewkd")),
        ],
        [*((name, "float32", 1e-5) for name in DISTILLING if "+ rev" not in name), ("dhkd", "float16", 3e-3)],
    ),
)
def test_a_cached_step_equals_a_live_one(
    objective_name: str, dtype: str, tolerance: float, processes: Processes, tmp_path: Path
) -> None:
    """The same keys, with signals from the cache and from the teacher, give the same gradient, within rounding."""
    world = World(tmp_path, processes, dtype, objective_name)
    objective = objective_of(objective_name)
    weights = {name: 0.0 if name == "ce" else weight for name, weight in objective.weights(19).items()}

    def step(batch: Batch, teacher: dict[str, Tensor]) -> Tensor:
        student = new_student(objective_name)
        batch = replace(batch, teacher=teacher)
        student(batch.images_BCHW, batch)  # so that CRD's memory holds this batch
        torch.manual_seed(1)  # dropout
        terms = objective.terms(student(batch.images_BCHW, batch), batch.labels, teacher)
        backward(terms, weights, list(student.backbone.parameters()), alignment=None)
        gradients = [p.grad.flatten() for p in student.backbone.parameters() if p.grad is not None]
        return torch.cat(gradients)

    for batch in islice(world.stream().epoch(0), 2):
        live = world.teacher.signals(world.renderer.pixels(batch.view_B, batch.index_B), batch.teacher)
        assert live.keys() == batch.teacher.keys()
        cached_step, live_step = step(batch, dict(batch.teacher)), step(batch, live)
        other_step = step(batch, {name: signal.roll(1, 0) for name, signal in live.items()})
        assert live_step.norm() > 0
        assert (cached_step - live_step).norm() <= tolerance * live_step.norm()
        assert (other_step - live_step).norm() > 0.05 * live_step.norm(), "another image's signals are another step"


@pytest.mark.parametrize(
    ("objective", "stops"),
    few(
        [
            ("dhkd", (1,)),
            ("dhkd", (2,)),
            *((name, (1, 2)) for name in ("ce", "crd", "reviewkd", "simkd", "dhkd + reviewkd")),
        ],
        [("dhkd", (1,)), ("crd", (1, 2)), ("simkd", (1, 2))],
    ),
)
def test_a_resumed_run_ends_with_the_same_weights(
    objective: str, stops: tuple[int, ...], processes: Processes, tmp_path: Path
) -> None:
    world = World(tmp_path, processes, objective=objective)
    whole = run_train(world, processes, tmp_path / "whole", objective=objective)
    for epochs in (*stops, 3):
        torch.manual_seed(epochs)  # the state of the generators doesn't matter
        student = new_student(objective)
        resumed = run_train(world, processes, tmp_path / "cut", student=student, objective=objective, epochs=epochs)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert [line["epoch"] for line in read_metrics(tmp_path / "cut")] == [1, 2, 3]
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_metrics_name_every_term(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    run_train(world, processes, tmp_path / "run", epochs=1)
    (line,) = read_metrics(tmp_path / "run")
    names = ["epoch", "learning_rate", "loss", "ce", "binary-kl-norm", "train_top1", "train_seconds"]
    assert list(line) == [*names, "samples_per_second", "conflicting_steps", "top1", "top5", "seconds"]
    assert line["loss"] == pytest.approx(line["ce"] + line["binary-kl-norm"])
    assert 0 <= line["conflicting_steps"] <= 4
    assert line["learning_rate"] == pytest.approx(LearningRate(0.05, "cosine", epochs=3).at(0, 3, 4))


def test_a_loss_that_is_not_finite_names_term_step_and_key(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    first, second = (list(zip(*map(Tensor.tolist, world.stream().keys(epoch)), strict=True)) for epoch in (0, 1))
    view, index = next(key for key in second[20:30] if key not in first)  # in the third batch of the second epoch
    bad = OneBadRow(world.signals, view, index)
    named = rf"loss term kd is not finite at epoch 2, step 3, keys \(view, index\) \({view}, {index}\);"
    with pytest.raises(NonFiniteLoss, match=named):
        run_train(world, processes, tmp_path / "run", objective="kd", signals=bad)

    # Epoch 1 is kept, and without the fault the run continues as if nothing had happened.
    assert len(read_metrics(tmp_path / "run")) == 1
    resumed = run_train(world, processes, tmp_path / "run", objective="kd")
    whole = run_train(world, processes, tmp_path / "whole", objective="kd")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(("objective", "look_every"), [("kd", 2), ("dhkd", 3), ("dhkd", 64)])
def test_a_late_look_finds_the_same(objective: str, look_every: int, processes: Processes, tmp_path: Path) -> None:
    """However late the host looks, the error names the same step and key, and nothing was updated since that step."""
    world = World(tmp_path, processes)
    view, index = (int(keys[14]) for keys in world.stream().keys(0))  # in the second batch of the first epoch
    bad, ended, messages = OneBadRow(world.signals, view, index), [], []
    for every in (1, look_every):
        task = task_of(world, tmp_path / str(every), objective=objective, signals=bad, look_every=every)
        with pytest.raises(NonFiniteLoss, match=rf"at epoch 1, step 2, keys \(view, index\) \({view}, {index}\);") as e:
            train(task, processes)
        messages.append(str(e.value))
        ended.append([parameter.detach().clone() for parameter in task.student.parameters()])
    assert messages[0] == messages[1]
    assert all(map(torch.equal, *ended)), "the update of the second step was left out, and all later ones"


def test_a_late_look_changes_nothing(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    seldom, always = (run_train(world, processes, tmp_path / str(every), look_every=every) for every in (64, 1))
    assert all(map(torch.equal, seldom.state_dict().values(), always.state_dict().values()))
    lines = [
        [{**line, "seconds": 0, "train_seconds": 0, "samples_per_second": 0} for line in read_metrics(tmp_path / n)]
        for n in ("64", "1")
    ]
    assert lines[0] == lines[1]


TOGETHER = ("dhkd", "kd", "ce", "crd", "dhkd + 0.5 * kd")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("stopped", few([False, True], [True]))
def test_each_of_several_students_ends_as_it_does_alone(stopped: bool, processes: Processes, tmp_path: Path) -> None:
    """Students of two streams, with and without dropout; also if some of them had stopped an epoch earlier."""
    world = World(tmp_path, processes, objective="dhkd + crd")
    streams = {7: world.stream(), 8: world.stream(seed=3)}
    cases = [(name, seed) for name in TOGETHER for seed in streams]

    def tasks(folder: str, epochs: int, some: list[tuple[str, int]]) -> list[Task]:
        return [
            task_of(
                world,
                tmp_path / folder / f"{name}-{seed}",
                objective=name,
                seed=seed,
                stream=streams[seed],
                epochs=epochs,
            )
            for name, seed in some
        ]

    torch.set_num_threads(1)
    alone = tasks("alone", 3, cases)
    figures = [train(task, processes) for task in alone]
    torch.set_num_threads(2)
    if stopped:
        train_together(tasks("together", 1, cases[:4]), processes)
        train_together(tasks("together", 2, cases[2:6]), processes)
    together = tasks("together", 3, cases)
    outcomes = train_together(together, processes)
    for one, other, figure, outcome in zip(alone, together, figures, outcomes, strict=True):
        assert not isinstance(outcome, DhkdError)
        assert outcome.last_top1 == figure.last_top1
        for name, tensor in one.student.state_dict().items():
            assert torch.equal(other.student.state_dict()[name], tensor), (one.run.path.name, name)
        assert [line["loss"] for line in read_metrics(one.run.path)] == [
            line["loss"] for line in read_metrics(other.run.path)
        ]


@pytest.mark.usefixtures("two_threads")
def test_one_student_that_fails_leaves_the_others_alone(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    stream = world.stream()
    broken = new_student("ce")
    broken.backbone.fc.bias.data[2] = float("inf")
    tasks = [
        task_of(world, tmp_path / "good", objective="kd", stream=stream),
        task_of(world, tmp_path / "bad", objective="ce", stream=stream, student=broken),
    ]
    good, bad = train_together(tasks, processes)
    assert isinstance(bad, NonFiniteLoss)
    assert isinstance(good, Figures)
    assert good.epochs == 3
    assert [line["epoch"] for line in read_metrics(tmp_path / "good")] == [1, 2, 3]
    assert not (tmp_path / "bad" / "metrics.jsonl").exists()


@pytest.mark.parametrize("every", [2, 4])
def test_a_coefficient_that_is_used_again(every: int, processes: Processes, tmp_path: Path) -> None:
    """Steps that compute no coefficient use the latest one; a resumed run is the same."""
    world = World(tmp_path, processes)
    # At this rate the gradients of cross-entropy and distillation conflict.
    options: dict[str, Any] = {"objective": "dhkd", "alignment": Alignment(("ce",), None, every), "lr": 0.2}
    task = task_of(world, tmp_path / "run", **options)
    train(task, processes)
    (first, *_) = read_metrics(tmp_path / "run")
    assert 0 < first["conflicting_steps"] <= 4 // every

    for epochs in (1, 3):
        cut = run_train(world, processes, tmp_path / "cut", epochs=epochs, **options)
    assert all(map(torch.equal, task.student.state_dict().values(), cut.state_dict().values()))

    # The first epoch by hand.
    student, optimizer = (by_hand := task_of(world, tmp_path / "hand", **options)).student, by_hand.optimizer
    student.train()
    coefficient = None
    for step, batch in enumerate(by_hand.stream.epoch(0)):
        optimizer.param_groups[0]["lr"] = by_hand.learning_rate.at(0, step, 4)
        student.seed_dropout(dropout_seed(by_hand.seed, step, 0))
        terms = by_hand.objective.terms(student(batch.images_BCHW, batch), batch.labels, batch.teacher)
        report = backward(
            terms,
            by_hand.objective.weights(0),
            list(student.parameters()),
            alignment=by_hand.objective.alignment,
            coefficient=None if step % every == 0 else coefficient,
        )
        coefficient = report.coefficient if report else coefficient
        optimizer.step()
        optimizer.zero_grad()
    one = run_train(world, processes, tmp_path / "one", epochs=1, **options)
    assert all(map(torch.equal, student.state_dict().values(), one.state_dict().values()))


def test_nothing_is_updated_by_a_loss_that_is_not_finite(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    student = new_student("ce")
    student.backbone.fc.bias.data[2] = float("inf")
    before = [parameter.detach().clone() for parameter in student.parameters()]
    with pytest.raises(NonFiniteLoss, match=r"loss term ce is not finite at epoch 1, step 1, .* and 5 more"):
        run_train(world, processes, tmp_path / "run", student=student, objective="ce", signals=NoSignals(VIEWS))
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), before, strict=True))
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_gradients_are_clipped_together(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    before = torch.cat([p.detach().flatten() for p in new_student("dhkd").parameters()])
    student = run_train(world, processes, tmp_path / "run", epochs=1, weight_decay=0.0, lr=1.0, clip_norm=1e-3)
    moved = (torch.cat([p.detach().flatten() for p in student.parameters()]) - before).norm()
    # Four steps of norm 1e-3 at a rate of at most 1, with momentum 0.9: at most 1 + 1.9 + 2.71 + 3.439 of them.
    assert 1e-4 < moved <= 9.05e-3


def test_a_checkpoint_of_another_network_is_refused(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    run_train(world, processes, tmp_path / "run", objective="kd", epochs=1)
    with pytest.raises(RunMismatch, match=r"of another architecture: .*choose another --out"):
        run_train(world, processes, tmp_path / "run", student=new_student("kd", "resnet14"), objective="kd")
    (tmp_path / "run" / "checkpoint" / "state.pt").write_bytes(b"half a file")
    with pytest.raises(RunMismatch, match="can't be read"):
        run_train(world, processes, tmp_path / "run", objective="kd")


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    student, images_BCHW, drawn = new_student("dhkd"), torch.rand(3, 3, 8, 8), []
    for seed, step, rank in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]:
        student.seed_dropout(dropout_seed(seed, step, rank))
        torch.manual_seed(len(drawn))  # nothing of torch's own generator enters
        drawn.append(tuple(student(images_BCHW).distill.flatten().tolist()))
    assert drawn[0] == drawn[-1]
    assert len(set(drawn)) == 4


def test_result_figures(processes: Processes, tmp_path: Path) -> None:
    """The best accuracy is that of the best epoch, the last that of the last."""
    world = World(tmp_path, processes)
    student = new_student("ce")
    accuracies = iter([Accuracy(30, 60), Accuracy(50, 90), Accuracy(40, 95)])
    task = Task(
        student,
        torch.optim.SGD(student.parameters(), lr=0.01),
        build_objective("ce", {}),
        world.stream(NoSignals(VIEWS)),
        lambda network: next(accuracies),
        learning_rate=LearningRate(0.01, "constant", epochs=3),
        epochs=3,
        seed=0,
        clip_norm=None,
        run=RunFolder(tmp_path / "run", {}, resume=False),
    )
    figures = train(task, processes)
    assert (figures.last_top1, figures.best_top1) == (40, 50)
    assert (figures.last_top5, figures.best_top5) == (95, 95)
    assert figures.samples_per_second > 0
    assert json.loads(json.dumps(asdict(figures))) == asdict(figures)


# Rates at which the losses themselves overflow; a method's own terms must then be named like cross-entropy.
@pytest.mark.parametrize(
    "objective", few([*OBJECTIVES, "dhkd + reviewkd"], ["ce", "kd", "dhkd", "crd", "reviewkd", "simkd"])
)
def test_every_method_that_diverges_ends_in_one_line_with_a_remedy(
    objective: str, processes: Processes, tmp_path: Path
) -> None:
    world = World(tmp_path, processes, "float32", objective)
    with pytest.raises(NonFiniteLoss) as error:
        run_train(world, processes, tmp_path / "run", objective=objective, lr=1e25, epochs=3)
    message = str(error.value)
    terms = objective_of(objective).weights(0)
    assert "\n" not in message
    assert " at epoch 1, step " in message
    assert any(f"the weight of {term}" in message or f"{term}, " in message for term in terms), message
    assert "lower the learning rate or the weight of " in message
    assert message.endswith(" and train into another --out")
    assert "--precision" not in message, "float32 is the most exact already"
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_of_students_side_by_side_each_says_for_itself_what_diverged(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    tasks = [task_of(world, tmp_path / str(lr), objective="kd", lr=lr, epochs=2) for lr in (0.01, 1e25, 1e30)]
    well, *badly = train_together(tasks, processes)
    assert isinstance(well, Figures)
    for outcome in badly:
        assert isinstance(outcome, NonFiniteLoss)
        assert "at epoch 1, step 2, " in str(outcome)
        assert str(outcome).endswith(" and train into another --out")


def test_an_update_that_breaks_the_weights_in_the_last_step_is_no_result(processes: Processes, tmp_path: Path) -> None:
    """Every loss was finite, and no later step looks at the weights."""
    world = World(tmp_path, processes)
    stream = world.stream(batch_size=len(world.images))  # one step an epoch
    options: dict[str, Any] = {"objective": "kd", "stream": stream, "lr": 1e30, "epochs": 1}
    with pytest.raises(NonFiniteLoss, match=r"^weights are not finite at epoch 1, step 1: .*, its largest term kd; "):
        run_train(world, processes, tmp_path / "run", weight_decay=1e30, **options)
    assert not (tmp_path / "run" / "checkpoint").exists()
