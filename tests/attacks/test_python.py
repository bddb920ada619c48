"""What people do to the Python interface: wrong and changed objects, interrupted and repeated calls, a busy process."""

import functools
import inspect
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dhkd
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from dhkd.data import own_code
from dhkd.data.errors import CacheIncomplete, CacheMismatch, ConfigError, OwnCodeError, RunExists, RunMismatch
from torch import Tensor, nn

from tests.own import SHIFTS, TRAINED, Net, cosine, digits, small, trained
from tests.samples import files_of

CPU: dict[str, Any] = {"cpu": True}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def cache(teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("python") / "c.zarr"
    cached(teacher, out)
    return out


def cached(model: Any, out: Path, data: Any = digits, **options: Any) -> dhkd.CachedTeacher:
    return dhkd.cache_teacher(model, data, SHIFTS, out, **{"views": 2, "block_mb": 0.002, **CPU, **options})


def taught(model: Any, cache: Path, objective: Any, out: Path, **options: Any) -> dhkd.TrainedRun:
    return dhkd.train_student(model, cache, objective, out, **{**TRAINED, **CPU, **options})


# what is not to change


@pytest.mark.parametrize("training", [True, False])
def test_a_network_stays_as_it_was(training: bool, teacher: nn.Module, tmp_path: Path) -> None:
    """Its mode, gradients, frozen parameters, hooks and weights; also after it was a student."""
    network = trained(functools.partial(Net, width=3))
    network.train(training)
    network.get_parameter("body.0.weight").requires_grad_(False)
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    before = {name: (value.clone(), value.grad) for name, value in network.named_parameters()}
    cached(network, tmp_path / "c.zarr")
    taught(network, tmp_path / "c.zarr", "kd", tmp_path / "s", epochs=1)
    assert network.training is training
    assert not network.get_parameter("body.0.weight").requires_grad
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.grad is before[name][1]


def test_a_network_on_a_gpu_stays_there(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    network = trained().cuda()
    cached(network, tmp_path / "c.zarr")
    assert next(network.parameters()).device.type == "cuda"


@pytest.fixture
def busy_process() -> Iterator[Callable[[], dict[str, object]]]:
    """A process with settings of its own; the function returns what a call is to leave as it is."""
    tf32, variable = torch.backends.cuda.matmul.allow_tf32, os.environ.get("RANK")
    torch.backends.cuda.matmul.allow_tf32 = True
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)

    def state() -> dict[str, object]:
        logger, root = logging.getLogger("dhkd"), logging.getLogger()
        return {
            "torch": torch.random.get_rng_state().tolist(),
            "random": random.getstate(),
            "numpy": np.random.get_state()[1].tolist(),
            "dtype": torch.get_default_dtype(),
            "device": torch.get_default_device(),
            "threads": torch.get_num_threads(),
            "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
            "grad": torch.is_grad_enabled(),
            "handlers": (list(logger.handlers), logger.level, list(root.handlers), root.level),
            "variables": dict(os.environ),
            "started": {thread.name for thread in threading.enumerate()},
            "accelerate": [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)],
        }

    yield state
    torch.set_default_dtype(torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name)
    if variable is not None:
        os.environ["RANK"] = variable


