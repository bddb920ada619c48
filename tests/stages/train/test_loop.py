"""The training loop: a cached step is a live one, resuming leaves no trace, a broken loss stops before the update."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import DhkdError, NonFiniteLoss, RunMismatch
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.render import Normalization, ResidentRenderer
from dhkd.data.runs.folder import RunFolder
from dhkd.data.stream.batches import Batch, Stream
from dhkd.data.stream.signals import NoSignals, ResidentSignals, Signals
from dhkd.pipeline.build.training import student_of
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import Student
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.gradients import Alignment, backward
from dhkd.stages.train.learner import Compile, dropout_seed
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.loop import Task, train, train_together
from dhkd.stages.train.objectives import OBJECTIVES, build_objective, combined_objective
from dhkd.stages.train.objectives.contract import Objective, Setting
from torch import Tensor

from tests.caches import manifest_of, writer_at
from tests.runs import read_metrics
from tests.samples import make_images

RECIPE = CropFlip(padding=1, flip=True, seed=0)
VIEWS, BATCH = 3, 10


# What a test of every method changes: nothing that depends on the rows beside it can be cached.
OPTIONS: dict[str, dict[str, object]] = {"ofd": {"teacher_batch_norm": "eval"}, "crd": {"negatives": 20}}


def objective_of(name: str) -> Objective:
    return combined_objective(name, OPTIONS)


class World:
    """A data set, a teacher and, in a folder, its cache of what an objective needs."""

    def __init__(self, folder: Path, processes: Processes, dtype: str = "float16", objective: str = "dhkd") -> None:
        self.images: ImageSet = make_images()
        self.normalize = Normalization(self.images.mean, self.images.std)
        self.renderer = ResidentRenderer(self.images, RECIPE, processes.device)
        self.network = teacher_network()
        self.teacher = Teacher(self.network, self.normalize, processes)
        setting = setting_of(objective)
        needs = objective_of(objective).needs(setting) or {"logits": None}
        signals = {name: (dtype, setting.teacher.row(name)) for name in needs}
        manifest = manifest_of(len(self.images), self.images.num_classes, VIEWS, 13, signals=signals)
        writer = writer_at(folder / "c.zarr", manifest)
        write_blocks(self.teacher, self.renderer, writer, batch_size=8, processes=processes)
        names = {name: [name] for name in needs}
        self.signals = ResidentSignals(open_cache(folder / "c.zarr"), names, processes.device)

    def stream(self, signals: Signals | None = None, seed: int = 2) -> Stream:
        signals = signals or self.signals
        return Stream(self.renderer, self.normalize, signals, schedule="independent", seed=seed, batch_size=BATCH)


def teacher_network() -> Network:
    torch.manual_seed(5)
    network = build_network("resnet8", 5)
    network.head.weight.data *= 20  # logits as large as a trained teacher's
    return network.eval()


def setting_of(objective_name: str, architecture: str = "resnet8") -> Setting:
    shapes_of = partial(Shapes, num_classes=5, image=(8, 8))
    setting = Setting(shapes_of(architecture), shapes_of("resnet8"), make_images().labels_N, 0, teacher_network())
    return replace(setting, student=shapes_of(objective_of(objective_name).architecture(setting)))


def new_student(objective_name: str, architecture: str = "resnet8") -> Student:
    return student_of(objective_of(objective_name), setting_of(objective_name, architecture))


def task_of(
    world: World,
    out: Path,
    *,
    student: Student | None = None,
    objective: str = "dhkd",
    epochs: int = 3,
    lr: float = 0.05,
    signals: Signals | None = None,
    stream: Stream | None = None,
    weight_decay: float = 5e-4,
    clip_norm: float | None = None,
    seed: int = 7,
    look_every: int | None = None,
    alignment: Alignment | None = None,
    fused: bool = False,
    compiled: Compile = "off",
) -> Task:
    student = student or new_student(objective)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, fused=fused or look_every is not None
    )
    return Task(
        student,
        optimizer,
        combined_objective(objective, OPTIONS, alignment),
        stream or world.stream(signals),
        lambda network: Accuracy(
            float(network(torch.ones(1, 3, 8, 8, device=network.head.weight.device)).detach().sum()), 0.0
        ),
        learning_rate=LearningRate(lr, "cosine", epochs=3),
        epochs=epochs,
        seed=seed,
        clip_norm=clip_norm,
        run=RunFolder(out, {}, resume=True),
        look_every=look_every,
        compiled=compiled,
    )


def run_train(world: World, processes: Processes, out: Path, **said: Any) -> Student:
    task = task_of(world, out, **said)
    train(task, processes)
    return task.student


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 3e-3), ("float32", 1e-5)])
@pytest.mark.parametrize(
    "objective_name", [*sorted(set(OBJECTIVES) - {"ce", "label-smoothing"}), "dhkd + reviewkd", "kd + 0.5 * rkd"]
)
def test_a_cached_step_is_a_live_one(
    objective_name: str, dtype: str, tolerance: float, processes: Processes, tmp_path: Path
) -> None:
    """The same keys, once with what is cached and once with what the teacher says: one gradient, within rounding."""
    world = World(tmp_path, processes, dtype, objective_name)
    objective = objective_of(objective_name)
    weights = {name: 0.0 if name == "ce" else weight for name, weight in objective.weights(19).items()}

    def step(batch: Batch, teacher: dict[str, Tensor]) -> Tensor:
        student = new_student(objective_name)
        batch = replace(batch, teacher=teacher)
        student(batch.images_BCHW, batch)  # so that what is remembered of the teacher is of this batch
        torch.manual_seed(1)  # dropout
        terms = objective.terms(student(batch.images_BCHW, batch), batch.labels_B, teacher)
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


@pytest.mark.parametrize("stops", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("objective", ["dhkd", "ce", "crd", "reviewkd", "simkd", "dhkd + reviewkd"])
def test_a_resumed_run_ends_with_the_same_weights(
    objective: str, stops: tuple[int, ...], processes: Processes, tmp_path: Path
) -> None:
    world = World(tmp_path, processes, objective=objective)
    whole = run_train(world, processes, tmp_path / "whole", objective=objective)
    for epochs in (*stops, 3):
        torch.manual_seed(epochs)  # whatever the generators' state
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
    assert line["loss"] == pytest.approx(line["ce"] + line["binary-kl-norm"])
    assert 0 <= line["conflicting_steps"] <= 4
    assert line["learning_rate"] == pytest.approx(LearningRate(0.05, "cosine", epochs=3).at(0, 3, 4))


class OneBadRow:
    """The cache's signals, but for one key whose logit is not finite: as memory that went bad would give it."""

    in_memory = True

    def __init__(self, signals: ResidentSignals, view: int, index: int) -> None:
        self.num_views, self._signals, self._key = signals.num_views, signals, (view, index)

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        self._signals.prepare(epoch, view_N, index_N)

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        rows = self._signals.gather(view_B, index_B)
        bad_B = (view_B == self._key[0]) & (index_B == self._key[1])
        return {name: torch.where(bad_B[:, None], float("nan"), values) for name, values in rows.items()}


