"""Whether the tests see faults: `python tests/faults/run.py [NAME…]` puts each into a copy of the tree and runs them.

A line for each fault says `seen` or `NOT SEEN`, and by which file; the exit code is 1 where one isn't, or where its
text isn't found just once. Without faults the same tests have to pass, which --without tells. Every fault gets a fork
of one process that has imported torch and whatever else is large.
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

import accelerate  # noqa: F401  # and the others, so that forks have them
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
FAILED = 1  # of pytest's exit codes: tests ran, and some failed


def copy_tree(folder: Path) -> None:
    """The working tree's files, and the folder that gives them their import name."""
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
    """The one source file that holds a text, once."""
    files = [file for source in SOURCES for file in sorted((folder / source).rglob("*.py"))]
    found = [file for file in files for _ in range(file.read_text().count(text))]
    if len(found) != 1:
        where = ", ".join(str(file.relative_to(folder)) for file in found) or "no file"
        raise LookupError(f"{text!r}: expected once in one file, found in {where}")
    return found[0]


@contextmanager
def seeded(changes: Mapping[str, str], folder: Path) -> Iterator[None]:
    """The copy with a fault in it."""
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
    """What pytest ends with on the test files of this name, which folders may share."""
    files = sorted(map(str, (folder / "tests").rglob(name)))
    words = ["-x", "-q", "-p", "no:cacheprovider", *(["-k", expression] if expression else []), *files]
    child = os.fork()
    if not child:
        _test(words, folder)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _test(words: Sequence[str], folder: Path) -> NoReturn:
    """Be a process of its own that has imported nothing of the program yet, and end with pytest's exit code."""
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
    """Whether all is as it should be, and what to say of it."""
    try:
        with seeded({} if without else fault.changes, folder):
            codes = {name: exit_code(name, expression, folder) for name, expression in fault.seen_by.items()}
    except LookupError as error:
        return False, f"NOT FOUND: {error}"
    good = all(code == (0 if without else FAILED) for code in codes.values())
    listed = ", ".join(f"{name} {code}" for name, code in codes.items())
    return good, f"{'passed' if without else 'seen'} by {listed}" if good else f"NOT SEEN: pytest's {listed}"


def main() -> int:
    """Run them, print, and say whether all were seen: 0, or 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="these faults alone")
    parser.add_argument("--without", action="store_true", help="run the tests of each without its fault")
    given = parser.parse_args()
    unknown = set(given.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not given.names or fault.name in given.names]
    torch.set_num_threads(1)
    # Bytecode is told apart by time and size, which a fault may leave as they are.
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
