"""Optimizers by name: their updates are those of the papers, runs resume, and wrong settings end in one line."""

import hashlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.data import own_code
from dhkd.data.errors import ConfigError, NonFiniteLoss, OwnCodeError
from dhkd.data.own_code import offer
from dhkd.stages.models import build_network
from dhkd.stages.models.student import Student
from dhkd.stages.processes import Processes
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.loop import Task, train, train_together
from dhkd.stages.train.muon import MatricesAndOthers
from dhkd.stages.train.optimizers import OF_TIMM, TORCH, Rates, build_optimizer, own_optimizers, skips_on_device
from dhkd.stages.train.parameter_groups import SCALE, Decay
from torch import Tensor, nn

from tests.stages.train.worlds import OneBadRow, World, task_of

needs_timm = pytest.mark.skipif("not __import__('importlib').util.find_spec('timm')", reason="timm is not installed")
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")

STEPS = 12
RATE, WEIGHT_DECAY = 0.01, 0.1
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_code, "_known", own_code._Known())


class Layers(nn.Module):
    """Two linear layers, so that there are matrices, and a norm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 12), nn.LayerNorm(12), nn.ReLU())
        self.middle = nn.Linear(12, 12)
        self.last = nn.Linear(12, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.middle(self.first(images)).relu()
        logits: Tensor = self.last(features)
        return logits


def student_of_layers() -> Student:
    offer("layers", Layers)
    torch.manual_seed(3)
    return Student(build_network("layers", 5), None)


# Updates by hand


def gradients(step: int, shapes: Sequence[torch.Size]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) * (step + 1) / 5 for shape in shapes]


def rate_at(step: int) -> float:
    return RATE * (1 - step / STEPS)


Update = Callable[[int, float, float, list[Tensor], list[Tensor]], None]  # step, rate, decay, weights, gradients


def adamw(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Update:
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2."""
    first: dict[int, Tensor] = {}
    second: dict[int, Tensor] = {}

    def update(step: int, rate: float, decay: float, weights: list[Tensor], grads: list[Tensor]) -> None:
        for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            first[i] = beta1 * first.get(i, torch.zeros_like(grad)) + (1 - beta1) * grad
            second[i] = beta2 * second.get(i, torch.zeros_like(grad)) + (1 - beta2) * grad**2
            m, v = first[i] / (1 - beta1 ** (step + 1)), second[i] / (1 - beta2 ** (step + 1))
            weight.sub_(rate * (m / (v.sqrt() + eps) + (decay if weight.ndim > 1 else 0) * weight))

    return update


def lion(beta1: float = 0.9, beta2: float = 0.99) -> Update:
    """Chen et al., arXiv 2302.06675, algorithm 2."""
    momentum: dict[int, Tensor] = {}

    def update(step: int, rate: float, decay: float, weights: list[Tensor], grads: list[Tensor]) -> None:
        for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            m = momentum.get(i, torch.zeros_like(grad))
            c = beta1 * m + (1 - beta1) * grad
            weight.sub_(rate * (c.sign() + (decay if weight.ndim > 1 else 0) * weight))
            momentum[i] = beta2 * m + (1 - beta2) * grad

    return update


def lamb(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-6, largest: float = 1.0) -> Update:
    """You et al., arXiv 1904.00962, algorithm 2, with gradients clipped to the norm 1 and no ratio without decay."""
    first: dict[int, Tensor] = {}
    second: dict[int, Tensor] = {}

    def update(step: int, rate: float, decay: float, weights: list[Tensor], grads: list[Tensor]) -> None:
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        for i, (weight, raw) in enumerate(zip(weights, grads, strict=True)):
            grad = raw / max(float(norm) / largest, 1.0)
            first[i] = beta1 * first.get(i, torch.zeros_like(grad)) + (1 - beta1) * grad
            second[i] = beta2 * second.get(i, torch.zeros_like(grad)) + (1 - beta2) * grad**2
            m, v = first[i] / (1 - beta1 ** (step + 1)), second[i] / (1 - beta2 ** (step + 1))
            change = m / (v.sqrt() + eps)
            if weight.ndim > 1:
                change = change + decay * weight
                change = change * weight.norm() / change.norm()
            weight.sub_(rate * change)

    return update


