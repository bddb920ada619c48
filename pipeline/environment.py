"""The environment of a command: its processes, and the versions and hardware that its result records."""

import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from dhkd.data.errors import DhkdError
from dhkd.data.render import Renderer
from dhkd.pipeline.engines.same import CODE, code_digest
from dhkd.pipeline.launch import settle_launch
from dhkd.stages.agreement import require_agreement
from dhkd.stages.processes import Processes, cpu_capabilities, resolve_precision, watched

log = logging.getLogger("dhkd")

PACKAGES = ("dhkd", "torch", "torchvision", "accelerate", "numpy", "zarr", "pillow")


@contextmanager
def processes_for(precision: str, *, cpu: bool) -> Iterator[Processes]:
    """Set up the processes that run this command together, and end them with the context. `precision` may be "auto".

    Raises `ProcessError` if the processes resolve different precisions, and if another process is lost.
    """
    _require_proc()
    settle_launch()
    resolved, reason = resolve_precision(precision, cpu)
    with watched() as watch:
        processes = Processes(resolved, cpu, watch)
        try:
            if reason is not None:
                log_once(processes, f"precision: {resolved}, because {reason}")
            require_agreement(processes, lambda: {"precision": resolved, "device": processes.device.type, **_program()})
            yield processes
            processes.part()
        finally:
            processes.end()


def _program() -> dict[str, Any]:
    """Return what the program is: versions of the libraries, and a digest of its own code, as plain values."""
    return {"versions": versions(), CODE: code_digest()}


def _require_proc() -> None:
    if sys.platform == "linux" and not Path("/proc/cpuinfo").exists():
        raise DhkdError(
            "/proc: expected the system's folder of processes, in which torch reads the processor's kind, found none;"
            " mount it (mount -t proc proc /proc)"
        )


def log_once(processes: Processes, line: str) -> None:
    """Log a line in the first process only."""
    if processes.is_first:
        log.info(line)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


@cache  # each reads a package's metadata
def _version(package: str) -> str:
    return version(package)


def hardware_name(device: torch.device) -> str:
    """Return the device's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine())


def hardware(device: torch.device) -> str:
    """Return the device's name and, for a CPU, torch's number of threads."""
    name = hardware_name(device)
    return name if device.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"


def unreadable_files(renderer: Renderer, processes: Processes) -> list[str] | None:
    """Return the files that any process replaced by black images in this call, or None if all files were readable."""
    if renderer.in_memory:
        return None
    return sorted(processes.gather(list(renderer.unreadable))) or None
