"""Run two commits on this machine and compare them bit for bit: `python -m tests.golden.compare_commits OLD NEW`.

OLD and NEW are revisions or folders. The command line of each one trains, caches and checks in a separate folder, with
the same relative paths. A line for each case says "equal" or gives the first difference; the exit code is 1 if any case
differs. These are compared: every file of the caches and runs, byte for byte except for times and versions in metrics,
results and tables; the JSON that commands print; exit codes; and the error message of a command that fails. Checkpoints
and SVG files are not compared.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.golden.cases import (
    CASES,
    COMPUTING,
    ENVIRONMENT,
    NO_TRACKER,
    OPTIONS,
    PREPARATION,
    SIGNALS,
    TEACHER,
    cache_teacher,
    sets,
)
from tests.golden.commands import launcher

ROOT = Path(__file__).parents[2]
COMMANDS = Path(__file__).parent / "commands.py"
TIMES = {"seconds", "train_seconds", "samples_per_second", "rows_per_second"}
UNCOMPARED = TIMES | {"versions"}
NEVER_ALIKE = ("checkpoint/state.pt", ".svg")  # checkpoints hold times, and SVG files hold random names
SOURCES = ("pipeline", "stages", "data", "configs", "benchmarks")

PHOTOGRAPHS = """
description: photographs
data: {source: image-folder}
views: {kind: random-resized-crop, size: 24, flip: true, seed: 3}
teacher: {architecture: resnet8, epochs: 1, batch_size: 16, lr: 0.05}
cache: {views: 4, codec: float32, block_mb: 0.001, batch_size: 16, views_at_once: 3}
student: {architecture: resnet8, epochs: 1, batch_size: 16, lr: 0.05, view_schedule: block, window: 30}
objective: dhkd
"""

Commands = dict[str, list[str]]  # each command's words, by the case's name


def _photographs(command: str, out: str, *words: str) -> list[str]:
    where = ["--data-root", "photographs", "--workers", "0", "--cpu"]
    where += NO_TRACKER if command.startswith("train") else ()
    return [command, "photographs.yaml", *where, *words, "--out", out]


def _of_photographs() -> Commands:
    teacher = ["--teacher", "runs/photographs-teacher"]
    cache = ["--cache", "caches/photographs.zarr"]
    return {
        "photographs-teacher": _photographs("train-teacher", "runs/photographs-teacher"),
        "photographs": _photographs("cache-teacher", "caches/photographs.zarr", *teacher),
        "photographs-tar": _photographs("cache-teacher", "caches/photographs-tar", *teacher, "--store", "webdataset"),
        "photographs-block": _photographs("train-student", "runs/photographs-block", *cache),
        "photographs-cycle": _photographs(
            "train-student", "runs/photographs-cycle", *cache, "--set", "student.view_schedule=cycle"
        ),
    }


def _of_several_students() -> Commands:
    settings = ["digits", *sets([*OPTIONS, "student.epochs=1"]), *COMPUTING, *NO_TRACKER, "--cache", SIGNALS]
    grid = ["--grid", "objective=ce,kd,dhkd"]
    return {
        "side-by-side": ["train-student", *settings, *grid, "--out", "runs/side-by-side"],
        "sweep": ["sweep", *settings, *grid, "--seeds", "2", "--together", "2", "--out", "runs/sweep", "--json"],
        "report": ["report", "runs/sweep", "--json"],
    }


def _of_finished_ones() -> Commands:
    """Return the commands that use finished caches and runs, and commands that are refused."""
    made_with = ["--preset", "digits", *sets(OPTIONS), "--teacher", TEACHER, "--cpu"]
    checks = {
        f"{command}-{name}": [command, f"golden/{name}", "--json"]
        for name in ("version-2.zarr", "version-2-tar")
        for command in ("inspect", "verify")
    }
    return checks | {
        "inspect-signals": ["inspect", SIGNALS, "--json"],
        "verify-signals": ["verify", SIGNALS, *made_with, "--json"],
        "convert-to-tar": ["convert", SIGNALS, "caches/converted-tar", "--store", "webdataset", "--json"],
        "convert-to-int8": ["convert", SIGNALS, "caches/converted.zarr", "--codec", "int8", "--allow-loss", "--json"],
        "evaluate": ["evaluate", CASES[0].out, "--cpu", "--json"],
        "export": ["export", CASES[0].out, "--out", "runs/exported.safetensors", "--json"],
        "plan": ["plan", "digits", "--teacher-rate", "1000", "--student-rate", "500", "--json"],
        "methods": ["methods", "--json"],
        "presets": ["presets", "--json"],
        "refused-objective": [*CASES[2].words, "--set", "objective=kf"],
        "refused-preset": ["train-student", "digitz", "--out", "runs/none"],
        "refused-folder": CASES[2].words,
    }


def _alone() -> Commands:
    """Return the commands that one process runs, in order."""
    trained = {case.name: case.words for case in CASES if case.processes == 1}
    return PREPARATION | trained | _of_several_students() | _of_photographs() | _of_finished_ones()


def _of_two() -> Commands:
    """Return the commands that two processes run after those of one process."""
    cached = cache_teacher("caches/signals.zarr")
    cached[cached.index("caches/signals.zarr")] = "caches/two-processes.zarr"
    return {"two-processes": cached} | {case.name: case.words for case in CASES if case.processes == 2}


def _make_photographs(folder: Path) -> None:
    """Write a small ImageNet: 48 training and 12 test photographs of four classes, of several sizes, some grey."""
    rng = np.random.default_rng(0)
    for number in range(60):
        split = "train" if number < 48 else "val"
        file = folder / "photographs" / split / f"n{number % 4:08d}" / f"image_{number}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(30, 70, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
        (coarse.convert("L") if number % 9 == 0 else coarse).save(file, "JPEG")
    (folder / "photographs.yaml").write_text(PHOTOGRAPHS)


def _tree(which: str, at: Path) -> Path:
    """Build a package `dhkd` from a revision or folder, and return the folder that holds the package."""
    source = Path(which).resolve()
    if not (source / "pyproject.toml").is_file():
        source = at / "source"
        source.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", which], check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    package = at / "types" / "dhkd"
    package.mkdir(parents=True)
    for name in SOURCES:
        (package / name).symlink_to(source / name)
    return package.parent


def _run(commands: Commands, side: Path, processes: int) -> dict[str, Any]:
    """Run the commands in the folder `run` of this side, and return each command's outcome."""
    words = side / f"commands-{processes}.json"
    words.write_text(json.dumps(list(commands.values())))
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(side / "types"), "XDG_CACHE_HOME": str(side / "user")}
    script = [*launcher(processes), str(COMMANDS), str(words)]
    done = subprocess.run(script, cwd=side / "run", env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if len(lines) < len(commands):
        raise SystemExit(f"{side.name}: ended after {len(lines)} of {len(commands)} commands\n{done.stderr[-3000:]}")
    return dict(zip(commands, lines, strict=True))


def _results(which: str, side: Path) -> tuple[Path, dict[str, Any]]:
    """Run all commands with one tree. Return the folder that they wrote to, and each command's outcome."""
    _tree(which, side)
    run = side / "run"
    run.mkdir()
    _make_photographs(run)
    for name in ("version-2.zarr", "version-2-tar"):
        shutil.copytree(ROOT / "tests" / "golden" / name, run / "golden" / name)
    return run, _run(_alone(), side, 1) | _run(_of_two(), side, 2)


def _plain(value: Any) -> Any:
    """Return a JSON value without the entries that may differ from run to run."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if key not in UNCOMPARED}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield each difference between two JSON values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in old | new:
            if key not in old or key not in new:
                yield f"{where}{key}: only in {'old' if key in old else 'new'}"
            else:
                yield from _differences(old[key], new[key], f"{where}{key}: ")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{where}{number}: ")
    elif old != new:
        yield f"{where}{old!r} and {new!r}"


def _json_lines(text: str) -> Any:
    return _plain([json.loads(line) for line in text.splitlines()])


def _rows(text: str) -> Any:
    return _plain(list(csv.DictReader(text.splitlines())))


def _file_differences(old: Path, new: Path) -> Iterator[str]:
    """Yield each difference between the files of two runs or caches."""
    names = [
        {str(file.relative_to(side)) for file in [side, *side.rglob("*")] if file.is_file()} for side in (old, new)
    ]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name}: only in {'old' if name in names[0] else 'new'}"
    for name in sorted(names[0] & names[1]):
        one, other = (old / name).read_bytes(), (new / name).read_bytes()
        if name.endswith("metrics.jsonl"):
            yield from _differences(_json_lines(one.decode()), _json_lines(other.decode()), f"{name}: line ")
        elif name.endswith("result.json"):
            yield from _differences(_plain(json.loads(one)), _plain(json.loads(other)), f"{name}: ")
        elif name.endswith(".csv"):
            yield from _differences(_rows(one.decode()), _rows(other.decode()), f"{name}: row ")
        elif not name.endswith(NEVER_ALIKE) and one != other:
            at = next(
                (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
            )
            yield f"{name}: {len(one)} and {len(other)} bytes, different from byte {at} on"


def _out_of(words: list[str]) -> str | None:
    if words[0] == "convert":
        return words[2]
    return words[words.index("--out") + 1] if "--out" in words else None


def _case_differences(words: list[str], old: tuple[Path, Any], new: tuple[Path, Any]) -> Iterator[str]:
    """Yield each difference between two outcomes of one command; if it failed, exit codes and messages come first."""
    (old_run, (old_code, old_out, old_err)), (new_run, (new_code, new_out, new_err)) = old, new
    if old_code or new_code:
        yield from _differences([old_code, old_err.splitlines()[-1:]], [new_code, new_err.splitlines()[-1:]], "said ")
    out = _out_of(words)
    if out:
        yield from _file_differences(old_run / out, new_run / out)
    if "--json" in words and old_out != new_out:
        yield from _differences(_plain(json.loads(old_out)), _plain(json.loads(new_out)), "printed ")


def main() -> int:
    """Compare the two, print a line for each case, and return 0 if all are equal, or else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--keep", type=Path, help="a new folder that keeps what both wrote")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep.resolve() if given.keep else Path(temporary)
        sides = [_results(which, folder / side) for side, which in (("old", given.old), ("new", given.new))]
        unequal = 0
        for name, words in (_alone() | _of_two()).items():
            first = next(_case_differences(words, *((run, outcomes[name]) for run, outcomes in sides)), "equal")
            unequal += first != "equal"
            print(f"{name}: {first}", flush=True)  # noqa: T201
    print(f"{unequal} of {len(sides[0][1])} differ")  # noqa: T201
    return int(unequal > 0)


if __name__ == "__main__":
    sys.exit(main())
