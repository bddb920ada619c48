"""A file is finished or absent, whatever happens while it is being written."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from dhkd.data.disk.atomic import sync_folder, write_atomically
from dhkd.data.disk.user_cache import user_cache_folder

from tests.disks import small_disk

OLD, NEW = b"old", b"the new content"


class Stopped(BaseException):
    """Not an `Exception`, like KeyboardInterrupt."""


def halfway(
    error: BaseException | None, seen: list[bytes] | None = None, path: Path | None = None
) -> Callable[[BinaryIO], None]:
    """A writer that, in the middle, looks at `path` and then raises `error`."""

    def write(stream: BinaryIO) -> None:
        stream.write(NEW[:5])
        stream.flush()
        if seen is not None and path is not None:
            seen.append(path.read_bytes() if path.exists() else b"nothing")
        if error is not None:
            raise error
        stream.write(NEW[5:])

    return write


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with small_disk(tmp_path / "disk", "64k") as folder:
        yield folder


def test_a_new_file_and_its_folders_appear_when_finished(tmp_path: Path) -> None:
    path, seen = tmp_path / "a" / "b" / "file", list[bytes]()
    write_atomically(path, halfway(None, seen, path))
    assert seen == [b"nothing"]
    assert path.read_bytes() == NEW
    assert os.listdir(path.parent) == ["file"]


def test_the_old_content_is_there_until_the_new_one_is_finished(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", list[bytes]()
    path.write_bytes(OLD)
    write_atomically(path, halfway(None, seen, path))
    assert seen == [OLD]
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), Stopped()], ids=repr)
@pytest.mark.parametrize("existing", [True, False])
def test_an_exception_in_the_middle_changes_nothing(existing: bool, error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if existing:
        path.write_bytes(OLD)
    with pytest.raises(type(error)) as caught:
        write_atomically(path, halfway(error))
    assert caught.value is error
    assert os.listdir(tmp_path) == (["file"] if existing else [])
    assert not existing or path.read_bytes() == OLD


def test_a_folder_in_its_place_is_an_os_error_without_litter(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "file", halfway(None))
    assert os.listdir(tmp_path) == ["file"]
    assert os.listdir(tmp_path / "file") == []


def test_a_file_in_place_of_a_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file" / "below", halfway(None))
    assert (tmp_path / "file").read_bytes() == OLD


@pytest.mark.parametrize("size", [60_000, 200_000], ids=["at the end", "in the middle"])
def test_a_full_disk_leaves_the_old_file(size: int, tiny_disk: Path) -> None:
    path = tiny_disk / "file"
    write_atomically(path, lambda stream: stream.write(bytes(10_000)))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, lambda stream: stream.write(b"x" * size))
    assert os.listdir(tiny_disk) == ["file"]
    assert path.read_bytes() == bytes(10_000)
    write_atomically(
        path, lambda stream: stream.write(b"x" * 40_000)
    )  # needs the space that left-over files would take
    assert path.stat().st_size == 40_000


KILLED = """
import os, signal, sys
from pathlib import Path
from dhkd.data.disk.atomic import write_atomically

def write(stream):
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path(sys.argv[1]), write)
"""


def test_a_kill_leaves_the_old_file_and_at_most_one_partial(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    left = sorted(name for name in os.listdir(tmp_path) if name != "file")
    assert len(left) == 1
    assert left[0].endswith(".partial")
    write_atomically(path, halfway(None))
    assert path.read_bytes() == NEW


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power leaves what was synced: at each fsync, what is synced, and what the file's name means then."""
    path, synced = tmp_path / "file", list[tuple[str, bytes, bytes]]()
    path.write_bytes(OLD)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        content = b"folder" if target.is_dir() else target.read_bytes()
        synced.append((str(target) if target.is_dir() else target.suffix, content, path.read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, halfway(None))
    assert synced == [(".partial", NEW, OLD), (str(tmp_path.resolve()), b"folder", NEW)]


def test_two_processes_do_not_share_a_partial_file(tmp_path: Path) -> None:
    """Another process finishes the same file while this one writes it: the last to finish wins, and both are whole."""
    path = tmp_path / "file"
    other = "import sys; from pathlib import Path; from dhkd.data.disk.atomic import write_atomically as w;"
    other += "w(Path(sys.argv[1]), lambda stream: stream.write(b'of the other'))"

    def write(stream: BinaryIO) -> None:
        stream.write(NEW[:5])
        stream.flush()
        subprocess.run([sys.executable, "-c", other, str(path)], check=True, timeout=240)
        assert path.read_bytes() == b"of the other"
        stream.write(NEW[5:])

    write_atomically(path, write)
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]


def test_syncing_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "nowhere")


def test_syncing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("/somewhere", "/somewhere/dhkd"), ("", "/home/me/.cache/dhkd"), (None, "/home/me/.cache/dhkd")],
)
def test_the_users_cache_folder(variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    if variable is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert user_cache_folder() == Path(expected)
