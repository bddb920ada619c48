"""Stage one in one process: what is stored is what the teacher says, and an interruption leaves no trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import CacheMismatch, NonFiniteLoss
from dhkd.data.images.decoding_workers import PhotoRenderer
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.images.witness import witnesses
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.render import Normalization
from dhkd.data.sources.image_folder import FolderFiles
from dhkd.data.sources.image_folder import images_below as load_folder
from dhkd.stages.cache.compare import compare_with_live, random_keys
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from torch import nn

from tests.caches import IMAGE_BLOCK_ROWS, manifest_of_images, writer_at
from tests.samples import encoded, files_of, make_images, make_photo

VIEWS = 2


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(3)
    return build_network("resnet8", 5)


def teacher_of(network: nn.Module, processes: Processes) -> tuple[Teacher, ResidentRenderer]:
    images = make_images()
    renderer = ResidentRenderer(images, CropFlip(padding=1, flip=True, seed=0), processes.device)
    return Teacher(network, Normalization(images.mean, images.std), processes), renderer


@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
def test_every_row_is_the_teachers_in_eval_mode(
    batch_size: int, network: nn.Module, processes: Processes, tmp_path: Path
) -> None:
    teacher, renderer = teacher_of(network.train(), processes)
    written = write_blocks(
        teacher, renderer, writer_at(tmp_path / "c", manifest_of_images()), batch_size=batch_size, processes=processes
    )
    assert (written.blocks, written.rows) == (VIEWS * 4, VIEWS * 37)
    reader = open_cache(tmp_path / "c")
    reader.require_present()
    normalize = Normalization(renderer.images.mean, renderer.images.std)
    for block in reader.plan.blocks():
        index_B = torch.arange(block.start, block.stop)
        pixels = renderer.pixels(torch.full_like(index_B, block.view), index_B)
        with torch.no_grad():
            expected = network.eval()(normalize(pixels))
        np.testing.assert_allclose(reader.read(block.view, index_B.numpy()), expected.numpy(), rtol=1e-3, atol=1e-4)
        assert (reader.witness(block) == witnesses(pixels)).all()


def test_an_interruption_leaves_no_trace(network: nn.Module, processes: Processes, tmp_path: Path) -> None:
    teacher, renderer = teacher_of(network, processes)
    write_blocks(
        teacher, renderer, writer_at(tmp_path / "whole", manifest_of_images()), batch_size=4, processes=processes
    )

    rows = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal rows
        rows += len(output)
        if rows == 24:
            raise KeyboardInterrupt

    hook = network.register_forward_hook(count)
    writer = writer_at(tmp_path / "cut", manifest_of_images())
    with pytest.raises(KeyboardInterrupt):
        write_blocks(teacher, renderer, writer, batch_size=4, processes=processes)
    finished = VIEWS * 4 - len(writer.missing())
    assert finished == 2, "what was computed before the interruption is stored"
    again = write_blocks(
        teacher, renderer, writer_at(tmp_path / "cut", manifest_of_images()), batch_size=4, processes=processes
    )
    hook.remove()
    assert again.blocks == VIEWS * 4 - finished
    assert rows == 24 + again.rows, "no finished row is computed twice"
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_what_can_not_be_stored_stops_the_writing(network: nn.Module, processes: Processes, tmp_path: Path) -> None:
    network.fc.bias.data[1] = 1e6
    teacher, renderer = teacher_of(network, processes)
    writer = writer_at(tmp_path / "c", manifest_of_images())
    with pytest.raises(NonFiniteLoss, match=r"signal logits, view 0, index 0: expected finite float16"):
        write_blocks(teacher, renderer, writer, batch_size=4, processes=processes)
    write_blocks(
        teacher,
        renderer,
        writer_at(tmp_path / "wide", manifest_of_images("float32")),
        batch_size=4,
        processes=processes,
    )


@pytest.mark.timeout(60)
def test_a_last_block_that_can_not_be_stored_is_not_passed_over(
    network: nn.Module, processes: Processes, tmp_path: Path
) -> None:
    teacher, renderer = teacher_of(network, processes)
    batches = 0

    def overflow(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        nonlocal batches
        batches += 1
        return output * 1e6 if batches >= VIEWS * 4 else output  # a batch is a block here

    network.register_forward_hook(overflow)
    writer = writer_at(tmp_path / "c", manifest_of_images())
    with pytest.raises(NonFiniteLoss, match=r"view 1, index 3\d"):
        write_blocks(teacher, renderer, writer, batch_size=IMAGE_BLOCK_ROWS, processes=processes)
    assert [str(block) for block in writer.missing()] == ["view 1, rows 30 to 37"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_live_comparison_allows_rounding_and_nothing_more(
    dtype: str, network: nn.Module, processes: Processes, tmp_path: Path
) -> None:
    teacher, renderer = teacher_of(network, processes)
    write_blocks(
        teacher, renderer, writer_at(tmp_path / "c", manifest_of_images(dtype)), batch_size=4, processes=processes
    )
    reader = open_cache(tmp_path / "c")
    settings = {"name": "logits", "seed": 0, "num_rows": 64, "repair": "rebuild it"}
    worst = compare_with_live(teacher, renderer, reader, **settings)
    assert worst < (1e-2 if dtype == "float16" else 1e-5)
    with torch.no_grad():
        network.fc.bias[1] += 0.02
    with pytest.raises(CacheMismatch, match=r"logits beyond tolerance: 64 of 64 rows .* got 0\.0[12].*; rebuild it"):
        compare_with_live(teacher, renderer, reader, **settings)


def test_spot_checks_reach_every_view_and_row() -> None:
    view_B, index_B = random_keys(0, 3, 7, 500)
    assert sorted(view_B.unique().tolist()) == [0, 1, 2]
    assert sorted(index_B.unique().tolist()) == list(range(7))
    assert not torch.equal(random_keys(1, 3, 7, 500)[1], index_B)


# several views at once

PHOTO_VIEWS = 4


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 photographs of 5 classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(37):
        path = folder / f"class-{number % 5}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(make_photo(number, 40, 30 + number % 9)))
    return folder


class CountingFiles(FolderFiles):
    """Remembers which files were read by this process."""

    reads: list[int]

    def read(self, index: int) -> bytes:
        self.reads.append(index)
        return super().read(index)


def photo_teacher(
    folder: Path, network: nn.Module, processes: Processes, *, workers: int = 0
) -> tuple[Teacher, PhotoRenderer, CountingFiles]:
    images = replace(load_folder("train", folder, folder), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    assert isinstance(images.files, FolderFiles)
    files = CountingFiles(images.files._folder, images.files._paths_N)
    files.reads = []
    recipe = RandomResizedCrop(size=16, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, seed=0)
    renderer = PhotoRenderer(replace(images, files=files), recipe, processes.device, workers=workers)
    return Teacher(network, Normalization(images.mean, images.std), processes), renderer, files


def photo_manifest() -> Manifest:
    return manifest_of_images(views=PHOTO_VIEWS)


@pytest.fixture(scope="module")
def one_by_one(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The cache of the photographs, one view at a time."""
    torch.manual_seed(3)
    processes = Processes("float32", cpu=True)
    teacher, renderer, _ = photo_teacher(photo_folder, build_network("resnet8", 5), processes)
    path = tmp_path_factory.mktemp("one") / "c"
    write_blocks(teacher, renderer, writer_at(path, photo_manifest()), batch_size=4, processes=processes)
    processes.end()
    return files_of(path)


