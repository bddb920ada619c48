"""Every method ends with finite losses on the presets that anyone can run, with their options and default weights."""

import json
import math
from pathlib import Path

import pytest
from dhkd.configs.load import load_experiment
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.training import train_student, train_teacher
from dhkd.stages.train.objectives import OBJECTIVES

FLOAT32 = ("teacher.precision=float32", "cache.precision=float32", "student.precision=float32")
# `digits` as it is; of `demo` a tenth of the images, which is enough to diverge within an epoch.
PRESETS = {"digits": FLOAT32, "demo": (*FLOAT32, "data.limit=1000", "data.test_limit=200", "student.epochs=2")}
DATA = DataOptions()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    for preset, settings in PRESETS.items():
        train_teacher(load_experiment(preset, [*settings]), folder / preset, data=DATA, cpu=True)
    return {preset: folder / preset for preset in PRESETS}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_method_ends_finite(objective: str, preset: str, teachers: dict[str, Path], tmp_path: Path) -> None:
    """A cache would hold the same signals; the teacher runs live, so that one fixture serves every method."""
    settings = [*PRESETS[preset], f"objective={objective}", "teacher.live=true"]
    out = tmp_path / "run"
    result = train_student(load_experiment(preset, settings), None, out, data=DATA, teacher=teachers[preset], cpu=True)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        assert all(math.isfinite(value) for value in json.loads(line).values())
    if preset == "digits":
        assert result.last_top1 > 50, "ten classes: finite, and no collapse"
