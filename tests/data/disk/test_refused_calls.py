"""File systems that lack a call: another call does the work, or the error names the path; nothing is left behind."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from dhkd.data.disk.atomic import append_durably, sync_folder, write_atomically
from dhkd.data.disk.locks import locked, take_lock
from dhkd.data.disk.remedies import os_error_line
from dhkd.data.disk.writable import require_writable_file, require_writable_folder
from dhkd.data.errors import StorageError

from tests.disks import small_disk


def refusing(code: int) -> Callable[..., None]:
    def call(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def name_of(code: int) -> str:
    return errno.errorcode[code]


@pytest.mark.parametrize(
    "code",
    [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EINVAL, errno.EACCES],
    ids=name_of,
)
def test_without_hard_links_a_rename_serves(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(code))
    assert write_atomically(tmp_path / "file", lambda stream: stream.write(b"first"), replace=False)
    assert not write_atomically(tmp_path / "file", lambda stream: stream.write(b"second"), replace=False)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EROFS], ids=name_of)
def test_without_fsync_a_file_is_written_all_the_same(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(code))
    write_atomically(tmp_path / "file", lambda stream: stream.write(b"first"))
    assert append_durably(tmp_path / "file", b" line") == len("first line")
    sync_folder(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"first line"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE], ids=name_of)
def test_an_fsync_that_lost_data_is_an_error_with_the_path(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refusing(code))
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_atomically(tmp_path / "file", lambda stream: stream.write(b"new"))
    assert os_error_line(caught.value).startswith(f"{tmp_path / 'file'}: {os.strerror(code)}; ")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("call", ["replace", "rename"])
def test_an_error_of_the_rename_names_the_file_and_not_the_unfinished_one(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object, **options: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))

    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    with pytest.raises(OSError, match="cross-device") as caught:
        write_atomically(tmp_path / "file", lambda stream: stream.write(b"new"), replace=call == "replace")
    assert os_error_line(caught.value).startswith(f"{tmp_path / 'file'}: ")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_names_the_file_that_did_not_fit(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        with pytest.raises(OSError, match="No space left") as caught:
            write_atomically(disk / "file", lambda stream: stream.write(bytes(200_000)))
        assert os_error_line(caught.value).startswith(f"{disk / 'file'}: No space left on device; free some space")
        with pytest.raises(OSError, match="No space left") as caught:
            append_durably(disk / "lines", bytes(200_000))
        assert caught.value.filename == str(disk / "lines")


def test_errors_of_a_source_of_the_bytes_keep_their_words(tmp_path: Path) -> None:
    """What is written may come from a network, whose errors must not look like those of the disk."""

    def fetch(stream: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    with pytest.raises(TimeoutError) as caught:
        write_atomically(tmp_path / "file", fetch)
    assert caught.value.filename is None


def test_a_name_of_full_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127 + "b")  # 255 bytes
    write_atomically(path, lambda stream: stream.write(b"content"))
    assert path.read_bytes() == b"content"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK], ids=name_of)
def test_without_flock_another_lock_serves(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    with (tmp_path / "lock").open("w") as lock:
        assert take_lock(lock, wait=False)
        child = os.fork()
        if child == 0:
            with (tmp_path / "lock").open("w") as other:
                os._exit(7 if take_lock(other, wait=False) else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8


def test_without_any_lock_work_that_may_be_done_twice_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOSYS))
    monkeypatch.setattr(fcntl, "lockf", refusing(errno.ENOLCK))
    with locked(tmp_path / "copy"):
        (tmp_path / "copy").write_bytes(b"made")
    with (tmp_path / "lock").open("w") as lock, pytest.raises(OSError, match="No locks available"):
        take_lock(lock, wait=False)


def test_places_that_can_be_written_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("precious")
    for folder in ("there", "new", "new/deep/er"):
        require_writable_folder(tmp_path / folder)
    for file in ("file", "new.json", "new/deep.json"):
        require_writable_file(tmp_path / file)
    assert sorted(os.listdir(tmp_path)) == ["file", "there"]
    assert (tmp_path / "file").read_text() == "precious"
    assert os.listdir(tmp_path / "there") == []


@pytest.mark.parametrize(
    ("require", "place", "says"),
    [
        (require_writable_folder, "file", "expected a folder, got a file"),
        (require_writable_folder, "file/run", "Not a directory"),
        (require_writable_file, "folder", "expected a file, got a folder"),
        (require_writable_file, "file/w.json", "expected a folder, got a file"),
        (require_writable_folder, "n" * 256, "expected names of at most 255 bytes, got 256"),
        (require_writable_folder, "new/" + "n" * 300 + "/run", "expected names of at most 255 bytes, got 300"),
        (require_writable_folder, "/".join(["deep" * 50] * 30), "File name too long"),
        (require_writable_folder, "loop/run", "Too many levels of symbolic links"),
        (require_writable_folder, "/proc/run", "expected a place that can be written"),
        (require_writable_file, "/proc/run.json", "expected a place that can be written"),
    ],
)
def test_places_that_cannot_be_written_are_refused(
    require: Callable[..., None], place: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError) as caught:
        require(tmp_path / place, "--out")
    assert says in str(caught.value)
    assert str(caught.value).startswith("--out ")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "loop"]


@pytest.mark.parametrize("place", ["run", "new/run", ""])
def test_a_full_disk_is_refused_before_the_work(place: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "filler").write_bytes(bytes(64 * 1024))
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            require_writable_folder(disk / place)
        assert os.listdir(disk) == ["filler"]


def test_a_read_only_disk_is_refused_before_the_work(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k,ro") as disk, pytest.raises(StorageError, match="Read-only file system"):
        require_writable_folder(disk / "run")
