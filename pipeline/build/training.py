"""Builds the parts of a training step from settings: objective, student, optimizer, learning rate."""

from dataclasses import replace

import torch
from dhkd.configs.schema import Experiment, Training
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import Images
from dhkd.pipeline.build.beginning import Beginning
from dhkd.pipeline.build.data import channels_of, recipe_of
from dhkd.pipeline.build.networks import chosen_network
from dhkd.pipeline.build.regularizing import drops_of
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.dropping import with_drops
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import Student, auxiliary_head
from dhkd.stages.train.accumulation import require_divisible
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives import combined_objective
from dhkd.stages.train.objectives.contract import Objective, Setting
from dhkd.stages.train.optimizers import SGD, build_optimizer
from dhkd.stages.train.parameter_groups import Decay
from torch import nn


def objective_of(experiment: Experiment) -> Objective:
    """Build the experiment's objective, or the sum of several, each with its options from the preset."""
    settings = experiment.alignment
    alignment = Alignment(settings.kept, settings.against, settings.every) if settings else None
    return combined_objective(experiment.objective, experiment.objectives, alignment)


def setting_of(
    experiment: Experiment, training: Training, images: Images, objective: Objective, teacher: Network | None = None
) -> Setting:
    """Return the setting (shapes, labels and seed) in which `objective` trains the network of `training`.

    `teacher` is the teacher's network with its weights, or None if they were not given.
    """
    shape = recipe_of(experiment.views).shape or images.shape
    assert shape is not None, "images_of decodes all images where the recipe keeps their size"
    size = experiment.teacher.size
    student_shapes, teacher_shapes = (
        Shapes(
            chosen_network(network),
            images.num_classes,
            (size, size) if size is not None and network is experiment.teacher else shape,
            channels_of(network, images),
        )
        for network in (training, experiment.teacher)
    )
    setting = Setting(student_shapes, teacher_shapes, images.labels_N, experiment.seed, teacher)
    architecture = objective.architecture(setting)
    if architecture.name != training.architecture and size is not None and (size, size) != shape:
        raise ConfigError(
            f"objective {experiment.objective!r} trains {architecture}, which compares maps of one image size: expected"
            f" no teacher.size but the student's, got {size}; choose another objective, or leave teacher.size out"
        )
    student_shapes = student_shapes.of(architecture)
    _require_test_size(experiment, student_shapes)
    return replace(setting, student=student_shapes)


def _require_test_size(experiment: Experiment, shapes: Shapes) -> None:
    """Raise `ConfigError` if the network takes images of the training's size alone, and test images have another."""
    shape = recipe_of(experiment.views).at_test().shape
    if shape is None or shape == shapes.image:
        return
    try:
        _ = Shapes(shapes.wanted, shapes.num_classes, shape, shapes.channels).gives_logits
    except ConfigError:
        height, width = shape
        raise ConfigError(
            f"views.test_size: expected a size that {shapes.architecture} takes after training at views.size,"
            f" {shapes.image[0]}, got {width}×{height}; leave test_size out, or choose a network that takes any size"
            f" (timm's ViTs do with options.dynamic_img_size)"
        ) from None


def student_of(
    objective: Objective, setting: Setting, beginning: Beginning | None = None, training: Training | None = None
) -> Student:
    """Build a freshly initialised student with the objective's extra head and adapter, in channels-last memory format.

    The experiment's seed determines the initial values. The weights in `beginning`, if given, then replace them. The
    network has the dropout, drop path and checkpointing of the settings `training`, or none if they are None.
    """
    torch.manual_seed(setting.seed)
    wanted = with_drops(setting.student.wanted, drops_of(training))
    backbone = build_network(wanted, setting.student.num_classes, setting.student.channels)
    if training is not None and training.checkpointing:
        backbone.checkpoint_activations()
    if beginning is not None:
        beginning.into(backbone)
    objective.start(backbone, setting)
    kind = objective.auxiliary
    head = None
    if kind:
        head = auxiliary_head(kind, backbone, setting.student.num_classes, setting.student.embedding_dim)
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ConfigError(f"student: network {setting.student.architecture}: expected parameters to train, found none")
    student = Student(backbone, head, objective.reads(setting), objective.adapter(setting))
    return student.to(memory_format=torch.channels_last)


def optimizer_of(training: Training, student: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
    """Build the optimizer over all parameters of the student; with `fused`, a GPU may skip an update by itself.

    Raises `ConfigError` for an unknown name, and for options that the optimizer doesn't take.
    """
    chosen = training.optimizer
    name, options = (chosen.name, dict(chosen.options)) if chosen else (SGD, {})
    if name == SGD:
        for setting in ("momentum", "nesterov"):
            if setting in options:
                raise ConfigError(
                    f"optimizer sgd: {setting}: it is a setting of its own, beside optimizer; set it there"
                )
        options |= {"momentum": training.momentum, "nesterov": training.nesterov}
    decay = Decay(training.weight_decay, training.no_decay is not None, training.layer_decay or 1.0)
    return build_optimizer(name, options, student, training.lr, decay, fused=fused)


def require_trainable(training: Training, objective: Objective) -> None:
    """Raise `ConfigError` if schedule, optimizer or parts of a batch can't train with these settings, or `objective`.

    So a mistake in the settings is found before anything is written. The optimizer is tried on a small network.
    """
    learning_rate_of(training)
    small = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.LayerNorm(2))
    optimizer_of(training, small)
    require_divisible(objective, training.accumulate or 1)


def learning_rate_of(training: Training) -> LearningRate:
    """Build the learning rate, a function of epoch and step."""
    return LearningRate(
        base=training.lr,
        kind=training.lr_schedule,
        epochs=training.epochs,
        milestones=training.milestones,
        gamma=training.gamma,
        warmup_epochs=training.warmup_epochs,
        warmup_start=training.warmup_lr,
        min_rate=training.min_lr or 0.0,
        cooldown_epochs=training.cooldown_epochs or 0.0,
        power=training.lr_power or 1.0,
    )
