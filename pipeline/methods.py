"""What each objective asks for: the teacher's signals, their size, and what is trained beside the student.

Nothing of a data set is read and nothing is computed but shapes. What a step costs is `make bench`'s to measure.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.cache.codecs import row_bytes
from dhkd.pipeline.build.cache import codec_of_signal
from dhkd.pipeline.build.training import student_of
from dhkd.pipeline.plan import samples_of, usual_setting
from dhkd.stages.models import build_network, count_parameters
from dhkd.stages.models.signals import parse
from dhkd.stages.train.objectives import OBJECTIVES, build_objective
from dhkd.stages.train.objectives.contract import Objective, Setting


def list_methods(
    experiment: Experiment, *, samples: int | None = None, classes: int | None = None
) -> list[dict[str, Any]]:
    """For each objective, with the preset's options, what it needs of the teacher and how large that is for a view.

    `cacheable` is None where it needs nothing of a teacher. `extra_parameters` counts what is trained beside the
    student's own network, `exported_parameters` what its export has more than that (SimKD). `samples` and `classes`
    are for sources that don't tell.
    """
    num_samples, num_classes, _ = samples_of(experiment, samples, classes)
    with torch.device("meta"):
        teacher = build_network(experiment.teacher.architecture, num_classes).eval()
    setting = replace(usual_setting(experiment, num_classes), teacher_network=teacher)
    found = []
    for name in OBJECTIVES:
        objective = build_objective(name, experiment.objectives.get(name, {}))
        found.append({"method": name, **_facts(experiment, objective, setting, num_samples)})
    return found


def _facts(experiment: Experiment, objective: Objective, plain: Setting, num_samples: int) -> Mapping[str, Any]:
    setting = replace(plain, student=plain.student.of(objective.architecture(plain)))
    needs, row = list(objective.needs(setting)), 0
    for own in needs:
        codec = codec_of_signal(experiment.cache.codec, own, setting.teacher.num_classes)
        row += row_bytes(codec.parts(setting.teacher.row(own)))
    with torch.device("meta"):
        student = student_of(objective, setting)
        own_parameters = count_parameters(build_network(plain.student.architecture, plain.student.num_classes))
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return {
        "signals": needs,
        "row_bytes": row,
        "view_bytes": num_samples * row,
        "cacheable": not any(parse(own).batch for own in needs) if needs else None,
        "takes_of_teacher": objective.takes_of_teacher,
        "extra_parameters": trained - own_parameters,
        "exported_parameters": count_parameters(student.backbone) - own_parameters,
    }
