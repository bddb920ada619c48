"""Turns a prepared run into a task of the training loop, and the task's figures into the run's result."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from dhkd.configs.schema import Training
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.measured import USUAL
from dhkd.data.stream.batches import Stream
from dhkd.pipeline.build.beginning import Beginning
from dhkd.pipeline.build.code import code_metadata
from dhkd.pipeline.build.described import metadata_of_use
from dhkd.pipeline.build.networks import OF_AVERAGE, metadata_of
from dhkd.pipeline.build.regularizing import early_stopping_of, ema_of
from dhkd.pipeline.build.training import learning_rate_of, optimizer_of, student_of
from dhkd.pipeline.environment import hardware, unreadable_files, versions
from dhkd.pipeline.evaluation import Evaluator
from dhkd.pipeline.results import Distillation, TrainedRun, plain
from dhkd.stages.models import count_parameters
from dhkd.stages.models.weights import save_weights, weights_sha256
from dhkd.stages.train.ema import Ema
from dhkd.stages.train.loop import Figures, Task
from dhkd.stages.train.objectives.contract import Objective, Setting
from torch import nn


def task_of(
    settings: Training,
    objective: Objective,
    setting: Setting,
    stream: Stream,
    accuracy_of: Evaluator,
    run: RunFolder,
    trackers: Sequence[str],
    name: str,
    beginning: Beginning | None = None,
) -> Task:
    """Build a task of the training loop: a freshly initialised student, and everything that its training needs.

    `name` says what `accuracy_of` measures. The student begins with random weights unless `beginning` is given.
    """
    student = student_of(objective, setting, beginning, settings)
    return Task(
        student,
        optimizer_of(settings, student, fused=accuracy_of.processes.device.type == "cuda"),
        objective,
        stream,
        accuracy_of,
        learning_rate_of(settings),
        epochs=settings.epochs,
        seed=setting.seed,
        clip_norm=settings.clip_norm,
        run=run,
        compiled=settings.compile,
        keep_every=settings.keep_every,
        trackers=trackers,
        measured=name,
        accumulate=settings.accumulate or 1,
        label_smoothing=settings.label_smoothing or 0.0,
        ema=ema_of(settings),
        early_stopping=early_stopping_of(settings),
    )


def finished(
    role: Literal["teacher", "student"],
    task: Task,
    figures: Figures,
    setting: Setting,
    accuracy_of: Evaluator,
    distillation: Distillation | None,
) -> TrainedRun:
    """Write the weights and the result of a run that ended well into the run folder, and return the result."""
    network, architecture = task.student.backbone, setting.student.wanted
    processes = accuracy_of.processes
    result = TrainedRun(
        role=role,
        architecture=architecture.name,
        parameters=count_parameters(network),
        **asdict(figures),
        seed=setting.seed,
        distillation=distillation,
        measured=task.measured if task.measured != USUAL else None,
        test_samples=len(accuracy_of.renderer.images),
        unreadable_files=unreadable_files(task.stream.renderer, processes),
        sha256=weights_sha256(network),
        ema_sha256=_sha256_of_average(task.ema, network),
        settings_sha256=task.run.settings_sha256,
        precision=processes.precision,
        hardware=hardware(processes.device),
        processes=processes.world_size,
        versions=versions(),
    )
    if processes.is_first:
        task.run.require_lock()
        metadata = metadata_of(architecture, accuracy_of.renderer.images, accuracy_of.normalize)
        metadata |= metadata_of_use(accuracy_of.renderer, accuracy_of.normalize)
        metadata |= code_metadata(architecture.name)
        save_weights(task.run.path / f"{role}.safetensors", network, metadata)
        if task.ema is not None:
            with task.ema.in_place_of_weights(network):
                save_weights(task.run.path / f"{role}{OF_AVERAGE}.safetensors", network, metadata)
        task.run.write_result(plain(result))
    return result


def _sha256_of_average(ema: Ema | None, network: nn.Module) -> str | None:
    if ema is None:
        return None
    with ema.in_place_of_weights(network):
        return weights_sha256(network)
