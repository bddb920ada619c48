"""Builds what regularizes a training from its settings, and checks that it fits the experiment."""

from dhkd.configs.schema import Experiment, Training
from dhkd.data.errors import ConfigError
from dhkd.stages.train.early_stopping import EarlyStopping
from dhkd.stages.train.ema import Ema
from dhkd.stages.train.objectives import own_objectives
from dhkd.stages.train.objectives.combined import CE
from dhkd.stages.train.objectives.contract import Objective


def ema_of(training: Training) -> Ema | None:
    """Build the average of the weights, which has not begun yet, or return None if the settings want none."""
    settings = training.ema
    return None if settings is None else Ema(settings.decay, warmup=settings.warmup, every=settings.every)


def early_stopping_of(training: Training) -> EarlyStopping | None:
    """Build the rule by which training ends early, or return None if it doesn't."""
    settings = training.early_stopping
    return None if settings is None else EarlyStopping(settings.patience, settings.min_delta, settings.monitor)


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
    if CE not in objective.needs_labels and not own:
        raise ConfigError(
            f"{section}.label_smoothing: expected an objective with a cross-entropy, got {experiment.objective!r}, in"
            f" which none has a weight; leave the setting out"
        )
