"""The one place where configuration becomes objects: frozen models in, flat arguments out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from dhkd.configs.schema import Experiment, Training, Views
from dhkd.data.cache.contract import Plan
from dhkd.data.cache.zarr_store import ZarrReader
from dhkd.data.errors import CacheMismatch, ConfigError, WeightsError
from dhkd.data.image_set import ImageSet
from dhkd.data.sources import load_source
from dhkd.data.stream import NoSignals, ResidentSignals, Signals, StreamedSignals
from dhkd.data.views import CropFlip
from dhkd.stages.models import build_network
from dhkd.stages.models.student import AuxiliaryHead, Student, auxiliary_head
from dhkd.stages.models.weights import fit_weights, read_weights, weights_sha256
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Objective
from torch import nn


@dataclass(frozen=True)
class DataOptions:
    """Where files are, which differs from machine to machine and is no part of an experiment."""

    root: Path | None = None
    download: bool = False


def images_of(experiment: Experiment, split: str, options: DataOptions) -> ImageSet:
    """The experiment's data set, `split` being "train" or "test"; the limit holds for training."""
    return load_source(
        experiment.data.source,
        split,
        root=options.root,
        download=options.download,
        limit=experiment.data.limit,
    )


def recipe_of(views: Views) -> CropFlip:
    """The recipe of views."""
    return CropFlip(padding=views.padding, flip=views.flip, seed=views.seed)


def num_views_of(experiment: Experiment, recipe: CropFlip) -> int:
    """How many views to cache. Raises `ConfigError` when there are not so many."""
    views = experiment.cache.views
    if views == "all":
        return recipe.num_views
    if not 1 <= views <= recipe.num_views:
        raise ConfigError(f"cache.views: expected 1 to {recipe.num_views} (all there are) or all, got {views}")
    return views


def objective_of(experiment: Experiment) -> Objective:
    """The experiment's objective, with the options that the preset gives it."""
    return build_objective(experiment.objective, experiment.objectives.get(experiment.objective, {}))


def student_of(training: Training, num_classes: int, auxiliary: AuxiliaryHead | None, seed: int) -> Student:
    """A freshly initialised student, a function of the seed, channels last in memory."""
    torch.manual_seed(seed)
    backbone = build_network(training.architecture, num_classes)
    head = auxiliary_head(auxiliary, backbone.embedding_dim, num_classes) if auxiliary else None
    return Student(backbone, head).to(memory_format=torch.channels_last)


def optimizer_of(training: Training, student: nn.Module) -> torch.optim.Optimizer:
    """SGD over all the student's parameters."""
    return torch.optim.SGD(
        student.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )


def learning_rate_of(training: Training) -> LearningRate:
    """The learning rate as a function of epoch and step."""
    return LearningRate(
        base=training.lr,
        kind=training.lr_schedule,
        epochs=training.epochs,
        milestones=training.milestones,
        gamma=training.gamma,
        warmup_epochs=training.warmup_epochs,
    )


def weights_file(path: Path, role: str) -> Path:
    """The file of weights that `path` means: itself, or the network that a run's folder holds."""
    if not path.is_dir():
        return path
    found = [path / f"{name}.safetensors" for name in (role, "teacher", "student")]
    for file in found:
        if file.is_file():
            return file
    raise WeightsError(f"{path}: expected a finished run, found no {found[0].name}; finish it with --resume")


def trained_network(architecture: str, num_classes: int, path: Path, role: str) -> nn.Module:
    """The network `architecture` with the weights at `path` (a run's folder or a file), on the CPU, in eval mode."""
    network = build_network(architecture, num_classes)
    file = weights_file(path, role)
    fit_weights(network, read_weights(file), str(file))
    return network.eval()


def dataset_identity(images: ImageSet) -> dict[str, Any]:
    """What a cache records of its data set, and compares."""
    return {
        "name": images.name,
        "split": images.split,
        "num_samples": len(images),
        "num_classes": images.num_classes,
        "fingerprint": images.fingerprint(),
    }


def cache_identity(
    experiment: Experiment, images: ImageSet, recipe: CropFlip, network: nn.Module, precision: str
) -> dict[str, Any]:
    """The identity of the cache that stage one is to write."""
    return {
        "teacher": {
            "architecture": experiment.teacher.architecture,
            "sha256": weights_sha256(network),
            "mean": list(images.mean),
            "std": list(images.std),
        },
        "dataset": dataset_identity(images),
        "recipe": recipe.identity,
        "signals": {"logits": {"dtype": experiment.cache.dtype, "row": [images.num_classes]}},
        "precision": precision,
    }


def plan_of(experiment: Experiment, images: ImageSet, recipe: CropFlip) -> Plan:
    """How the cache is cut into blocks."""
    row_bytes = images.num_classes * np.dtype(experiment.cache.dtype).itemsize
    block_bytes = int(experiment.cache.block_mb * 2**20)
    return Plan.balanced(num_views_of(experiment, recipe), len(images), row_bytes, block_bytes)


def expected_identity(
    experiment: Experiment, images: ImageSet, recipe: CropFlip, teacher: nn.Module | None
) -> dict[str, Any]:
    """What an experiment demands of a cache: data set, recipe, architecture, and the teacher's hash where one is named.

    Precision and dtype are the cache's own affair: any will do.
    """
    expected: dict[str, Any] = {
        "teacher": {"architecture": experiment.teacher.architecture},
        "dataset": dataset_identity(images),
        "recipe": recipe.identity,
    }
    if teacher is not None:
        expected["teacher"]["sha256"] = weights_sha256(teacher)
    elif experiment.teacher.sha256 is not None:
        expected["teacher"]["sha256"] = experiment.teacher.sha256
    return expected


def signals_of(objective: Objective, reader: ZarrReader, schedule: str, device: torch.device, copies: int) -> Signals:
    """How the objective's signals come from the cache: all resident for `independent`, view by view for `cycle`.

    Raises `CacheMismatch` when the cache lacks a signal, `ConfigError` when `independent` would not fit into memory,
    `copies` processes on this machine holding one each.
    """
    lacking = sorted(objective.needs - reader.manifest.signals.keys())
    if lacking:
        raise CacheMismatch(
            f"cache at {reader.path}: the objective needs the signals {', '.join(lacking)},"
            f" it holds {', '.join(reader.manifest.signals)}; cache them with 'dhkd cache-teacher --signals …'"
        )
    names = sorted(objective.needs)
    if not names:
        return NoSignals(reader.plan.num_views)
    if schedule == "cycle":
        return StreamedSignals(reader, names, device)
    needed = copies * reader.stored_bytes()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise ConfigError(
            f"student.view_schedule independent keeps the whole cache in memory: expected at most"
            f" {free / 1e9:.1f} GB free, got {needed / 1e9:.1f} GB; use --set student.view_schedule=cycle"
        )
    return ResidentSignals(reader, names, device)
