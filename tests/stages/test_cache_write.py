"""Stage one in one process: what is stored is what the teacher says, and an interruption leaves no trace."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.cache.contract import WITNESS
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.zarr_store import ZarrReader, ZarrWriter
from dhkd.data.errors import CacheMismatch, NonFiniteLoss
from dhkd.data.render import Normalization, ResidentRenderer, witnesses
from dhkd.data.views import CropFlip
from dhkd.stages.cache.write import Teacher, compare_with_live, random_keys, write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.processes import Processes
from torch import nn

from tests.conftest import files_of, make_images

VIEWS, BLOCK_ROWS = 2, 10


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(3)
    return build_network("resnet8", 5)


def teacher_of(network: nn.Module, processes: Processes) -> tuple[Teacher, ResidentRenderer]:
    images = make_images()
    renderer = ResidentRenderer(images, CropFlip(padding=1, flip=True, seed=0), processes.device)
    return Teacher(network, Normalization(images.mean, images.std), renderer, processes), renderer


def manifest_of(dtype: str = "float16") -> Manifest:
    identity = {
        "dataset": {"num_samples": 37, "num_classes": 5},
        "signals": {"logits": {"dtype": dtype, "row": [5]}},
    }
    return Manifest(identity, {}, VIEWS, BLOCK_ROWS)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
def test_every_row_is_the_teachers_in_eval_mode(
    batch_size: int, network: nn.Module, processes: Processes, tmp_path: Path
) -> None:
    teacher, renderer = teacher_of(network.train(), processes)
    written = write_blocks(
        teacher, ZarrWriter.create(tmp_path / "c", manifest_of()), batch_size=batch_size, processes=processes
    )
    assert (written.blocks, written.rows) == (VIEWS * 4, VIEWS * 37)
    reader = ZarrReader(tmp_path / "c")
    reader.require_complete()
    normalize = Normalization(renderer.images.mean, renderer.images.std)
    for block in reader.plan.blocks():
        index_B = torch.arange(block.start, block.stop)
        pixels = renderer.pixels(torch.full_like(index_B, block.view), index_B)
        with torch.no_grad():
            expected = network.eval()(normalize(pixels))
        np.testing.assert_allclose(reader.read(block, "logits"), expected.numpy(), rtol=1e-3, atol=1e-4)
        assert (reader.read(block, WITNESS) == witnesses(pixels)).all()


def test_an_interruption_leaves_no_trace(network: nn.Module, processes: Processes, tmp_path: Path) -> None:
    teacher, _ = teacher_of(network, processes)
    write_blocks(teacher, ZarrWriter.create(tmp_path / "whole", manifest_of()), batch_size=4, processes=processes)

    rows = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal rows
        rows += len(output)
        if rows == 24:
            raise KeyboardInterrupt

    hook = network.register_forward_hook(count)
    writer = ZarrWriter.create(tmp_path / "cut", manifest_of())
    with pytest.raises(KeyboardInterrupt):
        write_blocks(teacher, writer, batch_size=4, processes=processes)
    finished = VIEWS * 4 - len(writer.missing())
    assert finished == 2, "what was computed before the interruption is stored"
    again = write_blocks(teacher, ZarrWriter.create(tmp_path / "cut", manifest_of()), batch_size=4, processes=processes)
    hook.remove()
    assert again.blocks == VIEWS * 4 - finished
    assert rows == 24 + again.rows, "no finished row is computed twice"
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_what_can_not_be_stored_stops_the_writing(network: nn.Module, processes: Processes, tmp_path: Path) -> None:
    network.fc.bias.data[1] = 1e6
    teacher, _ = teacher_of(network, processes)
    writer = ZarrWriter.create(tmp_path / "c", manifest_of())
    with pytest.raises(NonFiniteLoss, match=r"signal logits, view 0, index 0: expected finite float16"):
        write_blocks(teacher, writer, batch_size=4, processes=processes)
    write_blocks(
        teacher, ZarrWriter.create(tmp_path / "wide", manifest_of("float32")), batch_size=4, processes=processes
    )


@pytest.mark.timeout(60)
def test_a_last_block_that_can_not_be_stored_is_not_passed_over(
    network: nn.Module, processes: Processes, tmp_path: Path
) -> None:
    teacher, _ = teacher_of(network, processes)
    batches = 0

    def overflow(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        nonlocal batches
        batches += 1
        return output * 1e6 if batches >= VIEWS * 4 else output  # a batch is a block here

    network.register_forward_hook(overflow)
    writer = ZarrWriter.create(tmp_path / "c", manifest_of())
    with pytest.raises(NonFiniteLoss, match=r"view 1, index 3\d"):
        write_blocks(teacher, writer, batch_size=BLOCK_ROWS, processes=processes)
    assert [str(block) for block in writer.missing()] == ["view 1, rows 30 to 37"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_live_comparison_allows_rounding_and_nothing_more(
    dtype: str, network: nn.Module, processes: Processes, tmp_path: Path
) -> None:
    teacher, _ = teacher_of(network, processes)
    write_blocks(teacher, ZarrWriter.create(tmp_path / "c", manifest_of(dtype)), batch_size=4, processes=processes)
    reader = ZarrReader(tmp_path / "c")
    settings = {"precision": "float32", "seed": 0, "num_rows": 64, "repair": "rebuild it"}
    worst = compare_with_live(teacher, reader, **settings)
    assert worst < (1e-2 if dtype == "float16" else 1e-5)
    with torch.no_grad():
        network.fc.bias[1] += 0.02
    with pytest.raises(CacheMismatch, match=r"logits beyond tolerance: 64 of 64 rows .* got 0\.0[12].*; rebuild it"):
        compare_with_live(teacher, reader, **settings)


def test_spot_checks_reach_every_view_and_row() -> None:
    view_B, index_B = random_keys(0, 3, 7, 500)
    assert sorted(view_B.unique().tolist()) == [0, 1, 2]
    assert sorted(index_B.unique().tolist()) == list(range(7))
    assert not torch.equal(random_keys(1, 3, 7, 500)[1], index_B)
