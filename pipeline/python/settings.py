"""Builds an experiment from keyword arguments and the settings of a preset or of a cache's record."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from dhkd.configs.load import experiment_with, preset_tree
from dhkd.configs.schema import Experiment
from dhkd.data.disk.user_cache import expanded
from dhkd.data.disk.writable import require_writable_folder
from dhkd.data.errors import ConfigError

Settings = Mapping[str, object]  # of an experiment, by dotted key: {"data.limit": 1000}


class TrainingSettings(TypedDict, total=False):
    """How a network is trained; a setting that is left out has the preset's value, or else its default."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: str | Mapping[str, object] | None
    momentum: float | None
    nesterov: bool | None
    weight_decay: float
    no_decay: Literal["norms-and-biases"] | None
    layer_decay: float | None
    accumulate: int | None
    lr_schedule: Literal["constant", "multistep", "cosine", "one-cycle", "linear", "polynomial"]
    milestones: Sequence[int]
    gamma: float
    warmup_epochs: float
    warmup_lr: float | None
    min_lr: float | None
    cooldown_epochs: float | None
    lr_power: float | None
    clip_norm: float | None
    label_smoothing: float | None
    drop_path: float | None
    dropout: float | None
    ema: float | Mapping[str, object] | None
    early_stopping: int | Mapping[str, object] | None
    checkpointing: bool | None
    precision: Literal["auto", "float32", "bf16", "fp16"]
    compile: Literal["off", "reduce-overhead", "max"]
    keep_every: int | None


class StudentSettings(TrainingSettings, total=False):
    """How a student is trained, and which views of the cache it sees."""

    view_schedule: Literal["independent", "cycle", "block"]
    views: int | None
    window: int | None


class CacheSettings(TypedDict, total=False):
    """How a teacher's signals are cached; a setting that is left out has the preset's value, or else its default."""

    views: int | Literal["all"]
    signals: Sequence[str]
    codec: str | Mapping[str, object]
    store: Literal["zarr", "webdataset"]
    precision: Literal["auto", "float32", "bf16", "fp16"]
    batch_size: int
    views_at_once: int
    block_mb: float


# Any: settings are plain values, as YAML stores them.
def base_tree(preset: str | Path | None) -> dict[str, Any]:
    """Return the settings of a preset or, without one, minimal settings to which a call adds its arguments."""
    if preset is not None:
        return preset_tree(os.fspath(preset))
    return {
        "description": "made in Python",
        "views": {},
        # The schema requires these two settings even for a teacher that the call doesn't train.
        "teacher": {"epochs": 1, "lr": 0.05},
        "student": {},
    }


def built(tree: Mapping[str, Any], settings: Settings) -> Experiment:  # Any: plain values
    """Build the experiment from the plain values of `tree`, overridden by `settings`. Raises `ConfigError`."""
    try:
        return experiment_with(tree, {key: _as_plain(value) for key, value in settings.items()}, "settings")
    except ConfigError as error:
        raise ConfigError(Exception.__str__(error).removeprefix("--set ")) from error


def below(section: str, settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of a section under dotted keys, such as "student.lr"."""
    return {f"{section}.{key}": value for key, value in settings.items()}


def place_to_write(out: str | Path | None) -> str:
    """Return the path or URL `out`, expanded. Raises an error if it is missing or can't be written to."""
    if out is None or not os.fspath(out):
        raise ConfigError("out: expected a path, got nothing")
    place = expanded(os.fspath(out))
    if "://" not in place:
        require_writable_folder(Path(place), "out")
    return place


def _as_plain(value: object) -> object:
    """Return a value as YAML would give it: numbers of NumPy and torch, paths and tuples are converted."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_as_plain(inner) for inner in value]
    return value
