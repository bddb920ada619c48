"""A run's folder: what was asked (config.yaml), what happened (metrics.jsonl), where it stands (checkpoint/), what came
out (result.json and the weights). Every file is finished or absent."""

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
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import RunExists, RunMismatch
from safetensors.torch import save
from torch import Tensor

CONFIG, METRICS, RESULT, CHECKPOINT = "config.yaml", "metrics.jsonl", "result.json", "checkpoint/state.pt"
KEPT = "weights"


class RunFolder:
    """Opens a folder for one run, or for its continuation."""

    def __init__(self, path: Path, config: Mapping[str, Any], *, resume: bool) -> None:
        """Claim `path` for the run that `config` (plain values) describes.

        Raises `RunExists` when a run is there and `resume` was not asked for, `RunMismatch` when `resume` finds
        a run of another configuration. Resuming where nothing is starts afresh.
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
        """Write the configuration, which marks the folder as taken; call it in the first process only."""
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True).encode()
        write_atomically(self.path / CONFIG, lambda stream: stream.write(text))

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished run's result; None while there is none."""
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
        """Add a line to metrics.jsonl; its length in bytes afterwards."""
        with (self.path / METRICS).open("ab") as stream:
            stream.write(json.dumps(metrics).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
            return stream.tell()

    def cut_metrics(self, length: int) -> None:
        """Drop what was written to metrics.jsonl after it was `length` bytes long."""
        path = self.path / METRICS
        if path.exists():
            os.truncate(path, min(length, path.stat().st_size))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        # By way of memory: torch's own writer makes of a full disk a RuntimeError about positions.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomically(self.path / CHECKPOINT, lambda stream: stream.write(buffer.getbuffer()))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint, on the CPU; None when no epoch has been finished yet."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"got a {type(state).__name__}")
            return state
        except Exception as error:  # a damaged file makes the unpickler raise whatever its bytes lead it to
            # Of a refused pickle torch says how to load it all the same, which nobody should.
            refused = isinstance(error, pickle.UnpicklingError)
            reason = "no pickle of tensors" if refused else (str(error).splitlines() or [type(error).__name__])[0]
            raise RunMismatch(
                f"checkpoint {path} can't be read ({reason}); delete it to train from the start"
            ) from error

    def keep_weights(self, epochs: int, state: Mapping[str, Tensor]) -> None:
        """Keep what was learnt in so many epochs; `kept_weights` finds it."""
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
        write_atomically(self.path / KEPT / f"epoch-{epochs:04d}.safetensors", lambda stream: stream.write(content))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        text = json.dumps(result, indent=2).encode() + b"\n"
        write_atomically(self.path / RESULT, lambda stream: stream.write(text))


def read_config(path: Path) -> dict[str, Any] | None:
    """The configuration of the run at `path`; None when no run is there. Raises `RunMismatch` when it is damaged."""
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
    """By number of epochs, the files of a run's weights over training; none unless it was told to keep some."""
    return {int(file.stem.partition("-")[2]): file for file in sorted((path / KEPT).glob("epoch-*.safetensors"))}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, an epoch each."""
    return [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
