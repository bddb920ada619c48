"""What a network's test predictions are compared with: labels or, for images without labels, a teacher's classes.

A student's agreement with its teacher is the share of test images for which both give the same class the highest
probability. The teacher's classes come from the teacher's network if it is loaded, or else from the cache:
`cache-teacher` records them in the provenance of its signals, together with the fingerprint of the test images.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.cache.manifest import signal_name, teachers_own
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import Images
from dhkd.data.images.held_out import VAL
from dhkd.data.runs.measured import USUAL
from dhkd.pipeline.build.cache import LOGITS, MEAN_OF_TEACHERS
from dhkd.pipeline.build.checks import labels_of
from dhkd.pipeline.build.students import Source
from dhkd.pipeline.evaluation import Evaluator, classes_of_teacher
from torch import Tensor

TEST_CLASSES, TEST_DATA = "teacher_test_classes", "test_data"  # keys of a signal's provenance


def with_reference(
    accuracy_of: Evaluator,
    experiment: Experiment,
    source: Source,
) -> Evaluator:
    """Return an evaluator that compares with labels or, for images without labels, with the teacher's classes.

    `source` has the training images, the cache and the teacher. Raises `ConfigError` if neither is available.
    """
    test = accuracy_of.renderer
    if measured(experiment, source.images).endswith("accuracy"):
        labels_of(test.images)
        return accuracy_of
    if source.teacher is not None:
        precision = source.teacher_precision
        classes_N = classes_of_teacher(experiment, source.teacher, test, source.data, accuracy_of.processes, precision)
    else:
        classes_N = _recorded(experiment, source.reader, test.images)
    return replace(accuracy_of, classes_N=classes_N)


def recorded_classes(classes_N: Tensor, images: Images) -> dict[str, Any]:  # JSON, for a signal's provenance
    """Return the entries of a signal's provenance that hold a teacher's classes of these test images."""
    return {TEST_CLASSES: classes_N.tolist(), TEST_DATA: images.fingerprint()}


def _recorded(experiment: Experiment, reader: LogitReader | None, images: Images) -> Tensor:
    remedy = "give the teacher's weights with --teacher FILE, or test images with labels (data.labels=test)"
    what = f"{images.name}: the {images.split} images have no labels, so agreement with the teacher is measured"
    name = experiment.student.teacher
    if name == MEAN_OF_TEACHERS:
        raise ConfigError(f"{what}: expected one teacher, got the mean of several; {remedy}")
    if reader is None:
        raise ConfigError(f"{what}: expected its weights, got none; {remedy}")
    fingerprint = images.fingerprint()
    for signal, provenance in reader.manifest.provenance.items():
        recorded = provenance if isinstance(provenance, Mapping) else {}
        of_teacher = signal == signal_name(name, teachers_own(signal))
        if of_teacher and recorded.get(TEST_DATA) == fingerprint:
            classes = recorded.get(TEST_CLASSES)
            if _are_classes(classes, len(images), images.num_classes):
                return torch.tensor(classes, dtype=torch.int64)
    raise ConfigError(
        f"{what}: expected the teacher's classes of these images in the cache at {reader.location}, found none for"
        f" {signal_name(name, LOGITS)}; {remedy}"
    )


def _are_classes(classes: Any, num_samples: int, num_classes: int) -> bool:  # JSON, which anyone may have written
    if not isinstance(classes, list) or len(classes) != num_samples:
        return False
    return all(type(value) is int and 0 <= value < num_classes for value in classes)


def measured(experiment: Experiment, images: Images) -> str:
    """Return what runs of the experiment measure: test accuracy, val accuracy, test agreement or val agreement.

    `images` are the training images.
    """
    part = "test" if experiment.data.val_fraction is None else VAL
    labelled = experiment.data.labels == "test" or images.labels_N is not None
    return f"{part} {'accuracy' if labelled else 'agreement'}"


def measured_fact(experiment: Experiment, images: Images) -> dict[str, str]:
    """Return the fact in a run's config.yaml that says what its figures are; empty for accuracy on the test split."""
    name = measured(experiment, images)
    return {} if name == USUAL else {"measured": name}
