"""Check that the tests see faults: `python tests/faults/run.py [NAME…]` seeds each in a copy of the tree and runs them.

A line for each fault says `seen` or `NOT SEEN`, and by which files. The exit code is 1 if a fault isn't seen, or if its
text doesn't occur exactly once. The soak's tests are left out, as in CI. With --without, the same tests run without the
faults and have to pass. Each test file runs in a fork of a process that has already imported torch and the other large
packages.
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

import accelerate  # noqa: F401  # this and the others: forks need not import them again
import hypothesis  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pytest
import sklearn.datasets  # noqa: F401
import torch
import torchvision  # noqa: F401
import zarr  # noqa: F401
from faults import FAULTS, Fault
from places import SOURCES, file_of_tests, place_of

ROOT = Path(__file__).parents[2]
FAILED = 1  # pytest's exit code if tests ran and some failed


def copy_tree(folder: Path) -> None:
    """Copy the working tree's files, and make the folder that gives them their import name."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, stdout=subprocess.PIPE, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    package = folder / ".types" / "dhkd"
    package.mkdir(parents=True)
    for name in SOURCES:
        (package / name).symlink_to(folder / name)
    (package / "__init__.py").symlink_to(folder / "pipeline" / "package" / "__init__.py")


@contextmanager
def seeded(changes: Mapping[str, str], folder: Path) -> Iterator[None]:
    """Put a fault into the copy, and take it out at the end."""
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
    """Pytest's exit code for the selected tests of a file."""
    file = str(file_of_tests(name, folder))
    words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not soak", *(["-k", expression] if expression else []), file]
    child = os.fork()
    if not child:
        _test(words, folder)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _test(words: Sequence[str], folder: Path) -> NoReturn:
    """Run pytest in this fork, which has imported nothing of the program yet, and end with its exit code."""
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    of_the_original = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    sys.path[:] = [str(folder / ".types"), *(path for path in sys.path if path not in of_the_original)]
    os.environ["PYTHONPATH"] = sys.path[0]
    os.chdir(folder)
    code = 99
    try:
        code = int(pytest.main(list(words)))
    finally:
        os._exit(code)


def verdict(fault: Fault, folder: Path, *, without: bool) -> tuple[bool, str]:
    """Whether the tests did what they should, and the text that reports it."""
    try:
        with seeded({} if without else fault.changes, folder):
            codes = {name: exit_code(name, expression, folder) for name, expression in fault.seen_by.items()}
    except LookupError as error:
        return False, f"NOT FOUND: {error}"
    good = all(code == (0 if without else FAILED) for code in codes.values())
    listed = ", ".join(f"{name} {code}" for name, code in codes.items())
    return good, f"{'passed' if without else 'seen'} by {listed}" if good else f"NOT SEEN: pytest's {listed}"


def main() -> int:
    """Run the faults and print a line for each; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these faults")
    parser.add_argument("--without", action="store_true", help="run the tests without the faults")
    options = parser.parse_args()
    unknown = set(options.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not options.names or fault.name in options.names]
    torch.set_num_threads(1)
    # Python recognizes stale bytecode by time and size, and a fault may change neither.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        for fault in chosen:
            good, line = verdict(fault, folder, without=options.without)
            bad += not good
            print(f"{fault.name}: {line}  ({fault.what})", flush=True)  # noqa: T201
    print(f"{len(chosen) - bad} of {len(chosen)} {'passed' if options.without else 'seen'}")  # noqa: T201
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
