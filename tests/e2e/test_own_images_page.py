"""The documentation's examples of a preset of one's own, as it stands there, on a few images in that layout."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Data
from dhkd.data.errors import DataError
from dhkd.data.own_code import imported
from dhkd.data.sources import load_source
from dhkd.data.sources.base import Place
from PIL import Image

from tests.e2e.command_line import done

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
EXAMPLES = {  # from the preset to size, split of the test, and what lies between a class's folder and its images
    "cifar10.yaml": (32, "test", "", "png"),
    "tiny-imagenet.yaml": (64, "val", "images/", "JPEG"),
}


def blocks(kind: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_every_preset_of_the_page_is_tested_here(tmp_path: Path) -> None:
    """That of photographs without labels is only read."""
    presets = [block for block in blocks("yaml") if not block.startswith("data:")]  # what a section `data` may be
    assert [block.split(",")[0].removeprefix("# ") for block in presets] == [*EXAMPLES, "photos.yaml"]
    (tmp_path / "photos.yaml").write_text(presets[-1])
    assert load_experiment(str(tmp_path / "photos.yaml")).data.source == "folder"


def test_each_section_of_the_page_is_of_a_source_with_these_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_own_code: Path
) -> None:
    """The code on the page is imported unchanged. A source refuses unknown options before it reads any file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (code,) = blocks("python")
    Path("my_data.py").write_text(code)
    imported(["my_data.py"])
    for number in range(8):
        file = Path(f"images/photos/train/class{number % 2}/{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    sections = [Data(**yaml.safe_load(block)["data"]) for block in blocks("yaml") if block.startswith("data:")]
    assert len(sections) == 8
    for data in sections:
        hub = data.source.startswith("huggingface:")
        place = Place(None if hub else "images", options=data.options)
        if data.source.startswith("my_data.py"):
            assert load_source(data.source, "train", place).class_names == ("class0", "class1")
        elif data.source != "huggingface":  # which would read the images as an image folder
            with pytest.raises(DataError, match=r"--data-root|--download"):
                load_source(data.source, "train", place)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10.yaml", pytest.param("tiny-imagenet.yaml", marks=pytest.mark.soak)])
def test_a_preset_of_ones_own_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, test, between, suffix = EXAMPLES[name]
    monkeypatch.chdir(tmp_path)
    (text,) = [block for block in blocks("yaml") if block.startswith(f"# {name}")]
    Path(name).write_text(text)
    rng = np.random.default_rng(0)
    for number in range(24):
        split, inside = ("train", between) if number < 18 else (test, "")
        file = Path(f"images/{split}/class{number % 3}/{inside}{number}.{suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file)

    commands = [line for block in blocks("") for line in block.splitlines() if "cifar10.yaml" in line]
    assert [shlex.split(line)[1] for line in commands] == ["train-teacher", "cache-teacher", "train-student"]
    for line in commands:
        words = [name if word == "cifar10.yaml" else word for word in shlex.split(line)[1:]]
        short = [
            "teacher.epochs=1",
            "student.epochs=1",
            "teacher.milestones=[]",
            "student.milestones=[]",
            "teacher.batch_size=9",
            "student.batch_size=9",
        ]
        short += ["cache.views=2", "cache.codec=float32"]
        done(*words, "--cpu", "--precision", "float32", *(word for setting in short for word in ("--set", setting)))
    assert Path("runs/student/student.safetensors").is_file()
