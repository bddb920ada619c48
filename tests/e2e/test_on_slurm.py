"""`--on slurm:local`: jobs of submitit compute what one process computes, to the bit, with own code as well."""

import json
from pathlib import Path

import pytest
import yaml

from tests.e2e.command_line import SMALL, done
from tests.samples import files_of

pytestmark = pytest.mark.timeout(900)

ON = ("--on", "slurm:local", "--tasks", 2)

NETWORK = """
from torch import nn
from widths import WIDTH

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.classifier = nn.Linear(4 * WIDTH, num_classes)

    def forward(self, images):
        return self.classifier(self.body(images))
"""


@pytest.fixture
def folder(tmp_path: Path, no_own_code: Path) -> Path:
    """The current folder, with a network of the user's own and a file that it imports."""
    Path("mine.py").write_text(NETWORK)
    Path("widths.py").write_text("WIDTH = 4\n")
    return tmp_path


@pytest.mark.soak
def test_a_cache_is_that_of_here(cache: Path, teacher: Path, folder: Path) -> None:
    done("cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", folder / "c", *ON)
    assert files_of(folder / "c") == files_of(cache)
    assert not (folder / "dhkd-jobs").exists()


@pytest.mark.slow
def test_a_sweep_with_own_code_is_that_of_here(cache: Path, folder: Path) -> None:
    words = ["sweep", "digits", *SMALL, "--set", "student=mine.py:Net", "--import", "mine.py", "--cache", cache]
    words += ["--grid", "objective=kd,dhkd", "--seeds", 2, "--track", "none", "--json"]
    done(*words, "--out", folder / "here")
    result = done(*words, "--out", folder / "on", *ON).result
    assert (len(result["finished"]), result["failed"]) == (4, {})
    assert facts_of(folder / "on") == facts_of(folder / "here")
    assert not (folder / "dhkd-jobs").exists()


def facts_of(out: Path) -> dict[str, object]:
    """What each run has learned, and the code that it recorded."""
    facts = {}
    for result in out.glob("*/result.json"):
        code = yaml.safe_load((result.parent / "config.yaml").read_text())["run"]["code"]
        assert set(code) == {"mine.py:Net"}
        assert set(code["mine.py:Net"]["beside"]) == {"widths.py"}
        facts[result.parent.name] = (json.loads(result.read_text())["sha256"], code)
    assert len(facts) == 4
    return facts
