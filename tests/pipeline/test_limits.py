"""Limits of control groups: files as the kernel writes them, in a folder that stands for /sys/fs/cgroup."""

import os
from pathlib import Path

import psutil
import pytest
from dhkd.pipeline.limits import available_cores, available_memory

MB = 1 << 20


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    (folder / "own").write_text(own)
    for name, content in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "groups", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": f"{64 * MB}\n", "memory.current": f"{24 * MB}\n"}, 40 * MB),
        ("0::/job/step\n", {"job/memory.max": f"{64 * MB}\n", "job/memory.current": f"{60 * MB}\n"}, 4 * MB),
        (
            "0::/\n",
            {
                "memory.max": f"{64 * MB}",
                "memory.current": f"{60 * MB}",
                "memory.stat": f"anon 5\ninactive_file {10 * MB}\n",
            },
            14 * MB,
        ),
        ("0::/\n", {"memory.max": f"{64 * MB}\n", "memory.current": f"{65 * MB}\n"}, 0),
        (
            "4:memory:/job\n2:cpu,cpuacct:/\n",
            {"memory/job/memory.limit_in_bytes": f"{64 * MB}\n", "memory/job/memory.usage_in_bytes": f"{MB}\n"},
            63 * MB,
        ),
        (
            "4:memory:/outside/the/container\n",
            {"memory/memory.limit_in_bytes": f"{64 * MB}\n", "memory/memory.usage_in_bytes": f"{2 * MB}\n"},
            62 * MB,
        ),
    ],
)
def test_a_groups_memory_is_the_limit(own: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert available_memory(*groups(tmp_path, own, files)) == expected


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max\n", "memory.current": "5\n"},
        {"memory.max": "", "memory.current": ""},
        {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "5\n"},
    ],
)
def test_without_a_limit_the_machines_memory_counts(files: dict[str, str], tmp_path: Path) -> None:
    available = psutil.virtual_memory().available
    assert 0.5 * available < available_memory(*groups(tmp_path, "0::/\n", files)) < 2 * available


def test_without_the_systems_folders_the_machines_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "none"))
    assert available_memory(tmp_path / "none", tmp_path / "none") > MB


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/job\n", {"job/cpu.max": "100000 100000\n", "cpu.max": "max 100000\n"}, 1),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}, None),
    ],
)
def test_a_groups_cores_are_the_limit(
    own: str, files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    assert available_cores(*groups(tmp_path, own, files)) == (expected or 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert available_cores(*groups(tmp_path, own, files)) == 1
