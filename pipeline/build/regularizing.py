"""Builds what regularizes a training from its settings, and checks that it fits the experiment."""

import torch
from dhkd.configs.schema import Experiment, Training
from dhkd.data.errors import ConfigError
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.dropping import DROP_PATH, DROPOUT, draws_random_numbers, with_drops
from dhkd.stages.models.signals import Shapes
from dhkd.stages.train.early_stopping import EarlyStopping
from dhkd.stages.train.ema import Ema
from dhkd.stages.train.objectives import own_objectives
from dhkd.stages.train.objectives.combined import CE
from dhkd.stages.train.objectives.contract import LATE, Objective
from torch import Tensor


def ema_of(training: Training) -> Ema | None:
    """Build the average of the weights, which has not begun yet, or return None if the settings want none."""
    settings = training.ema
    return None if settings is None else Ema(settings.decay, warmup=settings.warmup, every=settings.every)


def early_stopping_of(training: Training) -> EarlyStopping | None:
    """Build the rule by which training ends early, or return None if it doesn't."""
    settings = training.early_stopping
    return None if settings is None else EarlyStopping(settings.patience, settings.min_delta, settings.monitor)


def drops_of(training: Training | None) -> dict[str, float]:
    """Return the probabilities of dropout and drop path that the settings give, by name."""
    given = {} if training is None else {DROP_PATH: training.drop_path, DROPOUT: training.dropout}
    return {name: value for name, value in given.items() if value is not None}


def require_regularizing(experiment: Experiment, training: Training, objective: Objective) -> None:
    """Raise `ConfigError` if label smoothing or early stopping doesn't fit the experiment.

    `training` is the experiment's section `teacher` or `student`, and `objective` is what its network is trained with.
    """
    section = "teacher" if training is experiment.teacher else "student"
    if training.early_stopping is not None and experiment.data.val_fraction is None:
        raise ConfigError(
            f"{section}.early_stopping: expected data.val_fraction beside it, since the test split must not decide when"
            f" training ends, got none; hold out a part of the training split with --set data.val_fraction=0.1"
        )
    smoothing = training.label_smoothing
    if smoothing is None:
        return
    if objective.label_smoothing:
        raise ConfigError(
            f"{section}.label_smoothing: expected none beside the objective label-smoothing, which smooths by its own"
            f" option, got {smoothing}; train with the objective ce, or leave the setting out"
        )
    own = own_objectives(experiment.objective) if section == "student" else []
    if not own and not any(objective.weights(epoch).get(CE) for epoch in (0, LATE)):
        raise ConfigError(
            f"{section}.label_smoothing: expected an objective with a cross-entropy, got {experiment.objective!r}, in"
            f" which none has a weight; leave the setting out"
        )


def require_network(training: Training, section: str, shapes: Shapes) -> None:
    """Raise `ConfigError` unless the network of `shapes` can be trained with the dropout, drop path and checkpointing.

    Each setting must be one that the network's builder takes, must have an effect, and must not change the parameters,
    because weights don't record it.
    """
    drops = drops_of(training)
    if not drops and not training.checkpointing:
        return
    with torch.random.fork_rng(devices=()):
        plain = _built(shapes.wanted, shapes)
        if training.checkpointing:
            plain.checkpoint_activations()
        for name, value in drops.items():
            where, wanted = f"{section}.{name}", with_drops(shapes.wanted, {name: value})
            try:
                network = _built(wanted, shapes)
            except ConfigError as error:
                raise ConfigError(
                    f"{where}: expected a network that takes it, got {shapes.architecture} ({error}); leave it out, or"
                    f" choose another network"
                ) from error
            if _parameters(network) != _parameters(plain):
                raise ConfigError(
                    f"{where}: expected that {shapes.architecture} has the same parameters with it as without, got"
                    f" others; give it in {section}.options, which weights record"
                )
            if value and not draws_random_numbers(network, shapes.random_images()):
                raise ConfigError(
                    f"{where}: expected a network that it changes, got {shapes.architecture}, which draws no random"
                    f" numbers with it; leave it out"
                )


def _built(wanted: Architecture, shapes: Shapes) -> Network:
    return build_network(wanted, shapes.num_classes, shapes.channels)


def _parameters(network: Network) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items() if isinstance(value, Tensor)}
