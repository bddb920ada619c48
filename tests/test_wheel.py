"""The wheel that users install holds every module and preset, and presets load from the wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "stages", "data", "configs", "benchmarks")

LIGHT = """
import sys
import dhkd
print(dhkd.__file__)
heavy = {"torch", "numpy", "pydantic", "yaml", "zarr", "accelerate", "rich", "click", "importlib.metadata"}
print(heavy & set(sys.modules))
print(dhkd.__version__)
print(dhkd.DhkdError.__name__, "torch" in sys.modules)
"""

LIST = """
import dhkd.configs.load as load
print(load.__file__)
for name in load.preset_names():
    load.load_experiment(name)
    print(name)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel, built from a copy of the sources."""
    pytest.importorskip("setuptools", reason="needs setuptools to build the wheel")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    script = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("dhkd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_every_module_and_preset_is_in_the_wheel(unpacked: Path) -> None:
    kinds = ("py", "yaml", "html", "css", "js", "png", "npz")
    wanted = [file for folder in FOLDERS for kind in kinds for file in (ROOT / folder).rglob(f"*.{kind}")]
    root = ROOT / "pipeline" / "package"  # the package dhkd itself
    places = {f: f.relative_to(root if f.is_relative_to(root) else ROOT) for f in wanted}
    assert [str(f) for f, place in places.items() if not (unpacked / "dhkd" / place).is_file()] == []
    assert (unpacked / "dhkd" / "py.typed").is_file()


def test_importing_the_package_is_light(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", LIGHT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    file, heavy, version, error = done.stdout.splitlines()
    assert Path(file) == unpacked / "dhkd" / "__init__.py"
    assert heavy == "set()"
    assert version[0].isdigit()
    assert error == "DhkdError False"


def test_presets_load_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", LIST], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    where, *names = done.stdout.split()
    assert Path(where).is_relative_to(unpacked), "modules of the wheel, not of the sources"
    assert "cifar100/resnet56-resnet20" in names
    assert "demo" in names