@pytest.mark.parametrize(("views_at_once", "workers"), [(1, 2), (2, 0), (3, 0), (3, 2), (4, 0), (9, 0)])
def test_the_views_that_are_computed_together_leave_no_trace(
    views_at_once: int,
    workers: int,
    photo_folder: Path,
    one_by_one: dict[str, bytes],
    network: nn.Module,
    processes: Processes,
    tmp_path: Path,
) -> None:
    teacher, renderer, _ = photo_teacher(photo_folder, network, processes, workers=workers)
    writer = writer_at(tmp_path / "c", photo_manifest())
    written = write_blocks(teacher, renderer, writer, batch_size=4, processes=processes, views_at_once=views_at_once)
    assert (written.blocks, written.rows) == (PHOTO_VIEWS * 4, PHOTO_VIEWS * 37)
    assert files_of(tmp_path / "c") == one_by_one


@pytest.mark.parametrize(("views_at_once", "times"), [(1, 4), (2, 2), (3, 2), (4, 1)])
def test_an_image_is_decoded_once_for_the_views_that_are_computed_together(
    views_at_once: int, times: int, photo_folder: Path, network: nn.Module, processes: Processes, tmp_path: Path
) -> None:
    teacher, renderer, files = photo_teacher(photo_folder, network, processes)
    writer = writer_at(tmp_path / "c", photo_manifest())
    write_blocks(teacher, renderer, writer, batch_size=4, processes=processes, views_at_once=views_at_once)
    assert sorted(files.reads) == sorted(list(range(37)) * times)


@pytest.mark.parametrize("rows_until", [4, 35, 100])
def test_an_interruption_leaves_no_trace_whichever_views_were_computed_together(
    rows_until: int,
    photo_folder: Path,
    one_by_one: dict[str, bytes],
    network: nn.Module,
    processes: Processes,
    tmp_path: Path,
) -> None:
    teacher, renderer, _ = photo_teacher(photo_folder, network, processes)
    rows = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal rows
        rows += len(output)
        if rows >= rows_until:
            raise KeyboardInterrupt

    hook = network.register_forward_hook(count)
    writer = writer_at(tmp_path / "c", photo_manifest())
    with pytest.raises(KeyboardInterrupt):
        write_blocks(teacher, renderer, writer, batch_size=4, processes=processes, views_at_once=3)
    hook.remove()
    finished = PHOTO_VIEWS * 4 - len(writer.missing())
    assert finished == {4: 0, 35: 3, 100: 9}[rows_until], "what was computed before the interruption is stored"
    # The missing blocks group otherwise now: some rows lack one view, others all of them.
    again = write_blocks(
        teacher,
        renderer,
        writer_at(tmp_path / "c", photo_manifest()),
        batch_size=4,
        processes=processes,
        views_at_once=3 if rows_until == 100 else 2,
    )
    assert again.blocks == PHOTO_VIEWS * 4 - finished
    assert files_of(tmp_path / "c") == one_by_one
