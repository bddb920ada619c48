"""What passes from the thread that launches to the one that takes: in order, bounded, with errors that surface."""

import threading
import time
from pathlib import Path

import pytest
import torch
from dhkd.data.cache.reader import open_cache
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.render import Normalization
from dhkd.stages.cache.compare import compare_with_live
from dhkd.stages.cache.hand_over import UNDER_WAY, HandOver
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from torch import Tensor

from tests.caches import manifest_of_images, writer_at
from tests.samples import make_images

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, torch.cuda finds none")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=needs_gpu)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_what_is_given_is_taken_in_order_by_another_thread(device: torch.device) -> None:
    taken: list[tuple[float, str]] = []

    def take(batch: dict[str, Tensor]) -> None:
        assert batch["x"].device == CPU
        taken.append((float(batch["x"].sum()), threading.current_thread().name))

    with HandOver(device) as taking:
        for number in range(50):
            # Each tensor is dropped as soon as it is given: no other batch may be written into its memory too early.
            taking.give({"x": torch.full((1000,), float(number), device=device)}, take)
    assert [total for total, _ in taken] == [1000.0 * number for number in range(50)]
    assert {name for _, name in taken} == {"taker_0"}


def test_only_a_few_batches_are_under_way() -> None:
    given = taken = 0
    go = threading.Event()

    def take(batch: dict[str, Tensor]) -> None:
        nonlocal taken
        assert go.wait(100)
        taken += 1

    def give() -> None:
        nonlocal given
        with HandOver(CPU) as taking:
            for _ in range(20):
                taking.give({}, take)
                given += 1

    giver = threading.Thread(target=give)
    giver.start()
    deadline = time.monotonic() + 60
    while given < UNDER_WAY and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # for more that are given, though they must not be
    most = given
    go.set()
    giver.join()
    assert most == UNDER_WAY
    assert (given, taken) == (20, 20)


@pytest.mark.parametrize("number", [0, 9])
def test_what_goes_wrong_in_taking_is_raised_in_giving(number: int) -> None:
    """Also in the tenth batch, the last one, after which nothing is given."""
    taken = []

    def take(batch: dict[str, Tensor]) -> None:
        taken.append(int(batch["x"]))
        if taken[-1] == number:
            raise OSError("no space left")

    def give() -> None:
        with HandOver(CPU) as taking:
            for at in range(10):
                taking.give({"x": torch.tensor(at)}, take)

    with pytest.raises(OSError, match="no space left"):
        give()
    assert len(taken) <= number + UNDER_WAY + 1


def test_what_was_given_before_an_interruption_is_taken() -> None:
    taken = []

    def give() -> None:
        with HandOver(CPU) as taking:
            for at in range(3):
                taking.give({}, lambda batch, at=at: (time.sleep(0.05), taken.append(at)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give()
    assert taken == [0, 1, 2]


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpus_cache_is_what_the_teacher_says_there(precision: str, tmp_path: Path) -> None:
    processes = Processes(precision)
    try:
        torch.manual_seed(3)
        images = make_images()
        renderer = ResidentRenderer(images, CropFlip(padding=1, flip=True, seed=0), processes.device)
        teacher = Teacher(build_network("resnet8", 5), Normalization(images.mean, images.std), processes)
        write_blocks(
            teacher, renderer, writer_at(tmp_path / "c", manifest_of_images()), batch_size=4, processes=processes
        )
        reader = open_cache(tmp_path / "c")
        compare_with_live(teacher, renderer, reader, "logits", seed=0, num_rows=40, repair="")
        for block in reader.plan.blocks():
            index_B = torch.arange(block.start, block.stop)
            pixels = renderer.pixels(torch.full_like(index_B, block.view), index_B)
            got = torch.from_numpy(reader.read(block.view, index_B.numpy()))
            torch.testing.assert_close(got, teacher.logits(pixels).cpu(), rtol=2e-2, atol=2e-2)
    finally:
        processes.end()
