"""Test accuracy of networks during training and caching, and of the weights given to `dhkd evaluate`."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import Images
from dhkd.data.images.held_out import VAL
from dhkd.data.render import Normalization, Renderer
from dhkd.data.runs.measured import USUAL
from dhkd.pipeline.build.code import code_facts, code_of_data, code_of_network, require_code_of_run
from dhkd.pipeline.build.data import channels_of, normalization_of, plain_identity, test_renderer_of
from dhkd.pipeline.build.networks import Trained, architecture_of, chosen_network, classes_in, trained_network
from dhkd.pipeline.build.teacher import (
    ROLE,
    seen_by_teacher,
    teacher_normalization,
    teachers_classes,
    trained_teacher,
)
from dhkd.pipeline.chance import chance_fault, order_fault
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.environment import processes_for, unreadable_files, versions
from dhkd.pipeline.results import Evaluated
from dhkd.stages.agreement import require_agreement
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.evaluate import Accuracy, evaluate, top_classes
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Precision, Processes
from torch import Tensor, nn

log = logging.getLogger("dhkd")

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Evaluator:
    """A test set, and the normalisation of the networks that are evaluated on it.

    `classes_N`, int64, takes the place of labels if the test images have none.
    """

    renderer: Renderer
    normalize: Normalization
    processes: Processes
    classes_N: Tensor | None = None

    def __call__(self, network: nn.Module) -> Accuracy:
        """Return the accuracy of a network, which must be in eval mode and on the device."""
        return evaluate(
            network,
            self.renderer,
            self.normalize,
            batch_size=EVALUATION_BATCH,
            processes=self.processes,
            classes_N=self.classes_N,
        )


def evaluate_network(
    experiment: Experiment,
    weights: Path,
    role: str,
    *,
    data: DataOptions,
    cpu: bool = False,
    against: Path | None = None,
) -> Evaluated:
    """Measure the test accuracy of the preset's teacher or student; `weights` is a run folder or a weights file.

    If `against` names the teacher's weights, the agreement with that teacher is measured instead; labels are not used.
    """
    settings = experiment.teacher if role == "teacher" else experiment.student
    with processes_for(settings.precision, cpu=cpu) as processes:
        architecture, of_teacher = architecture_of(weights, role, chosen_network(settings)), role == ROLE
        code = {**code_of_network(architecture.name), **code_of_data(experiment)}
        if weights.is_dir():
            require_code_of_run(weights, code)
        test = test_renderer_of(
            experiment,
            processes.device,
            data,
            classes=lambda: (
                teachers_classes(experiment, weights)
                if of_teacher
                else classes_in(chosen_network(settings), weights, role)
            ),
        )
        if test.images.labels_N is None and against is None:
            raise ConfigError(
                f"{test.images.name}: the {test.images.split} images have no labels: expected a teacher to compare the"
                f" student with, got none; give both --student and --teacher"
            )
        trained = _trained(experiment, architecture, test.images, weights, role, data)
        network = trained.network.to(processes.device).to(memory_format=torch.channels_last)
        told = {"weights": trained.sha256, **code_facts(code)}
        require_agreement(processes, lambda: {"data": plain_identity(test.images), **told})
        classes_N = None if against is None else _classes_of_teacher(experiment, against, test, data, processes)
        if of_teacher:
            test = seen_by_teacher(experiment, test, data)
            normalize = teacher_normalization(experiment, test.images, trained.mean_std)
        else:
            normalize = normalization_of(settings, test.images, trained.mean_std)
        accuracy_of = Evaluator(test, normalize, processes, classes_N)
        with torch.inference_mode():
            accuracy = accuracy_of(network)
        fault = against is None and (order_fault(accuracy, test.images) or chance_fault(accuracy, test.images))
        if fault and processes.is_first:
            log.warning("%s: %s", role, fault)
        return Evaluated(
            architecture=architecture.name,
            weights=trained.origin,
            sha256=trained.sha256,
            top1=accuracy.top1,
            top5=accuracy.top5,
            samples=len(test.images),
            measured=_measured(test.images, agreement=against is not None),
            unreadable_files=unreadable_files(test, processes),
            precision=processes.precision,
            versions=versions(),
        )


def _trained(
    experiment: Experiment, architecture: Architecture, images: Images, weights: Path, role: str, data: DataOptions
) -> Trained:
    if role == ROLE and experiment.teacher.classes is not None:
        return trained_teacher(experiment, images, weights, data)
    settings = experiment.teacher if role == ROLE else experiment.student
    return trained_network(architecture, images.num_classes, weights, role, channels_of(settings, images))


def _classes_of_teacher(
    experiment: Experiment, weights: Path, test: Renderer, data: DataOptions, processes: Processes
) -> Tensor:
    trained = trained_teacher(experiment, test.images, weights, data)
    return classes_of_teacher(experiment, trained, test, data, processes)


def classes_of_teacher(
    experiment: Experiment,
    teacher: Trained,
    test: Renderer,
    data: DataOptions,
    processes: Processes,
    precision: Precision | None = None,
) -> Tensor:
    """Return the teacher's most probable class of every test image, int64 (N,) on the CPU."""
    normalize = teacher_normalization(experiment, test.images, teacher.mean_std)
    seen = seen_by_teacher(experiment, test, data)
    live = Teacher(copy.deepcopy(teacher.network), normalize, processes, precision)
    # Pixels go in unchanged, because a `Teacher` normalises them itself.
    return top_classes(live.logits, seen, lambda pixels: pixels, batch_size=EVALUATION_BATCH, processes=processes)


def _measured(images: Images, *, agreement: bool) -> str | None:
    name = f"{VAL if images.split == VAL else 'test'} {'agreement' if agreement else 'accuracy'}"
    return name if name != USUAL else None
