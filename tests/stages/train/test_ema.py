"""The average of the weights: its formula, its place in the loop, and that it resumes to the bit."""

from pathlib import Path

import pytest
import torch
from dhkd.data.errors import RunMismatch
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.processes import Processes
from dhkd.stages.train.ema import Ema
from dhkd.stages.train.loop import Task, train, train_together
from torch import Tensor

from tests.runs import read_metrics
from tests.stages.train.worlds import World, new_student, sum_of_logits, task_of

STEPS = 12


def trained_with(*averages: Ema) -> tuple[Network, list[dict[str, Tensor]]]:
    """Train a network for a dozen steps, and return it with a copy of its weights after each step."""
    torch.manual_seed(3)
    network = build_network("resnet8", 5).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    states = []
    for ema in averages:
        ema.begin(network)
    for _ in range(STEPS):
        network(torch.randn(6, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        for ema in averages:
            ema.step(network)
        states.append(copied(network))
    return network, states


def copied(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def of(ema: Ema, network: Network) -> dict[str, Tensor]:
    with ema.in_place_of_weights(network):
        return copied(network)


def transcribed(states: list[dict[str, Tensor]], decay: float, warmup: bool, every: int) -> dict[str, Tensor]:
    """The average by the text alone, in float64: update k keeps d of it, the first one nothing."""
    average = {name: value.double() for name, value in states[0].items()}
    for k, step in enumerate(range(every, len(states), every), 2):
        kept = min(decay, 1.0 - 1.0 / k ** (2.0 / 3.0)) if warmup else decay
        for name, value in states[step].items():
            counter = not value.is_floating_point()
            average[name] = value.double() if counter else kept * average[name] + (1 - kept) * value.double()
    return average


@pytest.mark.parametrize(
    ("decay", "warmup", "every"), [(0.9, False, 1), (0.0, False, 1), (0.99, True, 1), (0.7, True, 5)]
)
def test_the_average_is_that_of_a_transcription(decay: float, warmup: bool, every: int) -> None:
    ema = Ema(decay, warmup=warmup, every=every)
    network, states = trained_with(ema)
    expected = transcribed(states, decay, warmup, every)
    for name, value in of(ema, network).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert all(torch.equal(value, states[-1][name]) for name, value in network.state_dict().items()), "given back"


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_timm_to_the_bit(warmup: bool) -> None:
    timm = pytest.importorskip("timm.utils.model_ema", reason="needs timm")

    class Timms(Ema):
        """timm's average, which is told what ours is told."""

        updates = 0

        def begin(self, network: torch.nn.Module) -> None:
            self.timms = timm.ModelEmaV3(network, decay=0.9, use_warmup=warmup)

        def step(self, network: torch.nn.Module) -> None:
            self.updates += 1
            self.timms.update(network, step=self.updates)

    ours, theirs = Ema(0.9, warmup=warmup), Timms(0.9)
    network, _ = trained_with(ours, theirs)
    for name, value in theirs.timms.module.state_dict().items():
        assert torch.equal(value, of(ours, network)[name]), name


def test_an_error_in_the_test_gives_the_weights_back() -> None:
    ema = Ema(0.9)
    network, states = trained_with(ema)
    with pytest.raises(ZeroDivisionError), ema.in_place_of_weights(network):
        raise ZeroDivisionError
    assert all(torch.equal(value, states[-1][name]) for name, value in network.state_dict().items())


def sha256_of(task: Task) -> tuple[str, str]:
    """The hash of the whole student, and of the average of its backbone."""
    assert task.ema is not None
    with task.ema.in_place_of_weights(task.student.backbone):
        average = weights_sha256(task.student.backbone)
    return weights_sha256(task.student), average


def run(world: World, processes: Processes, out: Path, epochs: int = 4) -> Task:
    task = task_of(world, out, epochs=epochs, schedule_epochs=4, ema=Ema(0.8, warmup=True, every=3))
    train(task, processes)
    return task


def test_a_run_tests_its_average_and_goes_on_as_if_there_were_none(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    with_average = run(world, processes, tmp_path / "with", epochs=2)
    without = task_of(world, tmp_path / "without", epochs=2, schedule_epochs=4)
    assert train(without, processes).last_ema_top1 is None
    assert weights_sha256(with_average.student) == weights_sha256(without.student)
    first, second = read_metrics(tmp_path / "with")
    assert with_average.ema is not None
    with with_average.ema.in_place_of_weights(with_average.student.backbone):
        assert second["ema_top1"] == sum_of_logits(with_average.student.backbone).top1
    assert len({first["ema_top1"], second["ema_top1"], first["top1"], second["top1"]}) == 4
    figures = train(with_average, processes)  # finished already: the figures come from the metrics
    assert (figures.last_ema_top1, figures.best_ema_top1) == (
        second["ema_top1"],
        max(first["ema_top1"], second["ema_top1"]),
    )


def test_a_resumed_average_is_the_same_to_the_bit(processes: Processes, tmp_path: Path) -> None:
    """An epoch has four steps and every third one updates, so the place between updates is resumed as well."""
    world = World(tmp_path, processes)
    whole = run(world, processes, tmp_path / "whole")
    for epochs in (2, 3, 4):
        torch.manual_seed(epochs)  # the state of the generators doesn't matter
        cut = run(world, processes, tmp_path / "cut", epochs)
    assert sha256_of(cut) == sha256_of(whole)
    assert len(set(sha256_of(whole))) == 2
    averages = [[line["ema_top1"] for line in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert averages[0] == averages[1]


def test_averages_side_by_side_are_those_of_runs_alone(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    alone = [run(world, processes, tmp_path / f"alone{seed}", 2) for seed in range(2)]
    stream = world.stream()
    tasks = [
        task_of(world, tmp_path / name, epochs=2, schedule_epochs=4, stream=stream, ema=Ema(0.8, warmup=True, every=3))
        for name in ("a", "b")
    ]
    train_together(tasks, processes)
    assert [sha256_of(task) for task in tasks] == [sha256_of(task) for task in alone]


def test_a_checkpoint_without_the_average_or_of_another_network(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    train(task_of(world, tmp_path / "without", epochs=1), processes)
    for broken in ({}, {"steps": 4, "average": {}}, {"steps": "4", "average": None}):
        path = tmp_path / "without" / "checkpoint" / "state.pt"
        torch.save(torch.load(path, weights_only=True) | {"ema": broken}, path)
        task = task_of(world, tmp_path / "without", student=new_student("dhkd"), epochs=2, ema=Ema(0.8))
        with pytest.raises(RunMismatch, match="is of another program or version"):
            train(task, processes)
