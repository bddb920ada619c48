"""The folder of one run, as training writes it and resumes from it.

It holds the settings (config.yaml), the metrics of each epoch (metrics.jsonl), the latest checkpoint, the result
(result.json) and the weights. Lines are appended to metrics.jsonl; every other file is written as a whole. A checkpoint
repeats the settings, and has a checksum of the metrics, so that no other run goes on from it. `data/runs/read.py` reads
such folders for reports.
"""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from dhkd.data.cache.manifest import differences
from dhkd.data.disk.atomic import append_durably, write_atomically
from dhkd.data.errors import RunExists, RunMismatch
from dhkd.data.runs.config import read_config, require_no_remains, settings_sha256
from dhkd.data.runs.lock import RunLock
from dhkd.data.runs.metrics import EpochMetrics, metrics_in
from dhkd.data.runs.names import CHECKPOINT, CLASSES, CONFIG, METRICS, RESULT, WEIGHTS
from dhkd.data.shown import printable_line
from safetensors.torch import save
from torch import Tensor

Saved = Callable[[Path], None]

RUN = "run"  # the entry of a checkpoint that says whose it is


class RunFolder:
    """A folder that is claimed for one run, or for resuming that run.

    Settings, results and checkpoints are plain values, exactly as YAML, JSON and torch store them. This class does not
    interpret them.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        lock: RunLock | None = None,
        saved: Saved = lambda folder: None,
    ) -> None:
        """Claim `path` for the run that `config` describes.

        The first compute process passes the folder's `lock`; without a lock, no other process may train in the folder.
        `saved` is called with the folder whenever it holds something new from which the run can be resumed or reported.
        Raises `RunExists` if the folder already holds a run and `resume` is false. Raises `RunMismatch` if `resume` is
        true and the folder holds a run with other settings, and if the folder holds parts of a run but no settings.
        Resuming an empty folder starts a new run.
        """
        self.path = path
        self.config = dict(config)
        self.class_names: Sequence[str] = ()  # in the order of their numbers; set before the run begins
        self._lock, self._saved = lock, saved
        if path.exists() and not path.is_dir():
            raise RunExists(f"output folder {path}: expected a folder, got a file; choose another --out")
        existing = read_config(path)
        if existing is None:
            require_no_remains(path)
            return
        if not resume:
            raise RunExists(
                f"output folder {path} already holds a run; continue it with --resume or choose another --out"
            )
        changed = differences(existing, self.config, exact=True)
        if changed:
            raise RunMismatch(
                f"run at {path}: {'; '.join(changed)}; resume it with its own settings or choose another --out"
            )

    @property
    def settings_sha256(self) -> str:
        """The hash of the run's settings."""
        return settings_sha256(self.config)

    def begin(self) -> None:
        """Write the settings, which marks the folder as taken. Only the first compute process may call this.

        The names of the classes are written first, in the form that `data.classes` reads.
        """
        self.require_lock()
        if self.class_names:
            lines = "".join(f"{printable_line(name)}\n" for name in self.class_names).encode()
            write_atomically(self.path / CLASSES, lambda stream: stream.write(lines))
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True).encode()
        write_atomically(self.path / CONFIG, lambda stream: stream.write(text))
        self._saved(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result exactly as it was written; None until the run is finished."""
        path = self.path / RESULT
        if not path.exists():
            return None
        try:
            result = json.loads(path.read_bytes())
            if not isinstance(result, dict):
                raise ValueError(f"got a {type(result).__name__}")
            return result
        except (ValueError, RecursionError) as error:
            raise RunMismatch(
                f"{path}: expected a result in JSON ({error}); delete it and run again with --resume"
            ) from error

    def require_lock(self) -> None:
        """Raise `RunTaken` if another process has taken the folder since this one took it."""
        if self._lock is not None:
            self._lock.require()

    def append_metrics(self, metrics: Mapping[str, Any]) -> int:
        """Add a line to metrics.jsonl and return the file's new length in bytes."""
        self.require_lock()
        return append_durably(self.path / METRICS, json.dumps(metrics).encode() + b"\n")

    def cut_metrics(self, length: int) -> None:
        """Cut metrics.jsonl back to `length` bytes, its length when the latest checkpoint was saved."""
        path = self.path / METRICS
        if path.exists():
            os.truncate(path, min(length, path.stat().st_size))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Save `state` as the run's checkpoint, in place of the previous one, after the metrics that exist now."""
        self.require_lock()
        metrics = self._metrics()
        run = {"config": self.config, "metrics_bytes": len(metrics), "metrics_sha256": _sha256(metrics)}
        # Serialised in memory first, because torch's own writer turns a full disk into an unclear RuntimeError.
        buffer = io.BytesIO()
        torch.save({RUN: run, **state}, buffer)
        write_atomically(self.path / CHECKPOINT, lambda stream: stream.write(buffer.getbuffer()))
        self._saved(self.path)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Load the latest checkpoint onto the CPU; return None if there is no checkpoint.

        Raises `RunMismatch` if the checkpoint is damaged, if it is another run's, and if the metrics before it are no
        longer those that the run wrote.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"got a {type(state).__name__}")
        except Exception as error:  # what the unpickler raises depends on the damaged bytes
            # When torch refuses a pickle, its message explains how to load it anyway, which nobody should do.
            refused = isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)
            reason = "no pickle of tensors" if refused else (str(error).splitlines() or [type(error).__name__])[0]
            raise RunMismatch(
                f"checkpoint {path} can't be read ({reason}); delete it to train from the start"
            ) from error
        self._require_own(state.pop(RUN, None))
        return state

    def epochs_until(self, length: int) -> list[EpochMetrics]:
        """Return the epochs in the first `length` bytes of metrics.jsonl.

        Raises `RunMismatch` if these bytes are not whole lines.
        """
        metrics = self._metrics()[: max(0, length)]
        where = self.path / METRICS
        if len(metrics) != length or not (metrics.endswith(b"\n") or not metrics):
            raise RunMismatch(f"{where}: expected {length} bytes of whole lines, got {len(metrics)}; {_RESTORE}")
        return metrics_in(metrics, where)

    def _metrics(self) -> bytes:
        try:
            return (self.path / METRICS).read_bytes()
        except FileNotFoundError:
            return b""

    def _require_own(self, run: object) -> None:
        """Raise `RunMismatch` unless `run`, which a checkpoint says about its run, fits this folder."""
        path = self.path / CHECKPOINT
        if not isinstance(run, dict) or run.keys() != {"config", "metrics_bytes", "metrics_sha256"}:
            raise RunMismatch(
                f"checkpoint {path}: expected to read whose it is, found nothing; another version wrote it; delete it"
                f" to train from the start"
            )
        config, length = run["config"], run["metrics_bytes"]
        changed = differences(config, self.config, exact=True) if isinstance(config, dict) else ["config is lost"]
        if changed:
            raise RunMismatch(
                f"checkpoint {path} is of another run than {CONFIG} beside it: {'; '.join(changed)}; put back the"
                f" run's own files, or choose another --out"
            )
        metrics = self._metrics()[:length] if type(length) is int and length >= 0 else b""
        if _sha256(metrics) != run["metrics_sha256"]:
            raise RunMismatch(
                f"{self.path / METRICS}: expected the lines that the run wrote before its checkpoint, found others or"
                f" fewer; {_RESTORE}"
            )

    def keep_weights(self, epochs: int, state: Mapping[str, Tensor]) -> None:
        """Save the weights after `epochs` epochs in a file that the function `kept_weights` lists."""
        self.require_lock()
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
        write_atomically(self.path / WEIGHTS / f"epoch-{epochs:04d}.safetensors", lambda stream: stream.write(content))
        self._saved(self.path)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        self.require_lock()
        text = json.dumps(result, indent=2).encode() + b"\n"
        write_atomically(self.path / RESULT, lambda stream: stream.write(text))
        self._saved(self.path)


_RESTORE = "put the file back as it was, or delete the checkpoint to train from the start"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