@pytest.mark.parametrize(
    ("name", "options", "by_hand"),
    [
        ("adamw", {}, adamw()),
        ("adamw", {"betas": [0.8, 0.95], "eps": 1e-4}, adamw(0.8, 0.95, 1e-4)),
        pytest.param("timm:adamw", {}, adamw(), marks=needs_timm),
        pytest.param("lion", {}, lion(), marks=needs_timm),
        pytest.param("timm:lion", {"betas": [0.95, 0.98]}, lion(0.95, 0.98), marks=needs_timm),
        pytest.param("lamb", {}, lamb(), marks=needs_timm),
        pytest.param("timm:lamb", {"max_grad_norm": 3.0}, lamb(largest=3.0), marks=needs_timm),
    ],
)
def test_updates_are_those_of_the_papers(name: str, options: Mapping[str, object], by_hand: Update) -> None:
    """A dozen steps in float64, with a falling rate, and without decay of biases and norms."""
    network = student_of_layers().double()
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    start = [weight.clone() for weight in weights]
    optimizer = build_optimizer(name, options, network, RATE, Decay(WEIGHT_DECAY, spares=True))
    rates = Rates(optimizer, CPU)
    for step in range(STEPS):
        grads = gradients(step, [weight.shape for weight in weights])
        for parameter, grad in zip(network.parameters(), grads, strict=True):
            parameter.grad = grad.clone()
        rates.set(rate_at(step))
        optimizer.step()
        by_hand(step, rate_at(step), WEIGHT_DECAY, weights, grads)
    for parameter, weight, before in zip(network.parameters(), weights, start, strict=True):
        assert (weight - before).norm() > 0.01
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-9, atol=1e-10)


@needs_muon
def test_muon_updates_hidden_matrices_and_adamw_the_rest() -> None:
    network, other = student_of_layers(), student_of_layers()
    options = {"momentum": 0.9, "adjust_lr_fn": "match_rms_adamw", "adamw": {"betas": [0.8, 0.9]}}
    optimizer = build_optimizer("muon", options, network, RATE, Decay(WEIGHT_DECAY))
    of_layers = other.backbone.inner
    hidden = [of_layers.first[1].weight, of_layers.middle.weight]
    rest = [parameter for parameter in other.parameters() if all(parameter is not one for one in hidden)]
    both = [
        torch.optim.Muon(hidden, lr=RATE, weight_decay=WEIGHT_DECAY, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=RATE, weight_decay=WEIGHT_DECAY, betas=(0.8, 0.9)),
    ]
    for step in range(STEPS):
        grads = gradients(step, [parameter.shape for parameter in network.parameters()])
        for one in (network, other):
            for parameter, grad in zip(one.parameters(), grads, strict=True):
                parameter.grad = grad.float()
        Rates(optimizer, CPU).set(rate_at(step))
        optimizer.step()
        for one in both:
            one.param_groups[0]["lr"] = rate_at(step)
            one.step()
    assert all(map(torch.equal, network.parameters(), other.parameters()))


# Runs


