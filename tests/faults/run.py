"""Check that the tests detect faults: `python tests/faults/run.py [NAME…]`.

Each fault is put into a copy of the tree, and its tests are run. A line for each fault says `seen` or `NOT SEEN`, with
the test files and pytest's exit codes. The exit code is 1 if a fault isn't seen, or if its text isn't found exactly
once. With --without, the same tests run without the faults and have to pass. The tests run in forks of one process that
has already imported torch and other large packages.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import accelerate  # noqa: F401  # this and other large packages are imported for the forks
import hypothesis  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pytest
import sklearn.datasets  # noqa: F401
import torch
import torchvision  # noqa: F401
import zarr  # noqa: F401
from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
SOURCES = ("pipeline", "stages", "data", "configs", "benchmarks")
FAILED = 1  # pytest's exit code if tests ran and some of them failed


def copy_tree(folder: Path) -> None:
    """Copy the working tree's files into `folder`, and add the package folder that gives them their import name."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, stdout=subprocess.PIPE, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    package = folder / ".types" / "dhkd"
    package.mkdir(parents=True)
    for name in SOURCES:
        (package / name).symlink_to(folder / name)


def place_of(text: str, folder: Path) -> Path:
    """Return the source file that holds `text`. Raises `LookupError` unless exactly one file holds it once."""
    files = [file for source in SOURCES for file in sorted((folder / source).rglob("*.py"))]
    found = [file for file in files for _ in range(file.read_text().count(text))]
    if len(found) != 1:
        where = ", ".join(str(file.relative_to(folder)) for file in found) or "no file"
        raise LookupError(f"{text!r}: expected once in one file, found in {where}")
    return found[0]


@contextmanager
def seeded(changes: Mapping[str, str], folder: Path) -> Iterator[None]:
    """Put a fault into the copy of the tree for the time of the context."""
    before: dict[Path, str] = {}
    try:
        for old, new in changes.items():
            file = place_of(old, folder)
            text = file.read_text()
            before.setdefault(file, text)
            file.write_text(text.replace(old, new))
        yield
    finally:
        for file, text in before.items():
            file.write_text(text)


def exit_code(name: str, expression: str, folder: Path) -> int:
    """Run the test files of this name, in whichever folders, in a fork; return pytest's exit code."""
    files = sorted(map(str, (folder / "tests").rglob(name)))
    words = ["-x", "-q", "-p", "no:cacheprovider", *(["-k", expression] if expression else []), *files]
    child = os.fork()
    if not child:
        _test(words, folder)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _test(words: Sequence[str], folder: Path) -> NoReturn:
    """Run pytest in this fork, which has imported nothing of the program yet, and exit with pytest's exit code."""
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    others = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    sys.path[:] = [str(folder / ".types"), *(path for path in sys.path if path not in others)]
    os.environ["PYTHONPATH"] = sys.path[0]
    os.chdir(folder)
    code = 99
    try:
        code = int(pytest.main(list(words)))
    finally:
        os._exit(code)


def verdict(fault: Fault, folder: Path, *, without: bool) -> tuple[bool, str]:
    """Return whether the fault's tests ended as expected, and a line that reports it."""
    try:
        with seeded({} if without else fault.changes, folder):
            codes = {name: exit_code(name, expression, folder) for name, expression in fault.seen_by.items()}
    except LookupError as error:
        return False, f"NOT FOUND: {error}"
    good = all(code == (0 if without else FAILED) for code in codes.values())
    listed = ", ".join(f"{name} {code}" for name, code in codes.items())
    return good, f"{'passed' if without else 'seen'} by {listed}" if good else f"NOT SEEN: pytest's {listed}"


def main() -> int:
    """Run the chosen faults, print a line for each, and return 0 if all ended as expected, or else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="these faults alone")
    parser.add_argument("--without", action="store_true", help="run the tests of each without its fault")
    given = parser.parse_args()
    unknown = set(given.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not given.names or fault.name in given.names]
    torch.set_num_threads(1)
    # Python recognizes outdated bytecode by a source file's time and size, and a fault may change neither.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        for fault in chosen:
            good, line = verdict(fault, folder, without=given.without)
            bad += not good
            print(f"{fault.name}: {line}  ({fault.what})", flush=True)  # noqa: T201
    print(f"{len(chosen) - bad} of {len(chosen)} {'passed' if given.without else 'seen'}")  # noqa: T201
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
