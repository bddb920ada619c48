"""The committed drawings are what their script draws, and the README's pictures exist, small, with words for each."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from dhkd.data.recipes.crop_flip import CropFlip

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_stages", PICTURES / "draw_stages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", ["light", "dark"])
def test_the_drawing_is_what_its_script_draws(script: ModuleType, version: str) -> None:
    drawn = script.draw(script.PALETTES[version])
    assert (PICTURES / f"stages-{version}.svg").read_text() == drawn, "run docs/pictures/draw_stages.py"
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_the_drawing_shows_the_pixels_of_its_key(script: ModuleType) -> None:
    """As a stage renders them: all images in memory, each batch by its keys."""
    image = script.picture()
    images = torch.zeros(script.IMAGE + 1, *image.shape, dtype=torch.uint8)
    images[script.IMAGE] = image
    render = CropFlip(padding=4, flip=True, seed=script.SEED).resident(images)
    assert torch.equal(script.view_of(image), render(torch.tensor([script.VIEW]), torch.tensor([script.IMAGE]))[0])
    assert not torch.equal(script.view_of(image), image)


def test_pictures_of_the_readme_exist_and_are_small() -> None:
    files = re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert {Path(file).stem for file in files} == {"stages-light", "stages-dark", "page-light", "page-dark"}
    assert [file for file in files if not 0 < (ROOT / file).stat().st_size < 200_000] == []


def test_every_picture_of_the_readme_is_described() -> None:
    described = re.findall(r'<img [^>]*alt="([^"]{40,})"', README)
    assert len(described) == README.count("<img ") == README.count("<picture>") == 2
