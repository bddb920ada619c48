"""Code that users wrote: nothing runs without --import, and whatever goes wrong in it is one line that names it."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dhkd.configs.load import load_experiment
from dhkd.data import own_code, own_files
from dhkd.pipeline.claims import settings_of
from dhkd.stages.models.weights import read_metadata

from tests.e2e.command_line import assert_one_line, dhkd, done

RAN = "ran"  # each file with code appends its name to this file when it runs

NETS = """
import sys
from torch import nn
open('ran', 'a').write('my_nets ')

class Small(nn.Module):
    def __init__(self, num_classes: int, width: int = 4):
        super().__init__()
        stem = [nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))
"""
LOSS = """
import torch.nn.functional as F
open('ran', 'a').write('my_loss ')

def far(student_logits, teacher_logits, labels, margin: float = 1.0):
    assert labels.shape == student_logits.shape[:1] and not labels.is_floating_point()
    return F.relu((student_logits - teacher_logits).abs() - margin).mean()
"""
VIEWS = """
from dataclasses import dataclass
import numpy as np
import torch
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.unaugmented import AsTheyAre
open('ran', 'a').write('my_views ')

@dataclass(frozen=True)
class Mirrored(Recipe):
    seed: int
    num_views = 2
    shape = None
    exact = True

    @property
    def identity(self):
        return {"kind": "mirrored", "version": 1, "seed": self.seed}

    def draws(self, view_B, index_B):
        return view_B[:, None] % 2

    def pixels(self, photo, draws_BD):
        plain = np.asarray(photo)
        return np.stack([plain[:, ::-1] if draw else plain for draw in draws_BD[:, 0].tolist()])

    def at_test(self):
        return AsTheyAre()
"""
FILES = {"my_nets.py": NETS, "my_loss.py": LOSS, "nets/my-views.py": VIEWS}
IMPORTS = [word for file in FILES for word in ("--import", file)]
SETTINGS = {
    "data.limit": 100,
    "data.test_limit": 50,
    "cache.views": 2,
    "teacher": "my_nets.py:Small",
    "teacher.epochs": 1,
    "teacher.allow_chance": "true",
    "student": "my_nets.py:Small",
    "student.epochs": 1,
    "student.keep_every": 1,
    "views": "{kind: 'nets/my-views.py:Mirrored'}",
    "objective": "ce + 0.5 * my_loss.py:far",
    "objectives.my_loss.py:far.margin": 0.5,
}
CPU = ["--cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A preset that names code, and a teacher, a cache and a student that were made with it."""
    folder, before = tmp_path_factory.mktemp("own"), Path.cwd()
    os.chdir(folder)
    known, own_code._known = own_code._known, own_code._Known()
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    experiment = load_experiment("digits", [f"{key}={value}" for key, value in SETTINGS.items()])
    Path("mine.yaml").write_text(yaml.safe_dump(settings_of(experiment)))
    done("train-teacher", "mine.yaml", *IMPORTS, "--out", "t", *CPU)
    done("cache-teacher", "mine.yaml", *IMPORTS, "--teacher", "t", "--out", "c.zarr", *CPU)
    done("train-student", "mine.yaml", *IMPORTS, "--cache", "c.zarr", "--out", "runs/s", *CPU)
    yield folder
    own_code._known = known
    os.environ.pop(own_code.VARIABLE, None)
    os.chdir(before)


