"""Methods run for networks of timm as student and as teacher, or say what stands against it."""

import re
from pathlib import Path

import pytest
from dhkd.benchmarks.any_networks import CNN, OURS, PAIRS, VIT, faults, pair_name
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.module_maps import grid_of
from dhkd.stages.models.signals import Shapes
from dhkd.stages.train.objectives import OBJECTIVES

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results" / "any_networks.md"
OF_MAPS = ("fitnet", "at", "ofd", "reviewkd", "simkd", "cat-kd")


def recorded(pair: str) -> set[str]:
    """The methods that the committed table says don't run for this pair."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in RESULTS.read_text().splitlines()]
    column = rows[0].index(pair)
    return {row[0].strip("`") for row in rows[2:] if len(row) > column and row[column].startswith("no")}


@pytest.mark.parametrize(
    ("teacher", "student", "against"),
    [(CNN, OURS, set()), (OURS, VIT, {"cat-kd"}), (VIT, OURS, {"ofd", "simkd", "cat-kd"})],
    ids=["resnet10t-ours", "ours-vit", "vit-ours"],
)
def test_methods_of_maps_run_for_networks_of_timm(
    teacher: Architecture, student: Architecture, against: set[str]
) -> None:
    found = faults(teacher, student, OF_MAPS)
    assert set(found) == against
    assert all("timm:vit_tiny" in fault and "\n" not in fault for fault in found.values())


@pytest.mark.soak
@pytest.mark.parametrize(("teacher", "student"), PAIRS, ids=[pair_name(*pair) for pair in PAIRS])
def test_every_method_runs_as_the_table_says(teacher: Architecture, student: Architecture) -> None:
    assert set(faults(teacher, student)) == recorded(pair_name(teacher, student))


def test_the_documentation_has_the_table() -> None:
    page = (ROOT / "docs" / "networks.md").read_text()
    table, _, reasons = RESULTS.read_text().partition("\n\n")
    assert table in page
    assert " ".join(reasons.split()) in " ".join(page.split())
    assert set(re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)) == set(OBJECTIVES)


def test_maps_of_timm_are_at_most_four_and_tokens_become_their_grid() -> None:
    assert Shapes(VIT, 10, (32, 32)).maps == dict.fromkeys((1, 2, 3, 4), (192, 8, 8))
    assert list(Shapes(CNN, 10, (32, 32)).maps.values()) == [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]


@pytest.mark.parametrize(
    ("tokens", "image", "grid"),
    [
        (64, (32, 32), (8, 8)),
        (65, (32, 32), (8, 8)),
        (69, (32, 32), (8, 8)),
        (33, (32, 64), (4, 8)),
        (1, (32, 32), (1, 1)),
        (63, (32, 32), None),
        (28, (32, 96), (3, 9)),
    ],
)
def test_the_grid_of_tokens_has_the_proportions_of_the_image(tokens: int, image: tuple[int, int], grid) -> None:
    assert grid_of(tokens, *image) == grid
