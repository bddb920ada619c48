"""The folder of one run, as training writes it and resumes from it.

It holds the settings (config.yaml), the metrics of each epoch (metrics.jsonl), the latest checkpoint, the result
(result.json) and the weights. Lines are appended to metrics.jsonl; every other file is written as a whole.
`data/runs/read.py` reads such folders for reports.
"""

import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from dhkd.data.cache.manifest import differences
from dhkd.data.disk.atomic import append_durably, write_atomically
from dhkd.data.errors import RunExists, RunMismatch
from dhkd.data.runs.names import CHECKPOINT, CONFIG, METRICS, RESULT, WEIGHTS
from safetensors.torch import save
from torch import Tensor


class RunFolder:
    """A folder that is claimed for one run, or for resuming that run.

    Settings, results and checkpoints are plain values, exactly as YAML, JSON and torch store them. This class does not
    interpret them.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, resume: bool) -> None:
        """Claim `path` for the run that `config` describes.

        Raises `RunExists` if the folder already holds a run and `resume` is false. Raises `RunMismatch` if `resume` is
        true and the folder holds a run with other settings. Resuming an empty folder starts a new run.
        """
        self.path = path
        self.config = dict(config)
        if path.exists() and not path.is_dir():
            raise RunExists(f"output folder {path}: expected a folder, got a file; choose another --out")
        existing = read_config(path)
        if existing is None:
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

    def begin(self) -> None:
        """Write the settings, which marks the folder as taken. Only the first compute process may call this."""
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True).encode()
        write_atomically(self.path / CONFIG, lambda stream: stream.write(text))

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

    def append_metrics(self, metrics: Mapping[str, Any]) -> int:
        """Add a line to metrics.jsonl and return the file's new length in bytes."""
        return append_durably(self.path / METRICS, json.dumps(metrics).encode() + b"\n")

    def cut_metrics(self, length: int) -> None:
        """Cut metrics.jsonl back to `length` bytes, its length when the latest checkpoint was saved."""
        path = self.path / METRICS
        if path.exists():
            os.truncate(path, min(length, path.stat().st_size))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Save `state` as the run's checkpoint, in place of the previous one."""
        # Serialised in memory first, because torch's own writer turns a full disk into an unclear RuntimeError.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomically(self.path / CHECKPOINT, lambda stream: stream.write(buffer.getbuffer()))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Load the latest checkpoint onto the CPU; return None if there is no checkpoint.

        Raises `RunMismatch` if the checkpoint is damaged.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"got a {type(state).__name__}")
            return state
        except Exception as error:  # what the unpickler raises depends on the damaged bytes
            # When torch refuses a pickle, its message explains how to load it anyway, which nobody should do.
            refused = isinstance(error, pickle.UnpicklingError)
            reason = "no pickle of tensors" if refused else (str(error).splitlines() or [type(error).__name__])[0]
            raise RunMismatch(
                f"checkpoint {path} can't be read ({reason}); delete it to train from the start"
            ) from error

    def keep_weights(self, epochs: int, state: Mapping[str, Tensor]) -> None:
        """Save the weights after `epochs` epochs in a file that the function `kept_weights` lists."""
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
        write_atomically(self.path / WEIGHTS / f"epoch-{epochs:04d}.safetensors", lambda stream: stream.write(content))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        text = json.dumps(result, indent=2).encode() + b"\n"
        write_atomically(self.path / RESULT, lambda stream: stream.write(text))


def read_config(path: Path) -> dict[str, Any] | None:
    """Read the nested settings of the run at `path`; return None if there is no run.

    Raises `RunMismatch` if the settings are damaged.
    """
    file = path / CONFIG
    try:
        config = yaml.safe_load(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"got a {type(config).__name__}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (yaml.YAMLError, ValueError, RecursionError, IsADirectoryError) as error:
        raise RunMismatch(
            f"{file}: expected a run's configuration in YAML, found something else; choose another --out"
        ) from error
    return config


def kept_weights(path: Path) -> dict[int, Path]:
    """Return the weights files that the run at `path` kept during training, by the number of epochs trained.

    For a run without the setting `keep_every`, the result is empty.
    """
    return {int(file.stem.partition("-")[2]): file for file in sorted((path / WEIGHTS).glob("epoch-*.safetensors"))}
