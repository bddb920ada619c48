"""Imports point one way, each heavy dependency has one home, and asking for help costs nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "stages", "data", "configs")

# What the modules of each folder may import from the project. Stages share only modules that serve all of them.
MAY_IMPORT = {
    "pipeline": ("pipeline", "stages", "data", "configs"),
    "stages/models": ("stages.models", "stages.processes", "data"),
    "stages/cache": ("stages.cache", "stages.models", "stages.processes", "data"),
    "stages/train": (
        *("stages.train", "stages.models", "stages.processes", "stages.agreement", "stages.trackers", "data"),
    ),
    "stages/report": ("stages.report", "data"),
    "stages": ("stages.processes", "stages.watch", "data"),  # the files beside those folders
    "data": ("data",),
    "configs": ("configs", "data.errors", "data.shown"),
}

# The only modules that may import each package.
HOMES = {
    "click": {f"pipeline/cli/{file.name}" for file in (ROOT / "pipeline" / "cli").glob("*.py")},
    "accelerate": {"stages/processes.py", "stages/trackers.py"},
    "mlflow": {"stages/trackers.py"},
    "wandb": {"stages/trackers.py"},
    "zarr": {"data/cache/layouts/zarr_chunks.py"},
    "webdataset": {"data/sources/shard_urls.py"},
    "PIL": {
        "data/images/cuts.py",
        "data/images/decoding.py",
        "data/images/levels.py",
        "data/images/reduced.py",
        "data/recipes/operations/policies/single_steps.py",
        "data/sources/glyphs.py",
    },
    "matplotlib": {"stages/report/pictures.py"},
    "sklearn": {"stages/report/geometry.py"},
    "scipy": set(),
    "plotly": {"stages/report/charts.py", "stages/report/page.py"},
    "jinja2": {"stages/report/page.py"},
    "torchvision": {
        "data/sources/cifar100.py",
        "data/sources/torchvision_sets.py",
        "stages/models/class_names.py",
        "stages/models/libraries.py",
    },
    "datasets": {"data/sources/huggingface.py", "data/sources/parquet_images.py"},
    "timm": {
        "stages/models/class_names.py",
        "stages/models/libraries.py",
        "stages/train/optimizers.py",
        "stages/train/parameter_groups.py",
    },
    "onnx": {"stages/models/onnx_file.py"},
    "onnxruntime": {"stages/models/onnx_file.py"},
    "onnxscript": {"stages/models/onnx_file.py"},
    "submitit": {"pipeline/engines/slurm.py", "pipeline/engines/slurm_job.py"},
    "obstore": {"data/storage/bucket.py"},
    "google_crc32c": {
        "data/cache/index.py",
        "data/cache/reader.py",
        "data/cache/layouts/tar_shards.py",
        "data/cache/writer.py",
        "data/cache/layouts/zarr_chunks.py",
        "data/disk/shared_tensors.py",
    },
    "pydantic": {
        "data/options.py",
        "configs/schema.py",
        "configs/places.py",
        "configs/load.py",
        "data/cache/codecs/__init__.py",
        "data/cache/codecs/floats.py",
        "data/cache/codecs/int8.py",
        "data/cache/codecs/top_k.py",
        "data/cache/index.py",
        "data/cache/manifest.py",
    },
    "rich": {"data/progress.py", "pipeline/cli/tables/plain.py"},
}


def modules() -> list[str]:
    return sorted(str(file.relative_to(ROOT)) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the absolute names that a module imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# The only module that may import the benchmarks, which themselves import everything.
STARTS_BENCHMARKS = "pipeline/cli/bench.py"


def wrong_arrows(module: str, names: Iterable[str]) -> list[str]:
    """Return the forbidden ones of a module's imports."""
    folder = next(folder for folder in MAY_IMPORT if module.startswith(f"{folder}/"))
    allowed = [f"dhkd.{name}." for name in (*MAY_IMPORT[folder], *(["benchmarks"] * (module == STARTS_BENCHMARKS)))]
    return [
        name
        for name in names
        if (name.startswith("dhkd") and not any(f"{name}.".startswith(start) for start in allowed))
        or name.partition(".")[0] in FOLDERS
    ]


@cache
def names_imported() -> dict[str, list[str]]:
    """The absolute names that each module imports."""
    return {module: list(imported(ast.parse((ROOT / module).read_text()))) for module in modules()}


def test_imports_point_one_way() -> None:
    wrong = {module: wrong_arrows(module, names) for module, names in names_imported().items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_heavy_dependencies_have_one_home() -> None:
    astray = {
        (module, package)
        for module, names in names_imported().items()
        for package in {name.partition(".")[0] for name in names}
        if module not in HOMES.get(package, {module})
    }
    assert astray == set()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data/x.py", "from dhkd.stages.models import build_network"),
        ("data/x.py", "def f():\n    import dhkd.pipeline.build"),
        ("stages/train/x.py", "from dhkd.stages.cache.write import Teacher"),
        ("stages/report/x.py", "from dhkd.configs import load"),
        ("configs/x.py", "from dhkd.data.recipes.crop_flip import CropFlip"),
        ("stages/x.py", "from data.views import CropFlip"),
        ("pipeline/x.py", "from dhkd.benchmarks.run import bench"),
    ],
)
def test_a_wrong_arrow_is_detected(module: str, line: str) -> None:
    assert len(wrong_arrows(module, imported(ast.parse(line)))) == 1


def modules_loaded_by(*arguments: str) -> set[str]:
    """Run the command line with these arguments, and return the top-level packages that were loaded at its end."""
    script = (
        "import sys\n"
        "from dhkd.pipeline.cli import cli\n"
        f"cli({list(arguments)!r}, standalone_mode=False)\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout
    return set(done.stderr.split())


@pytest.mark.parametrize("command", ["", "train-student", "plan", "bench"])
def test_help_imports_nothing_heavy(command: str) -> None:
    loaded = modules_loaded_by(*command.split(), "--help")
    assert "click" in loaded
    assert loaded & {"torch", "numpy", "pydantic", "yaml", "zarr", "accelerate", "rich", "matplotlib"} == set()


def test_a_wrong_preset_is_reported_before_torch_is_imported() -> None:
    script = (
        "import sys\n"
        "from dhkd.pipeline.cli import main\n"
        "sys.argv = ['dhkd', 'train-teacher', 'nothing', '--out', 'nowhere']\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("error: unknown preset 'nothing'")


def test_presets_need_no_torch() -> None:
    loaded = modules_loaded_by("presets")
    assert "yaml" in loaded
    assert loaded & {"torch", "numpy", "zarr", "accelerate"} == set()