class Halving(torch.optim.Optimizer):
    """An optimizer as a user writes it: it follows the mean of the last two gradients."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, share: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "share": share})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                last = self.state[parameter].get("last", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * (group["share"] * parameter.grad + (1 - group["share"]) * last))
                self.state[parameter]["last"] = parameter.grad.clone()


def task_with(world: World, out: Path, name: str, options: Mapping[str, object], **changes: Any) -> Task:
    """Return a task of four epochs with groups, parts and a schedule that has every part."""
    offer("my.py:Halving", Halving)
    student = student_of_layers()
    schedule = LearningRate(
        0.02, "polynomial", 4, warmup_epochs=0.5, warmup_start=1e-4, min_rate=1e-3, cooldown_epochs=1, power=2.0
    )
    optimizer = build_optimizer(name, options, student, 0.02, Decay(0.05, spares=True, layer=0.7))
    task = task_of(world, out, student=student, objective="kd", clip_norm=1.0)
    return replace(task, optimizer=optimizer, learning_rate=schedule, **{"epochs": 4, "accumulate": 2} | changes)


def sha256(task: Task) -> str:
    stream = io.BytesIO()
    torch.save([tensor.clone() for tensor in task.student.state_dict().values()], stream)
    return hashlib.sha256(stream.getvalue()).hexdigest()


KINDS = [
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("adamw", {"betas": [0.9, 0.95]}),
    ("rmsprop", {"momentum": 0.8, "centered": True}),
    pytest.param("lamb", {}, marks=needs_timm),
    pytest.param("lion", {}, marks=needs_timm),
    pytest.param("muon", {"adamw": {"eps": 1e-6}}, marks=needs_muon),
    ("my.py:Halving", {"share": 0.25}),
]


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_a_run_resumed_after_any_epoch_is_the_same(
    name: str, options: dict[str, object], processes: Processes, tmp_path: Path
) -> None:
    """Of each interrupted run, nothing is left but its folder."""
    world = World(tmp_path, processes, objective="kd")
    train(whole := task_with(world, tmp_path / "whole", name, options), processes)
    for done in (1, 2, 3):
        out = tmp_path / f"cut{done}"
        torch.manual_seed(done)
        train(task_with(world, out, name, options, epochs=done), processes)
        train(resumed := task_with(world, out, name, options), processes)
        assert sha256(resumed) == sha256(whole), f"after {done} epochs"
    train(one := task_with(world, tmp_path / "one", name, options, epochs=1), processes)
    assert sha256(one) != sha256(whole)


def test_students_with_several_optimizers_train_side_by_side(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes, objective="kd")
    stream = world.stream()
    kinds: list[Any] = [kind for kind in KINDS if len(kind) == 2]
    together = [
        task_with(world, tmp_path / str(i), name, options, epochs=2, stream=stream)
        for i, (name, options) in enumerate(kinds)
    ]
    train_together(together, processes)
    for i, (name, options) in enumerate(kinds):
        train(alone := task_with(world, tmp_path / f"alone{i}", name, options, epochs=2), processes)
        assert sha256(alone) == sha256(together[i]), name
    assert len({sha256(task) for task in together}) == len(kinds)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_optimizer_skips_what_is_not_finite(name: str, processes: Processes, tmp_path: Path) -> None:
    """The host looks in the last step only; nothing has changed since the step in which the loss was not finite."""
    world = World(tmp_path, processes, objective="kd")
    view_N, index_N = world.stream().keys(0)
    signals: Any = OneBadRow(world.signals, int(view_N[11]), int(index_N[11]))  # in the second of four steps

    def task(out: str, look_every: int) -> Task:
        made = task_of(world, tmp_path / out, student=student_of_layers(), objective="kd", signals=signals)
        optimizer = build_optimizer(name, {}, made.student, 0.05, Decay(0.05), fused=True)
        assert skips_on_device(optimizer)
        return replace(made, optimizer=optimizer, look_every=look_every)

    with pytest.raises(NonFiniteLoss, match="step 2,"):
        train(late := task("late", 64), processes)
    with pytest.raises(NonFiniteLoss, match="step 2,"):
        train(at_once := task("at once", 1), processes)
    assert all(map(torch.equal, late.student.state_dict().values(), at_once.student.state_dict().values()))


def test_only_kernels_that_skip_updates_are_trusted_to() -> None:
    class Mine(torch.optim.SGD):
        pass

    parameters = [nn.Parameter(torch.zeros(2))]
    assert skips_on_device(torch.optim.SGD(parameters, lr=0.1, fused=True))
    assert not skips_on_device(torch.optim.SGD(parameters, lr=0.1))
    assert not skips_on_device(Mine(parameters, lr=0.1, fused=True))
    assert not skips_on_device(torch.optim.Adagrad(parameters, lr=0.1, fused=True))


# Each optimizer alone: a dozen steps, saved and loaded after half of them


def resumes(name: str) -> bool:
    def made() -> tuple[Student, torch.optim.Optimizer]:
        student = student_of_layers()
        decay = 0.0 if name == "rprop" else 0.01
        return student, build_optimizer(name, {}, student, 1e-3, Decay(decay, spares=bool(decay), layer=0.9))

    def run(student: Student, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            grads = gradients(step, [parameter.shape for parameter in student.parameters()])
            for parameter, grad in zip(student.parameters(), grads, strict=True):
                parameter.grad = grad.float()
            Rates(optimizer, CPU).set(rate_at(step))
            optimizer.step()

    student, optimizer = made()
    before = [parameter.detach().clone() for parameter in student.parameters()]
    run(student, optimizer, range(STEPS))
    assert not all(map(torch.equal, before, student.parameters()))
    cut, its_optimizer = made()
    run(cut, its_optimizer, range(STEPS // 2))
    torch.save({"student": cut.state_dict(), "optimizer": its_optimizer.state_dict()}, stream := io.BytesIO())
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    again, its_optimizer = made()
    again.load_state_dict(state["student"])
    its_optimizer.load_state_dict(state["optimizer"])
    run(again, its_optimizer, range(STEPS // 2, STEPS))
    return all(map(torch.equal, student.parameters(), again.parameters()))


@pytest.mark.parametrize("name", [*sorted(TORCH), pytest.param("muon", marks=needs_muon)])
def test_every_optimizer_of_torch_resumes(name: str) -> None:
    assert resumes(name)


@needs_timm
@pytest.mark.soak  # in CI: lamb and lion
def test_every_optimizer_of_timm_resumes_or_is_refused() -> None:
    from timm.optim import list_optimizers

    refused: list[str] = []
    lines: list[str] = []
    for name in list_optimizers():
        try:
            assert resumes(f"timm:{name}"), name
        except ConfigError as error:
            refused.append(name)
            lines += str(error).splitlines()
    assert len(lines) == len(refused)
    assert {"adahessian", "kron", "kronc", "kronw"} <= set(refused)
    assert all(name.startswith(("bnb", "fused", "kron", "adahessian")) for name in refused)  # bnb and fused need a GPU


# Wrong settings


def broken(params: Any, lr: float) -> torch.optim.Optimizer:
    raise ValueError("no such luck")


def without_biases(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([one for group in params for one in group["params"] if one.ndim > 1], lr=lr)


class WithModes(Halving):
    def train(self) -> None: ...


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamm", {}, r"unknown optimizer 'adamm': did you mean 'adam'\?"),
        ("lbfgs", {}, "unknown optimizer 'lbfgs'"),
        ("adamw", {"beta": 0.9}, "optimizer adamw: unknown option 'beta': did you mean 'betas'"),
        ("adamw", {"momentum": 0.9}, "optimizer adamw: unknown option 'momentum'"),
        (
            "adamw",
            {"betas": [1.5, 0.9]},
            "optimizer adamw: it can't be built: ValueError: Invalid beta",
        ),
        ("adamw", {"amsgrad": "yes"}, "optimizer adamw: amsgrad: expected a valid boolean, got 'yes'"),
        ("adamw", {"lr": 0.1}, "optimizer adamw: lr: .* it is a setting of its own"),
        ("adamw", {"fused": True}, "optimizer adamw: fused: .* it is chosen to suit the device"),
        ("rprop", {}, "optimizer rprop has no weight decay: weight_decay: expected 0, got 0.1"),
        pytest.param("timm:lamp", {}, r"optimizer timm:lamp: unknown .*did you mean", marks=needs_timm),
        pytest.param("lamb", {"beta": 1}, "optimizer lamb: unknown option 'beta'", marks=needs_timm),
        pytest.param("lion", {"betas": [2, 1]}, "optimizer lion: .* Invalid beta", marks=needs_timm),
        pytest.param("timm:adahessian", {}, "optimizer timm:adahessian: .* second order", marks=needs_timm),
        pytest.param("timm:kron", {}, "optimizer timm:kron: .* draws numbers", marks=needs_timm),
        pytest.param("muon", {"adamw": 3}, "optimizer muon: adamw: expected a mapping", marks=needs_muon),
        pytest.param("muon", {"adamw": {"x": 3}}, "optimizer muon: adamw: unknown option 'x'", marks=needs_muon),
        pytest.param("muon", {"nesterow": 3}, "optimizer muon: unknown option 'nesterow'", marks=needs_muon),
        ("my.py:Missing", {}, "optimizer my.py:Missing names code in my.py, which is run only if"),
        ("my.py:Halving", {"shares": 1}, "optimizer my.py:Halving: unknown option 'shares'"),
        ("my.py:broken", {}, "optimizer my.py:broken has no weight decay"),
        ("my.py:list", {}, "optimizer my.py:list: expected that it makes a torch.optim.Optimizer, got a list"),
        ("my.py:modes", {}, "optimizer my.py:modes: .* modes"),
    ],
)
def test_a_wrong_optimizer_ends_in_one_line(name: str, options: dict[str, object], message: str) -> None:
    student = student_of_layers()
    offer("my.py:Halving", Halving)
    offer("my.py:modes", WithModes)
    offer("my.py:broken", broken)
    offer("my.py:list", lambda params, lr, weight_decay: [params])
    with pytest.raises(ConfigError, match=message) as error:
        build_optimizer(name, options, student, RATE, Decay(0.1))
    assert "\n" not in str(error.value)


def test_faults_of_own_code_are_told() -> None:
    student = student_of_layers()
    offer("my.py:broken", broken)
    offer("my.py:some", without_biases)
    with pytest.raises(
        OwnCodeError, match=r"optimizer my.py:broken: ValueError: no such luck .*test_optimizers.py, line"
    ):
        build_optimizer("my.py:broken", {}, student, RATE, Decay(0.0))
    with pytest.raises(ConfigError, match=r"optimizer my.py:some: .* trains all the parameters .* some left out"):
        build_optimizer("my.py:some", {}, student, RATE, Decay(0.0))


@needs_muon
def test_muon_needs_matrices() -> None:
    student = Student(build_network("resnet8", 5), None)
    with pytest.raises(ConfigError, match=r"optimizer muon: expected a network with hidden linear layers.*timm:muon"):
        build_optimizer("muon", {}, student, RATE, Decay(0.1))
    optimizer = build_optimizer("muon", {}, student_of_layers(), RATE, Decay(0.1, spares=True, layer=0.5))
    assert isinstance(optimizer, MatricesAndOthers)
    assert {group[SCALE] for group in optimizer.param_groups} == {1.0, 0.5, 0.25}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1, 0.0}


@pytest.mark.parametrize("name", ["lamb", "timm:lamb"])
def test_without_timm_its_names_end_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=rf"^optimizer {name}: expected timm to be installed, found none; pip"):
        build_optimizer(name, {}, student_of_layers(), RATE, Decay(0.1))


def test_code_of_a_user_is_told_from_names() -> None:
    assert [own_optimizers(name) for name in (*TORCH, "muon", *OF_TIMM, "timm:adan")] == [[]] * (len(TORCH) + 4)
    assert own_optimizers("my.py:Mine") == ["my.py:Mine"]
