"""What each objective needs: signals (teacher outputs), their sizes, and parameters to train besides the student's.

No data is read, and networks have no trained weights. `dhkd bench` measures what a step of each method costs.
"""

import copy
from dataclasses import dataclass, replace

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.cache.codecs import row_bytes
from dhkd.data.errors import ConfigError
from dhkd.pipeline.build.cache import codec_of_signal
from dhkd.pipeline.build.checks import require_one_class
from dhkd.pipeline.build.training import student_of
from dhkd.pipeline.fits import misfit, setting_for, trial_teacher
from dhkd.pipeline.sizes import data_size_of, setting_without_data
from dhkd.stages.models import build_network, count_parameters
from dhkd.stages.models.signals import parse
from dhkd.stages.train.objectives import OBJECTIVES, build_objective, own_objectives
from dhkd.stages.train.objectives.contract import Objective, Setting


@dataclass(frozen=True)
class Method:
    """What a method needs from the teacher, and what the method adds to the student.

    The fields are the keys of `dhkd methods --json`. `stands_against` is None if the method runs for the preset's two
    networks and its views. Otherwise it gives the reason in one line, and the signals and numbers are empty.
    `row_bytes` and `view_bytes` are the size of all signals, for one sample and for one view. `cacheable` is None if
    the method needs no signal. `takes_of_teacher` is the part of the teacher's network that the method reuses, or None.
    `extra_parameters` counts the parameters that are trained besides the student's. `exported_parameters` counts the
    parameters that the exported network has besides the student's (only SimKD has such parameters).
    """

    method: str
    signals: tuple[str, ...]
    row_bytes: int
    view_bytes: int
    cacheable: bool | None
    takes_of_teacher: str | None
    extra_parameters: int
    exported_parameters: int
    stands_against: str | None = None


def list_methods(experiment: Experiment, *, samples: int | None = None, classes: int | None = None) -> list[Method]:
    """Describe every objective, with the preset's options and for the preset's teacher and student.

    Objectives that users wrote are included if the preset names them.

    `samples` and `classes` are for sources whose size is unknown until they are read.
    """
    data = data_size_of(experiment, samples, classes)
    setting = setting_without_data(experiment, data.classes)
    setting = replace(setting, teacher_network=trial_teacher(setting))
    methods = []
    for name in [*OBJECTIVES, *own_objectives(experiment.objective)]:
        objective = build_objective(name, experiment.objectives.get(name, {}))
        fault = misfit(objective, setting) or _refused(experiment.model_copy(update={"objective": name}), objective)
        if fault is None:
            methods.append(_method(name, objective, experiment, setting, data.samples))
        else:
            methods.append(Method(name, (), 0, 0, None, objective.takes_of_teacher, 0, 0, fault))
    return methods


def _refused(experiment: Experiment, objective: Objective) -> str | None:
    """Return one line that says why the objective can't learn from the preset's images, or None if it can."""
    try:
        require_one_class(experiment, objective)
    except ConfigError as error:
        return str(error)
    return None


def _method(name: str, objective: Objective, experiment: Experiment, plain: Setting, num_samples: int) -> Method:
    """Describe one objective.

    `plain` is the setting with the preset's own student; some objectives train another network in its place.
    """
    setting = setting_for(objective, plain)
    signals, row = tuple(objective.needs(setting)), 0
    for signal in signals:
        codec = codec_of_signal(experiment.cache.codec, signal, setting.teacher.num_classes)
        row += row_bytes(codec.parts(setting.teacher.row(signal)))
    device = setting.student.device
    if setting.teacher_network is not None:
        setting = replace(setting, teacher_network=copy.deepcopy(setting.teacher_network).to(device))
    with torch.device(device), torch.random.fork_rng(devices=()):
        student = student_of(objective, setting)
        preset_parameters = count_parameters(
            build_network(plain.student.wanted, plain.student.num_classes, plain.student.channels)
        )
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return Method(
        method=name,
        signals=signals,
        row_bytes=row,
        view_bytes=num_samples * row,
        cacheable=not any(parse(signal).batch for signal in signals) if signals else None,
        takes_of_teacher=objective.takes_of_teacher,
        extra_parameters=max(trained - preset_parameters, 0),  # cat-kd leaves the bias of the classifier as it is
        exported_parameters=count_parameters(student.backbone) - preset_parameters,
    )
