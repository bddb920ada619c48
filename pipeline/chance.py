"""The check before caching that a teacher does better than guessing, and that its classes are in the data's order.

A teacher whose classes are numbered in another order works without an error, and every student of its cache would
learn the wrong classes.
"""

import logging
import math

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.errors import DataError
from dhkd.data.images.base import Images
from dhkd.data.sources import source_of
from dhkd.stages.models.evaluate import Accuracy

log = logging.getLogger("dhkd")

LEAST_SAMPLES = 100  # test samples from which accuracies near that of guessing mean anything
LEAST_RENUMBERED = 0.5  # share of samples that must be right with other numbers, before an order is called wrong
LOG_ODDS = 7.0  # e^7 to 1 against chance


def require_better_than_chance(experiment: Experiment, accuracy: Accuracy, images: Images) -> None:
    """Raise `DataError` for a teacher whose classes are in another order, or that does no better than guessing.

    Guessing is only logged if the preset sets `teacher.allow_chance`, if the data set comes with the program, whose
    order of classes is fixed, or if there are fewer than 100 test samples.
    """
    fault = order_fault(accuracy, images) or chance_fault(accuracy, images)
    if fault is None:
        return
    line = f"teacher: {fault}; {_remedy(experiment)}"
    fixed = "classes" not in source_of(experiment.data.source).takes and order_fault(accuracy, images) is None
    if experiment.teacher.allow_chance or fixed:
        log.warning("%s", line)
    else:
        raise DataError(f"{line}, or cache it as it is with --set teacher.allow_chance=true")


def chance_fault(accuracy: Accuracy, images: Images) -> str | None:
    """Describe an accuracy within two standard deviations of that of guessing, or return None."""
    total, share = len(images), 1 / images.num_classes
    expected = total * share
    if total < LEAST_SAMPLES or accuracy.top1 * total / 100 > expected + 2 * math.sqrt(expected * (1 - share)):
        return None
    return (
        f"test accuracy expected above {100 * share:.2f} %, which guessing among {images.num_classes} classes gives,"
        f" got {accuracy.top1:.2f} %"
    )


def order_fault(accuracy: Accuracy, images: Images) -> str | None:
    """Describe how the network's classes differ from the data's by their order, or return None.

    They do if most samples would be right with the classes renumbered, and if chance is no explanation: the odds are
    Chernoff's bound on so many hits of a guess, times the number of ways to renumber.
    """
    if accuracy.top_N is None or images.labels_N is None:
        return None
    total, num_classes = len(images), images.num_classes
    pairs, counts = torch.unique(images.labels_N * num_classes + accuracy.top_N, return_counts=True)
    number_of: dict[int, int] = {}  # the data's number of each of the network's classes
    renumbered = 0
    for pair, count in sorted(zip(pairs.tolist(), counts.tolist(), strict=True), key=lambda item: (-item[1], item[0])):
        label, top = divmod(pair, num_classes)
        if top not in number_of and label not in number_of.values():
            number_of[top] = label
            renumbered += count
    share = renumbered / total
    moved = [(label, top) for top, label in sorted(number_of.items()) if label != top]
    if not moved or share < LEAST_RENUMBERED or accuracy.top1 / 100 > share / 2:
        return None
    if total * _divergence(share, 1 / num_classes) < math.lgamma(num_classes + 1) + LOG_ODDS:
        return None
    label, top = moved[0]
    return (
        f"its classes are in another order than the data's: it takes class {label} for class {top}, and with the"
        f" classes renumbered its test accuracy would be {100 * share:.2f} % instead of {accuracy.top1:.2f} %"
    )


def _divergence(one: float, other: float) -> float:
    """Return the Kullback-Leibler divergence of two coins, in nats."""
    rest = (1 - one) * math.log((1 - one) / (1 - other)) if one < 1 else 0.0
    return one * math.log(one / other) + rest


def _remedy(experiment: Experiment) -> str:
    takes = source_of(experiment.data.source).takes
    if "first_label" in takes:
        return "correct data.first_label, or data.classes where labels are names, or the teacher's file"
    if "classes" in takes:
        return "set data.classes to number, or to a file with the teacher's order, or correct the teacher's file"
    return "check the teacher's file and its mean and std"
