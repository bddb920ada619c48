"""A folder on this machine that shows the runs at a URL, so that they are read as runs in a folder are.

Only what has changed is fetched, and only what reports read: settings, metrics and results. Weights are fetched on
request; until then, an empty file stands for each. Left out on purpose: training in this folder, which another process
may bring up to date at any time (see `place.py`).
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from dhkd.data.disk.atomic import LONGEST_NAME, write_atomically
from dhkd.data.disk.locks import locked
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import ConfigError
from dhkd.data.runs.names import CHECKPOINT, CLASSES, CONFIG, FAILED, METRICS, RESULT, SWEEP, WEIGHTS
from dhkd.data.storage.base import Storage, each

READ = (CONFIG, METRICS, RESULT, FAILED, SWEEP, CLASSES)
ANALYSES = ("report/*.csv", "report/*.npz")
# What shows by its mere presence that there was a run, and which weights it kept.
SHOWN = (CHECKPOINT, f"{WEIGHTS}/*.safetensors")
FINAL_WEIGHTS = ("student*.safetensors", "teacher*.safetensors")
KEPT_WEIGHTS = (f"{WEIGHTS}/*.safetensors",)

KEEP_BYTES = 20 * 10**9  # of all near copies together
KEEP_SECONDS = 24 * 3600.0  # a copy that was used so recently is kept, whatever its size
ABSENT = ""  # in place of a stamp: an empty file stands for the object


def near_folder(kind: str, url: str) -> Path:
    """Return this user's folder of the given kind for what lies at `url`; its last part is that of the URL."""
    name = url.rstrip("/").rpartition("/")[2]
    return user_cache_folder() / kind / hashlib.sha256(url.encode()).hexdigest()[:16] / name


class NearRuns:
    """The runs at a URL, shown by the folder `folder`. Several processes of this machine may share the folder."""

    def __init__(self, storage: Storage) -> None:
        self.folder = near_folder("runs", storage.location)
        self._storage = storage
        self._index = self.folder.parent / "index.json"

    def refresh(self, weights: Sequence[str] = ()) -> None:
        """Make the folder show what the URL has now, with the weights files whose names match one of `weights`.

        This takes one listing, and a request for each object that is new or has changed. Raises `StorageError` if the
        URL can't be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self._index):
            listed = self._storage.stamps()
            if listed is None:
                raise ConfigError(
                    f"{self._storage.location}: expected a folder of runs, or a bucket (s3://, gs://, az://), got a"
                    f" place whose files can't be listed; copy the runs into a folder"
                )
            stamps = {key: stamp for key, stamp in listed.items() if _is_plain(key) and _matches(key, READ + ANALYSES)}
            weights_here = {key: stamp for key, stamp in listed.items() if _is_plain(key) and _is_weights(key)}
            known = self._known()
            stamps |= {
                key: stamp if _matches(key, weights) or known.get(key) == stamp else ABSENT
                for key, stamp in weights_here.items()
            }
            self._follow(stamps, known)
        forget_unused(self.folder.parent.parent, keep=self.folder.parent)

    def _known(self) -> dict[str, str]:
        try:
            known = json.loads(self._index.read_bytes())
            return known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            return {}

    def _follow(self, stamps: Mapping[str, str], known: Mapping[str, str]) -> None:
        """Make the folder's files those of `stamps`: fetched, or empty where the stamp is `ABSENT`."""
        for key in known.keys() - stamps.keys():
            with contextlib.suppress(OSError):
                (self.folder / key).unlink()
        changed = [key for key, stamp in stamps.items() if known.get(key) != stamp or not (self.folder / key).exists()]

        def content_of(key: str) -> bytes | None:
            with contextlib.suppress(FileNotFoundError):  # it was removed since it was listed
                return b"" if stamps[key] == ABSENT else self._storage.get(key)
            return None

        stored = {key: stamp for key, stamp in stamps.items() if key not in changed}
        for key, content in zip(changed, each(content_of, changed, self._storage.streams), strict=True):
            # Of two objects, one may have the name of the other's folder; a folder can't show both.
            if content is not None:
                with contextlib.suppress(NotADirectoryError, FileExistsError, IsADirectoryError):
                    _write(self.folder / key, content)
                    stored[key] = stamps[key]
        if stored != known:
            write_atomically(self._index, lambda stream: stream.write(json.dumps(stored).encode()))
        elif self._index.exists():
            os.utime(self._index)  # it was used


def forget_unused(root: Path, keep: Path) -> None:
    """Remove the near copies that were not used for longest, until those in `root` take at most `KEEP_BYTES`."""
    used = []
    for place in root.iterdir():
        with contextlib.suppress(OSError):
            used.append((_used(place), place))
    sizes = {place: sum(f.stat().st_size for f in place.rglob("*") if f.is_file()) for _, place in used}
    total = sum(sizes.values())
    for last, place in sorted(used):
        if total <= KEEP_BYTES:
            return
        if place != keep and time.time() - last > KEEP_SECONDS:
            shutil.rmtree(place, ignore_errors=True)
            total -= sizes[place]


def _used(place: Path) -> float:
    index = place / "index.json"
    return (index if index.exists() else place).stat().st_mtime


def _is_weights(key: str) -> bool:
    return _matches(key, (*SHOWN, *FINAL_WEIGHTS))


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(PurePosixPath(key).match(pattern) for pattern in patterns)


def _is_plain(key: str) -> bool:
    """Return whether a key is a path inside the folder, whoever put the object there."""
    parts = key.split("/")
    return all(
        part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= LONGEST_NAME for part in parts
    )


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda stream: stream.write(content))
