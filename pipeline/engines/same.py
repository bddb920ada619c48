"""What decides results on a worker: this program's code, Python, and the libraries; they must be the command's.

Every difference refuses the worker, and none only warns: a cache or a table that was computed by two programs can't be
told apart afterwards. What is not compared: the build of a library (2.11.0+cpu and 2.11.0+cu128 are one version,
as two kinds of devices are allowed), Python's patch version, and libraries that only move bytes.
"""

import hashlib
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path

from dhkd.data.errors import ProcessError

FOLDERS = ("pipeline", "stages", "data", "configs")
LIBRARIES = ("dhkd", "torch", "torchvision", "numpy", "pillow", "accelerate")
OPTIONAL = ("timm", "transformers", "datasets")  # compared only where the command has them
CODE = "dhkd's code"
SHOWN = 12  # digits of a digest that a message shows


@dataclass(frozen=True)
class Program:
    """Versions by the name of a library, and the digest of this program's code, as one process has them."""

    parts: Mapping[str, str]


def this_program() -> Program:
    """Return what decides results in this process."""
    libraries = {name: found for name in (*LIBRARIES, *OPTIONAL, *_offering()) if (found := _version(name)) is not None}
    python = ".".join(platform.python_version_tuple()[:2])
    return Program({CODE: code_digest(), "python": python, **libraries})


def require_same(expected: Program) -> None:
    """Raise `ProcessError`, which names this node, if this process is not the same program as the `expected` one."""
    differences = differences_of(expected, this_program())
    if differences:
        raise ProcessError(
            f"program on {socket.gethostname()}: {'; '.join(differences)}; install there what the command has"
        )


def differences_of(expected: Program, found: Program) -> list[str]:
    """List what differs from the `expected` program; what only the found one has, changes nothing."""
    return [
        f"{name} expected {_shown(name, value)}, got {_shown(name, found.parts.get(name, 'none'))}"
        for name, value in expected.parts.items()
        if found.parts.get(name) != value
    ]


@cache
def code_digest() -> str:
    """Return a digest of this program's Python files."""
    digest = hashlib.sha256()
    for name in FOLDERS:
        spec = find_spec(f"dhkd.{name}")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def _offering() -> list[str]:
    """Return the installed packages that offer own code through entry points."""
    return sorted({entry.dist.name for entry in entry_points(group="dhkd") if entry.dist is not None} - {"dhkd"})


def _shown(name: str, value: str) -> str:
    return f"{value[:SHOWN]}…" if name == CODE and value != "none" else value