@pytest.fixture
def fresh(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, in a process that has loaded no code yet; files with code are put back at the end."""
    monkeypatch.setattr(own_code, "_known", own_code._Known())
    monkeypatch.setattr(own_files, "_later", own_files._Folders())
    monkeypatch.delenv(own_code.VARIABLE, raising=False)
    monkeypatch.chdir(world)
    Path(RAN).unlink(missing_ok=True)
    yield world
    os.environ.pop(own_code.VARIABLE, None)
    for folder in ("x", "bad"):
        shutil.rmtree(folder, ignore_errors=True)
    for name, text in FILES.items():
        Path(name).write_text(text)


def sha256(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


# What is recorded


def test_runs_caches_and_weights_record_their_code(fresh: Path) -> None:
    def code(*files: str) -> dict[str, Any]:
        names = {"my_nets.py": "Small", "my_loss.py": "far", "nets/my-views.py": "Mirrored"}
        return {f"{file}:{names[file]}": {"module": file, "sha256": sha256(file)} for file in files}

    teacher, student = (yaml.safe_load(Path(run, "config.yaml").read_text())["run"] for run in ("t", "runs/s"))
    assert teacher["code"] == code("my_nets.py", "nets/my-views.py")
    assert student["code"] == code("my_nets.py", "my_loss.py", "nets/my-views.py")
    inspected = done("inspect", "c.zarr", "--json").result
    assert inspected["provenance"]["logits"]["code"] == code("my_nets.py", "nets/my-views.py")
    assert f"code         my_nets.py:Small ({sha256('my_nets.py')[:12]})" in done("inspect", "c.zarr").out
    done("export", "runs/s", "--import", "my_nets.py", "--out", "s.safetensors")
    assert json.loads(read_metadata(Path("s.safetensors"))["code"]) == code("my_nets.py")
    assert Path(RAN).read_text() == "my_nets "


# Without --import, nothing runs

WITHOUT = {
    "train-teacher": ["mine.yaml", "--out", "x"],
    "cache-teacher": ["mine.yaml", "--teacher", "t", "--out", "x.zarr"],
    "train-student": ["mine.yaml", "--cache", "c.zarr", "--out", "x"],
    "train-student --resume": ["mine.yaml", "--cache", "c.zarr", "--out", "runs/s", "--resume"],
    "train-student --grid": ["mine.yaml", "--cache", "c.zarr", "--out", "x", "--grid", "seed=0,1"],
    "sweep": ["mine.yaml", "--cache", "c.zarr", "--out", "x", "--seeds", "2"],
    "verify": ["c.zarr", "--preset", "mine.yaml"],
    "plan": ["mine.yaml"],
    "methods": ["mine.yaml"],
    "evaluate": ["runs/s"],
    "evaluate --student": ["mine.yaml", "--student", "runs/s"],
    "export": ["runs/s", "--out", "x.safetensors"],
    "report conflict": ["runs", "--cache", "c.zarr"],
    "report correlation": ["runs", "--teacher", "t"],
    "report tsne": ["runs", "--teacher", "t"],
    "report etf": ["runs"],
}


@pytest.mark.parametrize("command", WITHOUT)
def test_a_preset_a_run_and_a_cache_run_no_code(fresh: Path, command: str) -> None:
    words, _, option = command.partition(" --")
    extra = ["--resume"] if option == "resume" else []
    outcome = dhkd(*words.split(), *WITHOUT[command], *[word for word in extra if word not in WITHOUT[command]])
    assert_one_line(outcome, 2, ["names code in ", "which is run only if you say so: add --import "])
    assert not Path(RAN).exists()
    assert not Path("x").exists()


@pytest.mark.parametrize("words", [["inspect", "c.zarr"], ["report", "runs"], ["verify", "c.zarr"]])
def test_what_needs_no_code_needs_no_import(fresh: Path, words: list[str]) -> None:
    done(*words)
    assert not Path(RAN).exists()


def test_each_missing_import_is_named_once_the_others_are_there(fresh: Path) -> None:
    outcome = dhkd("train-student", "mine.yaml", "--cache", "c.zarr", "--out", "x", "--import", "my_nets.py")
    assert_one_line(outcome, 2, ["views.kind nets/my-views.py:Mirrored names code in nets/my-views.py"])
    assert Path(RAN).read_text() == "my_nets "


def test_the_variable_does_what_the_option_does(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(own_code.VARIABLE, ",".join(FILES))
    result = done("evaluate", "runs/s", "--json").result
    assert result["architecture"] == "my_nets.py:Small"


# Code that has changed


def change(file: str) -> None:
    Path(file).write_text(f"{FILES[file]}\n# changed\n")


TRAIN = ["train-student", "mine.yaml", "--cache", "c.zarr", *CPU, "--out"]
CACHE = ["cache-teacher", "mine.yaml", "--teacher", "t", *CPU, "--out"]
SWEEP = ["sweep", "mine.yaml", "--cache", "c.zarr", *CPU, "--seeds", "1", "--out"]


@pytest.mark.parametrize(
    ("command", "file", "says"),
    [
        (["evaluate", "runs/s"], "my_nets.py", "run at runs/s: code of my_nets.py:Small has changed: my_nets.py"),
        (["evaluate", "runs/s"], "nets/my-views.py", "code of nets/my-views.py:Mirrored has changed: my-views.py"),
        (["evaluate", "mine.yaml", "--teacher", "t/teacher.safetensors"], "my_nets.py", "weights t/teacher"),
        (["report", "etf", "runs"], "my_nets.py", "code of my_nets.py:Small has changed"),
        (["report", "conflict", "runs", "--cache", "c.zarr"], "my_loss.py", "code of my_loss.py:far has changed"),
        ([*TRAIN, "runs/s", "--resume"], "my_loss.py", "run at"),
        ([*SWEEP, "swept"], "my_nets.py", "run at"),
        ([*TRAIN, "x"], "nets/my-views.py", "cache at c.zarr"),
        ([*CACHE, "c.zarr"], "nets/my-views.py", "cache at c.zarr"),
        (["verify", "c.zarr", "--preset", "mine.yaml"], "nets/my-views.py", "cache at c.zarr: code of"),
        (["verify", "c.zarr", "--preset", "mine.yaml", "--teacher", "t"], "my_nets.py", "code of my_nets.py:Small"),
    ],
)  # fmt: skip
def test_code_that_has_changed_is_refused_until_allowed(fresh: Path, command: list[str], file: str, says: str) -> None:
    if "sweep" in command and not Path("swept").exists():
        done(*command, *IMPORTS)
        own_code._known = own_code._Known()
    change(file)
    outcome = dhkd(*command, *IMPORTS)
    assert_one_line(
        outcome, 1, [says, f"expected sha256 {hashlib.sha256(FILES[file].encode()).hexdigest()[:12]}…, got"]
    )
    assert "--allow-changed-code" in outcome.err
    assert not Path("x").exists()
    done(*command, *IMPORTS, "--allow-changed-code")


def test_a_student_that_changed_is_no_business_of_the_cache(fresh: Path) -> None:
    change("my_nets.py")
    change("my_loss.py")
    done("train-student", "mine.yaml", "--cache", "c.zarr", "--out", "other", *CPU, *IMPORTS)


def test_a_run_that_goes_on_with_changed_code_keeps_its_record(fresh: Path) -> None:
    words = ["train-student", "mine.yaml", "--cache", "c.zarr", "--out", "kept", *CPU, *IMPORTS]
    done(*words)
    Path("kept/result.json").unlink()
    before = Path("kept/config.yaml").read_bytes()
    own_code._known = own_code._Known()
    change("my_nets.py")
    done(*words, "--resume", "--allow-changed-code")
    assert Path("kept/config.yaml").read_bytes() == before


# Code that is wrong


def trained(text: str, *words: str) -> Any:
    """Train a student with a file bad.py of this text."""
    Path("bad.py").write_text(f"import torch\nfrom torch import nn\nimport torch.nn.functional as F\n{text}\n")
    sys.modules.pop("bad", None)
    base = ["--set", "data.limit=100", "--set", "data.test_limit=20", "--set", "student.epochs=1", *CPU]
    return dhkd("train-student", "digits", *base, "--out", "bad", "--import", "bad.py", *words)


FORWARD = """
class Net(nn.Module):
    def __init__(self, num_classes): super().__init__(); self.fc = nn.Linear(3, num_classes)
    def forward(self, x): {}
"""
NETWORKS = {
    "def Net(num_classes): return 1 / 0": "network bad.py:Net: ZeroDivisionError: division by zero (bad.py, line 4)",
    "def Net(num_classes): pass": "network bad.py:Net: expected that it returns a torch.nn.Module, got a None",
    "def Net(): return None": "network bad.py:Net: expected a function or class of the number of classes",
    "def Net(num_classes, width): return None": "network bad.py:Net: width: expected a value, got none",
    "Net = nn.Linear(2, 2)": "got a network that exists already",
    "Net = 3": "network bad.py:Net: expected a function or a class, got a int",
    FORWARD.format("raise KeyError('no such thing')"): "KeyError: 'no such thing' (bad.py, line 7)",
    FORWARD.format("return self.fc(x.mean((2, 3))) * float('nan')"): "network bad.py:Net: expected finite outputs",
    FORWARD.format("return x.mean() / 0 * self.fc(x.mean((2, 3))) if self.training else self.fc(x.mean((2, 3)))"): (
        "loss term ce is not finite at epoch 1, step 1"
    ),
    FORWARD.format("return x"): "network bad.py:Net: expected logits of shape (2, 10)",
    FORWARD.format("return self.fc(x.mean((2, 3)))[:, 1:]"): "got float32 of shape (2, 9); build it with 10 outputs",
    FORWARD.format("return self.fc(x.mean((2, 3))).repeat(1, 2)"): "got float32 of shape (2, 20); build it with 10",
}


@pytest.mark.parametrize("text", NETWORKS)
def test_a_bad_network_is_one_line(fresh: Path, text: str) -> None:
    outcome = trained(text, "--set", "student=bad.py:Net", "--set", "objective=ce")
    assert_one_line(outcome, outcome.code, [NETWORKS[text]])
    assert outcome.code in (1, 2)
    assert Path("bad").exists() == ("at epoch 1" in NETWORKS[text]), "before it trains, no folder is taken"


@pytest.mark.parametrize("outputs", ["num_classes - 1", "num_classes + 3"])
def test_a_teacher_with_another_number_of_outputs_is_one_line(fresh: Path, outputs: str) -> None:
    Path("bad.py").write_text(f"import my_nets\ndef net(num_classes): return my_nets.Small({outputs})\n")
    sys.modules.pop("bad", None)
    imports = ["--import", "my_nets.py", "--import", "bad.py"]
    outcome = dhkd("train-teacher", "digits", "--set", "teacher=bad.py:net", *imports, "--out", "bad", *CPU)
    assert_one_line(outcome, 2, ["network bad.py:net: expected logits of shape (2, 10)", "build it with 10 outputs"])
    assert not Path("bad").exists()


LOSSES = {
    "def far(s, t, labels): return 1 / 0": "objective bad.py:far: ZeroDivisionError: division by zero (bad.py, line 4)",
    "def far(s, t, labels): return (s - t).square()": "expected that it returns a scalar, got the shape (",
    "def far(s, t, labels): return 3.0": "expected that it returns a scalar tensor, got a float",
    "def far(s, t, labels): pass": "expected that it returns a scalar tensor, got nothing",
    "def far(s, t, labels): return F.mse_loss(s.detach(), t)": "doesn't depend on the student's logits",
    "def far(s, t, labels): return F.mse_loss(s, t) * float('nan')": "loss term far is not finite at epoch 1, step 1",
    "def far(s, t): return s": "expected a function of (student_logits, teacher_logits, labels), got far(s, t)",
    "def far(s, t, labels, weight): return s": "objective 'bad.py:far': weight: expected a value, got none",
    "class far: pass": "expected a function or a subclass of Objective, got the class far",
    "far = 'text'": "objective bad.py:far: expected a function or a class, got a str",
    "def near(s, t, labels): return s": "unknown name in bad.py 'far': did you mean 'near'?",
}


@pytest.mark.parametrize("text", LOSSES)
def test_a_bad_loss_is_one_line(fresh: Path, text: str) -> None:
    outcome = trained(text, "--set", "student=resnet8", "--set", "objective=bad.py:far", *LIVE)
    assert_one_line(outcome, outcome.code, [LOSSES[text]])
    assert outcome.code in (1, 2)


LIVE = ["--import", "my_nets.py", "--set", "teacher=my_nets.py:Small", "--teacher", "t", "--set", "teacher.live=true"]


def test_wrong_options_of_a_loss_are_one_line(fresh: Path) -> None:
    for option, says in (("margin=a", "margin: expected a valid number"), ("other=1", "unknown option 'other'")):
        text = "def far(s, t, labels, margin: float = 1.0): return F.mse_loss(s, t)"
        words = ["--set", "objective=kd + 2 * bad.py:far", "--set", f"objectives.bad.py:far.{option}", *LIVE]
        assert_one_line(trained(text, *words), 2, [f"objective 'bad.py:far': {says}"])


RECIPES = {
    "class Views: pass": "views.kind bad.py:Views: expected a subclass of Recipe, got the class Views",
    "def Views(seed, blur=1): return 3": "views.kind bad.py:Views: blur: expected parameters of other names",
    "def Views(seed): return 3": "views.kind bad.py:Views: expected a Recipe, got a int",
    "def Views(seed): raise OSError('gone')": "views.kind bad.py:Views: OSError: gone (bad.py, line 4)",
    VIEWS.replace("Mirrored", "Views").replace("view_B[:, None] % 2", "1 / 0"): "bad.py: ZeroDivisionError",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_bad_recipe_is_one_line(fresh: Path, text: str) -> None:
    outcome = trained(
        text, "--set", "student=resnet8", "--set", "objective=ce", "--set", "views={kind: 'bad.py:Views'}"
    )
    assert_one_line(outcome, outcome.code, [RECIPES[text]])
    assert outcome.code in (1, 2)
