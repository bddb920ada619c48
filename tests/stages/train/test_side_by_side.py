"""Several students side by side: each job runs, an error stays with its student, and the threads are given back."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from dhkd.data.errors import DataError
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.processes import Processes
from dhkd.stages.train.loop import Figures, train_together
from dhkd.stages.train.side_by_side import SideBySide, batches_by_stream

from tests.runs import read_metrics
from tests.stages.train.worlds import BATCH, World, task_of

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("students", [1, 2, 3])
def test_every_job_runs_and_errors_come_back_by_student(students: int, threads: int) -> None:
    finished: list[str] = []
    error = DataError("image 7 can't be read")
    jobs: dict[str, Callable[[], None]] = {f"student {i}": partial(finished.append, f"{i}") for i in range(students)}
    jobs["broken"] = partial(failing, error)
    jobs["last"] = partial(finished.append, "last")
    with SideBySide(students, CPU) as side_by_side:
        assert side_by_side.run(jobs) == {"broken": error}
    assert sorted(finished) == [*map(str, range(students)), "last"]
    assert torch.get_num_threads() == threads


def test_the_cores_are_shared_out(threads: int) -> None:
    with SideBySide(2, CPU) as side_by_side:
        used: list[int] = []
        side_by_side.run({i: lambda: used.append(torch.get_num_threads()) for i in range(2)})
    assert used == 2 * [max(1, threads // 2)]


@pytest.mark.parametrize("students", [1, 2])
def test_a_fault_of_the_program_is_raised(students: int, threads: int) -> None:
    with SideBySide(students, CPU) as side_by_side, pytest.raises(ZeroDivisionError):
        side_by_side.run({"good": lambda: None, "bad": partial(failing, ZeroDivisionError())})
    assert torch.get_num_threads() == threads


def test_students_of_one_stream_share_its_batches_and_the_longer_stream_goes_on(
    processes: Processes, tmp_path: Path
) -> None:
    world = World(tmp_path, processes)
    short, long = world.stream(), world.stream(batch_size=BATCH // 2)
    steps = list(batches_by_stream([short, long, short], 0))
    assert [list(batches) for batches in steps] == 4 * [[short, long]] + 4 * [[long]]
    rows = [len(batches[long].index_B) for batches in steps]
    assert sum(rows) == long.samples_per_epoch


def test_an_error_in_the_evaluation_ends_that_student_alone(processes: Processes, tmp_path: Path) -> None:
    world = World(tmp_path, processes)
    stream = world.stream()
    error = DataError("the test set can't be read")

    def evaluate(network: torch.nn.Module) -> Accuracy:
        raise error

    broken = task_of(world, tmp_path / "broken", objective="kd", stream=stream, evaluate=evaluate)
    whole = task_of(world, tmp_path / "whole", objective="kd", stream=stream)
    outcomes = train_together([broken, whole], processes)
    assert outcomes[0] is error
    assert isinstance(outcomes[1], Figures)
    assert len(read_metrics(tmp_path / "whole")) == 3
    assert not (tmp_path / "broken" / "metrics.jsonl").exists()