def test_a_loss_that_is_not_finite_names_term_step_and_key(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    first, second = (list(zip(*map(Tensor.tolist, world.stream().keys(epoch)), strict=True)) for epoch in (0, 1))
    view, index = next(key for key in second[20:30] if key not in first)  # in the third batch of the second epoch
    bad = OneBadRow(world.signals, view, index)
    named = rf"loss term kd is not finite at epoch 2, step 3, keys \(view, index\) \({view}, {index}\);"
    with pytest.raises(NonFiniteLoss, match=named):
        run_train(world, processes, tmp_path / "run", objective="kd", signals=bad)

    # Epoch 1 is kept, and with the fault gone the run goes on as if nothing had been.
    assert len(read_metrics(tmp_path / "run")) == 1
    resumed = run_train(world, processes, tmp_path / "run", objective="kd")
    whole = run_train(world, processes, tmp_path / "whole", objective="kd")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("look_every", [2, 3, 64])
@pytest.mark.parametrize("objective", ["kd", "dhkd"])
def test_a_late_look_finds_the_same(objective: str, look_every: int, processes: Processes, tmp_path: Path) -> None:
    """However many steps later the host looks, the error names the step and key, and nothing was updated since."""
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
    assert all(map(torch.equal, *ended)), "the second step's update was left out, and all that followed"


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


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("stopped", [False, True])
def test_each_of_several_students_ends_as_it_does_alone(stopped: bool, processes: Processes, tmp_path: Path) -> None:
    """Of one stream and of another, with and without dropout; also where a part of them stopped an epoch earlier."""
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
        assert outcome["last_top1"] == figure["last_top1"]
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
    assert isinstance(good, dict)
    assert good["epochs"] == 3
    assert [line["epoch"] for line in read_metrics(tmp_path / "good")] == [1, 2, 3]
    assert not (tmp_path / "bad" / "metrics.jsonl").exists()


@pytest.mark.parametrize("every", [2, 4])
def test_a_coefficient_that_is_used_again(every: int, processes: Processes, tmp_path: Path) -> None:
    """Steps between two that compute one sum the terms with the last one's; resumed it is the same run."""
    world = World(tmp_path, processes)
    # Cross-entropy against labels that say the opposite of the teacher.
    said = {"objective": "dhkd", "alignment": Alignment(("ce",), None, every), "lr": 0.2}
    task = task_of(world, tmp_path / "run", **said)
    train(task, processes)
    (first, *_) = read_metrics(tmp_path / "run")
    assert 0 < first["conflicting_steps"] <= 4 // every

    for epochs in (1, 3):
        cut = run_train(world, processes, tmp_path / "cut", epochs=epochs, **said)
    assert all(map(torch.equal, task.student.state_dict().values(), cut.state_dict().values()))

    # By hand, over the first epoch: what `backward` is told in each step.
    student, optimizer = (by_hand := task_of(world, tmp_path / "hand", **said)).student, by_hand.optimizer
    student.train()
    coefficient = None
    for step, batch in enumerate(by_hand.stream.epoch(0)):
        optimizer.param_groups[0]["lr"] = by_hand.learning_rate.at(0, step, 4)
        student.seed_dropout(dropout_seed(by_hand.seed, step, 0))
        terms = by_hand.objective.terms(student(batch.images_BCHW, batch), batch.labels_B, batch.teacher)
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
    one = run_train(world, processes, tmp_path / "one", epochs=1, **said)
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
    """The best accuracy is the best epoch's, the last the last's."""
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
    assert (figures["last_top1"], figures["best_top1"]) == (40, 50)
    assert (figures["last_top5"], figures["best_top5"]) == (95, 95)
    assert figures["samples_per_second"] > 0
    assert json.dumps(figures)
