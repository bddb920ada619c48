"""What surrounds a command."""

from pathlib import Path

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import Decoding
from dhkd.data.recipes.unaugmented import AsTheyAre, CenterCrop
from dhkd.data.sources import load_source
from dhkd.data.sources.base import Place
from dhkd.pipeline.environment import processes_for, unreadable_files
from dhkd.stages.processes import Processes

from tests.samples import encoded, make_images, make_photo


def test_processes_end_whatever_happens() -> None:
    """So that those of another precision may follow."""
    with pytest.raises(ConfigError, match="a fault"), processes_for("float32", cpu=True):
        raise ConfigError("a fault")
    with processes_for("bf16", cpu=True) as processes:
        assert (processes.precision, processes.accelerator.mixed_precision) == ("bf16", "bf16")


def test_files_that_could_not_be_read_are_listed(processes: Processes, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(8):
            file = tmp_path / split / f"class{number % 2}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(make_photo(number)))
    images = load_source("image-folder", "train", Place(root=str(tmp_path)))
    keys = (torch.zeros(8, dtype=torch.int64), torch.arange(8))

    def listed() -> list[str] | None:
        renderer = images.renderer(CenterCrop(16, 16), processes.device, Decoding(allow_bad=8))
        for _ in renderer.render([keys, keys]):
            pass
        return unreadable_files(renderer, processes)

    assert listed() is None
    for number in range(8):
        (tmp_path / "train" / f"class{number % 2}" / f"{number}.jpg").write_bytes(b"not an image")
    files = listed()
    assert files is not None
    assert files == sorted(files)
    assert sorted(Path(file).name for file in files) == [f"{number}.jpg" for number in range(8)]


def test_images_in_memory_are_all_readable(processes: Processes) -> None:
    renderer = make_images().renderer(AsTheyAre(), processes.device, Decoding())
    assert unreadable_files(renderer, processes) is None