def test_a_process_stays_as_it_was(
    busy_process: Callable[[], dict[str, object]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = busy_process()
    with torch.no_grad():
        dhkd.train_teacher(Net, digits, SHIFTS, tmp_path / "t", epochs=1, lr=0.1, **CPU)
    network = dhkd.load_network(tmp_path / "t")
    cached(network, tmp_path / "c.zarr", settings={"teacher.allow_chance": True})
    with torch.inference_mode():
        taught(small, tmp_path / "c.zarr", cosine, tmp_path / "s", epochs=1)
    dhkd.sweep(small, tmp_path / "c.zarr", "kd", tmp_path / "all", seeds=2, together=2, epochs=1, lr=0.1, **CPU)
    dhkd.evaluate(tmp_path / "s", **CPU)
    after = busy_process()
    assert [name for name, value in before.items() if after[name] != value] == []
    assert capfd.readouterr().out == "", "nothing is printed"


def test_a_failed_call_leaves_a_process_as_it_was(
    busy_process: Callable[[], dict[str, object]], cache: Path, tmp_path: Path
) -> None:
    before = busy_process()
    with pytest.raises(OwnCodeError):
        taught(small, cache, lambda student_logits, teacher_logits, labels: 1 / 0, tmp_path / "s")
    after = busy_process()
    assert [name for name, value in before.items() if after[name] != value] == []


def test_an_accelerator_of_the_users_own_goes_on(cache: Path, tmp_path: Path) -> None:
    mine = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        taught(small, cache, "kd", tmp_path / "s", epochs=1)
        network, optimizer = mine.prepare(small(10), torch.optim.SGD(small(10).parameters(), 0.1))
        mine.backward(network(torch.zeros(2, 3, 8, 8)).sum())
        optimizer.step()
        assert mine.mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


# the same call twice, and calls that differ


def test_the_same_call_twice_is_done(teacher: nn.Module, tmp_path: Path) -> None:
    first = cached(teacher, tmp_path / "c.zarr")
    before = files_of(tmp_path / "c.zarr")
    second = cached(teacher, tmp_path / "c.zarr")
    assert (first.blocks_written > 0, second.blocks_written) == (True, 0)
    assert files_of(tmp_path / "c.zarr") == before
    runs = [taught(small, tmp_path / "c.zarr", "kd", tmp_path / "s") for _ in range(2)]
    assert runs[0] == runs[1]
    with pytest.raises(RunExists):
        taught(small, tmp_path / "c.zarr", "kd", tmp_path / "s", resume=False)


def test_a_teacher_that_was_trained_on_is_another_one(tmp_path: Path) -> None:
    network = trained(steps=20)
    cached(network, tmp_path / "c.zarr")
    with torch.no_grad():
        network.get_parameter("classifier.bias").add_(1.0)
    with pytest.raises(CacheMismatch, match=r"sha256 expected .*, got .*; write this one to another --out"):
        cached(network, tmp_path / "c.zarr")
    taught(small, tmp_path / "c.zarr", "kd", tmp_path / "s", epochs=1)
    with pytest.raises(CacheMismatch, match="sha256"):
        taught(small, tmp_path / "c.zarr", "kd", tmp_path / "s2", teacher=network)


@pytest.mark.parametrize(
    ("model", "objective"),
    [(functools.partial(Net, width=3), "kd"), (small, cosine), (lambda classes: Net(classes, 2), "kd")],
    ids=["network", "objective", "lambda"],
)
def test_another_object_with_the_same_out_is_refused(model: Any, objective: Any, cache: Path, tmp_path: Path) -> None:
    taught(small, cache, "kd", tmp_path / "s", epochs=1)
    before = files_of(tmp_path / "s")
    with pytest.raises(RunMismatch, match="resume it with its own settings or choose another --out"):
        taught(model, cache, objective, tmp_path / "s", epochs=1)
    assert files_of(tmp_path / "s") == before


def test_lambdas_are_told_apart_by_their_text(cache: Path, tmp_path: Path) -> None:
    names = set()
    for width, model in {2: lambda classes: Net(classes, 2), 3: lambda classes: Net(classes, 3)}.items():
        run = taught(model, cache, "kd", tmp_path / str(width), epochs=1)
        names.add(run.architecture)
        assert "<lambda>@" in run.architecture
    assert len(names) == 2


def of_width(width: int) -> type[nn.Module]:
    if width == 2:

        class Student(Net):
            def __init__(self, classes: int) -> None:
                super().__init__(classes, 2)

        return Student

    class Student(Net):  # type: ignore[no-redef]  # the same name on purpose
        def __init__(self, classes: int) -> None:
            super().__init__(classes, 3)

    return Student


def test_objects_of_one_name_are_not_confused(cache: Path, tmp_path: Path) -> None:
    """Two classes of one name, in one process: each run has its own, in whatever order they come back."""
    sizes = {
        width: taught(of_width(width), cache, "kd", tmp_path / str(width), epochs=1).parameters for width in (2, 3)
    }
    assert sizes[2] < sizes[3]
    with pytest.raises(RunMismatch):
        taught(of_width(3), cache, "kd", tmp_path / "2", epochs=1)
    assert taught(of_width(2), cache, "kd", tmp_path / "2", epochs=1).parameters == sizes[2]


def test_other_arrays_under_the_same_name_are_refused(teacher: nn.Module, tmp_path: Path) -> None:
    (pixels, labels), test = digits("train"), digits("test")
    cached(teacher, tmp_path / "c.zarr", data=(pixels, labels), test=test)
    brighter = (np.minimum(pixels + 1, 255).astype(np.uint8), labels)
    with pytest.raises(CacheMismatch, match="fingerprint expected"):
        taught(small, tmp_path / "c.zarr", "kd", tmp_path / "s", dataset=brighter, test=test)
    taught(small, tmp_path / "c.zarr", "kd", tmp_path / "s", dataset=(pixels, labels), test=test, epochs=1)
    samples = dhkd.DistillationSet.from_cache(tmp_path / "c.zarr", dataset=(pixels, labels), test=test)
    assert len(samples) == len(labels)


def test_objects_of_another_process_are_asked_for(
    teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(teacher, tmp_path / "c.zarr", data=digits("train"), test=digits("test"))
    monkeypatch.setattr(own_code._known, "offered", {})  # as in a process that begins
    with pytest.raises(ConfigError, match="unknown data source 'arrays-in-memory'"):
        dhkd.DistillationSet.from_cache(tmp_path / "c.zarr")
    again = dhkd.DistillationSet.from_cache(tmp_path / "c.zarr", dataset=digits("train"), test=digits("test"))
    assert len(again) == 200
    run = taught(
        *(small, tmp_path / "c.zarr", "kd", tmp_path / "s"), dataset=digits("train"), test=digits("test"), epochs=1
    )
    assert run.epochs == 1, "the teacher's object isn't needed"


CELL = """
from tests.own import Net

def student(num_classes):
    return Net(num_classes, width={width})
"""


def test_code_of_a_script_that_has_changed_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a script, only the object's own text counts; everything else in it changes with every experiment."""
    monkeypatch.setattr(inspect, "getsource", lambda thing: texts[thing])
    texts: dict[object, str] = {}

    def student(width: int) -> Any:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(CELL.format(width=width), names)
        texts[names["student"]] = CELL.format(width=width)
        return names["student"]

    taught(student(2), cache, "kd", tmp_path / "s", epochs=1)
    taught(student(2), cache, "kd", tmp_path / "s", epochs=1)
    with pytest.raises(RunMismatch, match="code of __main__:student has changed"):
        taught(student(3), cache, "kd", tmp_path / "s", epochs=1)
    taught(student(3), cache, "kd", tmp_path / "s", epochs=1, allow_changed_code=True)


# interruptions


class Interrupting(Net):
    """A network at whose forward pass number `at` Ctrl-C is pressed."""

    at, calls = 10**9, 0

    def forward(self, images: Tensor) -> Any:
        if images.device.type != "meta":
            type(self).calls += 1
            if type(self).calls == self.at:
                raise KeyboardInterrupt
        return super().forward(images)


def test_an_interrupted_cache_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained(Interrupting)
    cached(network, tmp_path / "whole.zarr", batch_size=16)
    monkeypatch.setattr(Interrupting, "calls", 0)
    monkeypatch.setattr(Interrupting, "at", 12)
    with pytest.raises(KeyboardInterrupt):
        cached(network, tmp_path / "c.zarr", batch_size=16)
    begun = {name for name in files_of(tmp_path / "c.zarr") if "signals" in name}
    monkeypatch.setattr(Interrupting, "at", 10**9)
    rest = cached(network, tmp_path / "c.zarr", batch_size=16)
    assert begun
    assert rest.complete
    assert files_of(tmp_path / "c.zarr") == files_of(tmp_path / "whole.zarr")


def interrupting(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    Interrupting.calls += 1
    if Interrupting.calls == Interrupting.at:
        raise KeyboardInterrupt
    return cosine(student_logits, teacher_logits, labels)


def test_an_interrupted_student_is_continued(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = taught(small, cache, interrupting, tmp_path / "whole", epochs=3)
    monkeypatch.setattr(Interrupting, "calls", 0)
    monkeypatch.setattr(Interrupting, "at", 10)  # in the second epoch of 7 steps
    with pytest.raises(KeyboardInterrupt):
        taught(small, cache, interrupting, tmp_path / "s", epochs=3)
    assert len((tmp_path / "s" / "metrics.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr(Interrupting, "at", 10**9)
    rest = taught(small, cache, interrupting, tmp_path / "s", epochs=3)
    assert (rest.sha256, rest.last_top1) == (whole.sha256, whole.last_top1)


# wrong objects


class Unlabelled(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return digits("train")[0][index]


class Locked(Net):
    """It can't be copied, because nobody can copy a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Headless(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a number as network": ({"model": 5}, "model: expected a torch.nn.Module"),
    "weights alone": ({"model": Net().state_dict()}, "model: expected a torch.nn.Module"),
    "a function without weights": ({"model": Net}, "weights: expected a run's folder"),
    "a network without values": ({"model": Net().to("meta")}, "teacher: expected a network that can be copied"),
    "a network with a lock": ({"model": Locked()}, "teacher: expected a network that can be copied, got a Locked"),
    "weights that aren't there": ({"model": "resnet56", "weights": "x.pth"}, "weights x.pth: expected a file"),
    "a number as recipe": ({"recipe": 5}, "recipe: expected a name, a mapping or a Recipe, got a int"),
    "a recipe without its parameters": ({"recipe": "crop-flip"}, "padding: expected a value, got none"),
    "an unknown recipe": ({"recipe": "crop-flop"}, "crop-flop"),
    "no place": ({"out": None}, "out: expected a path, got nothing"),
    "a mapping with other keys": ({"dataset": {"train": 1, "val": 2}}, "expected the keys train and test"),
    "a test split beside a function": ({"test": digits("test")}, "test: expected none beside a function"),
    "a test split beside a name": ({"dataset": "digits", "test": 1}, "test: expected none beside the data set digits"),
    "a test split alone": ({"dataset": None, "test": digits("test")}, "test: expected the training split"),
    "an unknown source": ({"dataset": "digitz"}, "digitz"),
    "a misspelled keyword": ({"view": 3}, "view"),
    "text for a number": ({"views": "many"}, "cache.views"),
    "an unknown setting": ({"settings": {"data.limits": 3}}, "did you mean 'limit'"),
    "no test split": ({"dataset": digits("train")}, "expected a test split, got none; pass test=…"),
    "images of another size than labels": ({"dataset": (digits("train")[0], digits("train")[1][:9])}, ""),
    "no data at all": ({"dataset": None}, "data: field required"),
    "a network of other classes": ({"model": Net(num_classes=7)}, "10"),
    "a network without classifier": ({"model": Headless()}, "Headless"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_one_line(case: str, teacher: nn.Module, tmp_path: Path) -> None:
    changed, expected = WRONG[case]
    arguments = {"model": teacher, "dataset": digits, "recipe": SHIFTS, "out": tmp_path / "c.zarr", "views": 1, **CPU}
    with pytest.raises(dhkd.DhkdError) as raised:
        dhkd.cache_teacher(**{**arguments, **changed})
    line = str(raised.value)
    assert expected in line
    assert "\n" not in line
    assert not line.startswith("--set")
    assert not (tmp_path / "c.zarr").exists(), "nothing is begun"


WRONG_STUDENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a number as objective": ({"objective": 5}, "objective: expected a function, an Objective or a text, got a int"),
    "an objective with other arguments": ({"objective": lambda x: x}, "student_logits, teacher_logits, labels"),
    "an objective that returns nothing": ({"objective": lambda s, t, y: None}, "expected that it returns a scalar"),
    "no epochs": ({"epochs": None}, "student.epochs"),
    "a misspelled keyword": ({"epoch": 3}, "did you mean 'epochs'"),
    "no cache there": ({"cache": "nowhere.zarr"}, "nowhere.zarr"),
    "no data without a cache": ({"cache": None}, "data: field required"),
    "a file as folder": ({"out": __file__}, "expected a folder, got a file"),
    "a network that isn't one": ({"model": lambda classes: classes}, "expected that it returns a torch.nn.Module"),
    "a network that fails": ({"model": lambda classes: 1 / 0}, "ZeroDivisionError"),
    "nothing as a network": ({"model": None}, "student.architecture"),
}


@pytest.mark.parametrize("case", WRONG_STUDENTS)
def test_a_wrong_argument_of_a_student_is_one_line(case: str, cache: Path, tmp_path: Path) -> None:
    changed, expected = WRONG_STUDENTS[case]
    arguments = {"model": small, "cache": cache, "objective": "kd", "out": tmp_path / "s", **TRAINED, **CPU}
    with pytest.raises(dhkd.DhkdError) as raised:
        dhkd.train_student(**{**arguments, **changed})
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"objective": []}, "grid: objective: expected a list of values"),
        ({"objective": "ce,kd"}, "grid: objective: expected a list of values"),
        ({"student.lr": [0.1, 0.1]}, "expected different values"),
        ({"student.lrr": [0.1]}, "did you mean 'lr'"),
        ({"model": [5]}, "model: expected a torch.nn.Module"),
    ],
)
def test_a_wrong_grid_is_one_line(grid: dict[str, Any], expected: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        dhkd.sweep(small, cache, out=tmp_path / "all", grid=grid, **TRAINED, **CPU)
    assert not (tmp_path / "all").exists()


def test_wrong_sets_are_one_line(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown split 'val'"):
        dhkd.DistillationSet.from_cache(cache, split="val")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(CacheMismatch, match="expected the signal embedding, it holds logits"):
        dhkd.DistillationSet.from_cache(cache, signals=["embedding"])
    with pytest.raises(CacheIncomplete, match="nowhere"):
        dhkd.DistillationSet.from_cache(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="expected a folder of runs, found none"):
        dhkd.report(tmp_path / "nowhere")
    with pytest.raises(dhkd.DhkdError, match="nowhere"):
        dhkd.load_network(tmp_path / "nowhere")


def test_a_data_set_without_labels_is_one_line_or_has_none(teacher: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(dhkd.DhkdError) as raised:
        cached(teacher, tmp_path / "c.zarr", data=Unlabelled(), test=Unlabelled())
    assert "\n" not in str(raised.value)
