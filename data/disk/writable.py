"""Whether a place can be written, found out before hours of work are lost on it."""

import os
import secrets
import stat
from pathlib import Path

from dhkd.data.disk.atomic import LONGEST_NAME, write_atomically
from dhkd.data.disk.remedies import remedy
from dhkd.data.errors import StorageError

PROBE = bytes(4096)  # more than nothing, since an empty file fits on a full disk


def require_writable_folder(folder: Path, what: str = "--out") -> None:
    """Raise `StorageError` unless `folder` is, or can become, a folder in which files can be made.

    `what` names the folder in the message. Nothing is left behind.
    """
    _require(folder, what, folder)


def require_writable_file(file: Path, what: str = "--out") -> None:
    """Raise `StorageError` unless `file` is, or can become, a file. Nothing is left behind, and no file is changed."""
    _require(file, what, file.parent)


def _require(path: Path, what: str, folder: Path) -> None:
    choose = f"choose another {what}"
    for part in path.parts:
        if len(os.fsencode(part)) > LONGEST_NAME:
            raise StorageError(
                f"{what} {path}: expected names of at most {LONGEST_NAME} bytes, got {len(os.fsencode(part))}; {choose}"
            )
    try:
        if _kind(folder) == "file":
            raise StorageError(f"{what} {folder}: expected a folder, got a file; {choose}")
        if path != folder and _kind(path) == "folder":
            raise StorageError(f"{what} {path}: expected a file, got a folder; {choose}")
        probe = _existing(folder) / f".dhkd-{secrets.token_hex(8)}.partial"
        write_atomically(probe, lambda stream: stream.write(PROBE))
        probe.unlink()
    except StorageError:
        raise
    except OSError as error:
        told = error.strerror or type(error).__name__
        raise StorageError(
            f"{what} {path}: expected a place that can be written, got: {told}; {remedy(error) or choose}"
        ) from error


def _existing(folder: Path) -> Path:
    """Return `folder`, or the nearest folder above it that exists."""
    for each in (folder, *folder.parents):
        if _kind(each) is not None:
            return each
    return Path()


def _kind(path: Path) -> str | None:
    """Return "folder", "file" (of any other kind), or None if nothing exists there."""
    try:
        return "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
    except FileNotFoundError:
        return None
