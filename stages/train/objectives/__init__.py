"""The objectives by name. Adding a method takes one file in this folder and one line in `OBJECTIVES`.

`my_loss.py:NAME` and `package.module:NAME` are objectives that users wrote (`own.py`).
"""

import re
from collections.abc import Callable, Mapping

from dhkd.data.errors import ConfigError
from dhkd.data.options import with_options
from dhkd.data.own_code import find
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.objectives.attention import AttentionTransfer
from dhkd.stages.train.objectives.binary_kl import BinaryKL, BinaryKLNorm
from dhkd.stages.train.objectives.cat_kd import CATKD
from dhkd.stages.train.objectives.combined import Combined
from dhkd.stages.train.objectives.contract import MAX_WEIGHT, Objective
from dhkd.stages.train.objectives.crd import CRD
from dhkd.stages.train.objectives.cross_entropy import CrossEntropy, LabelSmoothing
from dhkd.stages.train.objectives.dhkd import DHKD
from dhkd.stages.train.objectives.dist import DIST
from dhkd.stages.train.objectives.dkd import DKD
from dhkd.stages.train.objectives.fitnet import FitNet
from dhkd.stages.train.objectives.kd import KD, LogitMSE
from dhkd.stages.train.objectives.ofd import OFD
from dhkd.stages.train.objectives.own import own_objective
from dhkd.stages.train.objectives.reviewkd import ReviewKD
from dhkd.stages.train.objectives.rkd import RKD
from dhkd.stages.train.objectives.simkd import SimKD

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "ce": CrossEntropy,
    "label-smoothing": LabelSmoothing,
    "kd": KD,
    "mse": LogitMSE,
    "dkd": DKD,
    "dist": DIST,
    "binary-kl": BinaryKL,
    "binary-kl-norm": BinaryKLNorm,
    "dhkd": DHKD,
    "fitnet": FitNet,
    "at": AttentionTransfer,
    "rkd": RKD,
    "crd": CRD,
    "ofd": OFD,
    "reviewkd": ReviewKD,
    "simkd": SimKD,
    "cat-kd": CATKD,
}

_PART = re.compile(r"(?:(?P<factor>[^*+]+?)\s*\*)?\s*(?P<name>[^*+]+)")


def combined_objective(
    text: str, options: Mapping[str, Mapping[str, object]], alignment: Alignment | None = None
) -> Objective:
    """Build the objective that a text such as "NAME" or "NAME + 0.5 * NAME" describes.

    `options` maps the names of parts to their options. If `alignment` is given, it replaces the alignment of the parts;
    if it is None, the first part that has an alignment determines the alignment. Raises `ConfigError`, with a one-line
    message, for a text or options that are not valid.
    """
    for name in options:
        find("objective", name, OBJECTIVES, (Objective,))
    parts = [(name, factor, build_objective(name, options.get(name, {}))) for name, factor in _parts(text)]
    if len(parts) == 1 and parts[0][1] == 1 and alignment is None:
        return parts[0][2]
    return Combined(tuple(parts), alignment)


def own_objectives(text: str) -> list[str]:
    """Return the names of the user-written objectives in a text. Raises `ConfigError` if the text is not valid."""
    return [name for name, _ in _parts(text) if name not in OBJECTIVES]


def _parts(text: str) -> list[tuple[str, float]]:
    """Return the name and the factor of each part of an objective."""
    parts = []
    for part in text.split("+"):
        match = _PART.fullmatch(part.strip())
        if not match:
            raise ConfigError(f"objective {text!r}: expected NAME, or NAME + FACTOR * NAME")
        parts.append((match["name"].strip(), _factor(match["factor"], text)))
    return parts


def _factor(text: str | None, objective: str) -> float:
    try:
        factor = float(text or 1)
    except ValueError:
        factor = -1.0
    if not 0 < factor < float("inf"):
        raise ConfigError(f"objective {objective!r}: expected a finite factor > 0, got {text!r}")
    if factor > MAX_WEIGHT:
        raise ConfigError(f"objective {objective!r}: expected a factor of at most {MAX_WEIGHT:g}, got {text!r}")
    return factor


def build_objective(name: str, options: Mapping[str, object]) -> Objective:
    """Build the objective `name` with these options; all other options keep their defaults.

    Raises `ConfigError`, with a one-line message, for an unknown name or option, for a value of the wrong type (an int
    is accepted as a float, but a string is never accepted as a number) and for a value out of range.
    """
    if name in OBJECTIVES:
        return with_options(f"objective {name!r}", OBJECTIVES[name], options)
    return own_objective(name, find("objective", name, OBJECTIVES, (Objective,)), options)
