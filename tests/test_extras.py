"""`pip install dhkd`, without extras, is enough for both stages; a command that needs more names its extra."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from dhkd.data.errors import ConfigError
from dhkd.data.extras import _DISTRIBUTIONS, EXTRAS, needing
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.e2e.command_line import SMALL, assert_one_line
from tests.golden.commands import Outcome

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Runs commands in an interpreter that can't find the packages in BLOCKED, and prints how each command ended.
PLAIN = """
import json, sys
from importlib.machinery import PathFinder

blocked, commands = json.load(sys.stdin)

class Plain(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Plain
assert not set(blocked) & sys.modules.keys(), set(blocked) & sys.modules.keys()
sys.path.append(sys.argv[1])
from tests.golden.commands import run

print(json.dumps([run(words) for words in commands]))
"""


def of_plain_installation() -> set[str]:
    """Return the names of the distributions that `pip install dhkd` brings."""
    names, waiting = {"dhkd"}, [Requirement(text).name for text in PROJECT["dependencies"]]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in names:
            continue
        names.add(name)
        try:
            needed = map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # one for another system
            continue
        waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return names


@cache
def blocked() -> list[str]:
    """Return the modules that are installed here, and would not be after `pip install dhkd`."""
    there = of_plain_installation()
    return [
        module
        for module, distributions in packages_distributions().items()
        if not {canonicalize_name(each) for each in distributions} & there
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plain")


DEMO = ["demo", "--smoke", "--cpu", "--out", "demo"]
REPORT = ["report", "demo"]
DIGITS = ["train-teacher", "digits", *SMALL, "--out", "digits"]
STAGES = (DEMO, REPORT, DIGITS)
TRAIN = ["train-student", "demo", "--smoke", "--cpu", "--cache", "demo/teacher.zarr", "--out", "run"]
SWEEP = ["sweep", "demo", "--smoke", "--cpu", "--cache", "demo/teacher.zarr", "--seeds", "1", "--out", "run"]
# By the package that a command needs: its words, and the beginning of its line.
NEED_MORE = {
    "plotly": ([*REPORT, "--html", "page.html"], "--html"),
    "sklearn": (["report", "tsne", "demo", "--teacher", "demo/teacher", "--cpu"], "report tsne"),
    "tensorboard": ([*TRAIN, "--track", "tensorboard"], "--track tensorboard"),
    "wandb": ([*TRAIN, "--track", "wandb"], "--track wandb"),
    "mlflow": ([*TRAIN, "--track", "mlflow"], "--track mlflow"),
    "timm": ([*TRAIN, "--set", "student=timm:resnet18"], "network timm:resnet18"),
    "ray": ([*SWEEP, "--on", "ray"], "--on ray"),
    "submitit": ([*SWEEP, "--on", "slurm:local"], "--on slurm:local"),
    "onnx": (["export", "demo/ce", "--without-data", "--out", "student.onnx"], "ONNX"),
    "obstore": (["inspect", "s3://bucket/c.zarr"], "s3://bucket/c.zarr"),
    "datasets": (["train-teacher", "digits", "--set", "data.source=huggingface", "--out", "run"], "huggingface"),
}


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> Mapping[str, Outcome]:
    """How each command ended, by its words: all in one interpreter that has only a plain installation's packages."""
    commands = [*STAGES, *(words for words, _ in NEED_MORE.values())]
    done = subprocess.run(
        [sys.executable, "-P", "-c", PLAIN, str(ROOT)],
        input=json.dumps([blocked(), commands]), cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    return {" ".join(words): Outcome(*each) for words, each in zip(commands, ended, strict=True)}


def test_what_is_blocked_is_what_extras_bring() -> None:
    assert {"matplotlib", "plotly", "sklearn", "scipy", "pytest"} <= {*blocked()}
    assert not {"torch", "torchvision", "accelerate", "psutil", "jinja2", "rich", "webdataset"} & {*blocked()}


@pytest.mark.slow
@pytest.mark.parametrize("words", STAGES, ids=lambda words: words[0])
def test_both_stages_and_their_table_need_no_extra(outcomes: Mapping[str, Outcome], words: list[str]) -> None:
    outcome = outcomes[" ".join(words)]
    assert outcome.code == 0, outcome.err
    assert words == DIGITS or all(f"\n{method} " in outcome.out for method in ("ce", "kd", "binary-kl", "dhkd"))


@pytest.mark.slow
@pytest.mark.parametrize(("words", "picture"), [(DEMO, "accuracy"), (REPORT, "comparison")])
def test_a_picture_that_is_left_out_is_said(
    outcomes: Mapping[str, Outcome], folder: Path, words: list[str], picture: str
) -> None:
    says = f"picture {picture} is left out: expected matplotlib to be installed, found none; pip install 'dhkd[report]'"
    assert says in outcomes[" ".join(words)].err
    assert not list(folder.rglob(f"{picture}.*g"))


@pytest.mark.slow
@pytest.mark.parametrize("package", NEED_MORE)
def test_a_command_that_needs_more_names_its_extra(outcomes: Mapping[str, Outcome], package: str) -> None:
    words, what = NEED_MORE[package]
    outcome = outcomes[" ".join(words)]
    name = _DISTRIBUTIONS.get(package, package)
    assert_one_line(
        outcome,
        2,
        [f"error: {what}: expected {name} to be installed, found none; pip install 'dhkd[{EXTRAS[package]}]'"],
    )


@pytest.mark.parametrize("package", EXTRAS)
def test_the_extra_that_is_named_brings_the_package(package: str) -> None:
    brought = [canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"][EXTRAS[package]]]
    assert _DISTRIBUTIONS.get(package, package) in brought


def test_another_module_that_is_missing_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"), needing("timm", "network"):
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")
    with pytest.raises(ConfigError, match=r"^network: expected timm to be installed"), needing("timm", "network"):
        raise ModuleNotFoundError("No module named 'timm.data'", name="timm.data")
