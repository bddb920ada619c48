"""Losses that a user wrote: a function of the logits and the labels, or an `Objective`."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, isclass
from typing import Any

import torch
from dhkd.data.errors import ConfigError, OwnCodeError
from dhkd.data.options import checked_options, parameters_of, with_options
from dhkd.data.own_code import Own, running
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives.contract import Objective, Setting
from torch import Tensor, nn

ARGUMENTS = ("student_logits", "teacher_logits", "labels")
# Names that a combination or the metrics use for something else, so that no term may have them.
TAKEN = (
    *("ce", "loss", "learning_rate", "rows", "hits", "conflicts", "epoch", "seconds", "top1", "top5", "train_top1"),
    *("train_seconds", "samples_per_second", "conflicting_steps", "skipped_steps", "ema_top1", "ema_top5"),
)

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class OwnLoss(Objective):
    """An objective of one term: the value of `function(student_logits, teacher_logits, labels, **options)`.

    The logits are float32 (B, K). The labels are int64 (B,), or None for images without labels. The function sees the
    rows of all processes together, because it may compare them.
    """

    name: str
    function: Own
    options: Mapping[str, object] = field(default_factory=dict)

    couples_rows = True
    capturable = False  # it may ask the device for values

    @property
    def of_one_class(self) -> Sequence[str]:  # type: ignore[override]
        """The name of the function, which gets one label for each image."""
        return (self.name,)

    @property
    def term(self) -> str:
        """The term's name: the function's name, in characters that every tracker accepts."""
        name = re.sub(r"\W+", "_", self.name.rpartition(":")[2]).strip("_") or "own"
        return f"{name}_term" if name in TAKEN else name

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Return the teacher's logits as the only signal, without a temperature."""
        return {"logits": None}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Call the function. Raises `OwnCodeError` unless it returns a scalar through which a gradient flows."""
        classes_B = None if labels.are_absent else labels.one_class_each(self.name)
        with running(f"objective {self.name}"):
            loss = self.function(student.task, teacher["logits"], classes_B, **self.options)
        if not isinstance(loss, Tensor):
            raise OwnCodeError(f"objective {self.name}: expected that it returns a scalar tensor, got {_kind(loss)}")
        if loss.shape != ():
            raise OwnCodeError(
                f"objective {self.name}: expected that it returns a scalar, got the shape {tuple(loss.shape)}; take the"
                f" mean"
            )
        if torch.is_grad_enabled() and student.task.requires_grad and not loss.requires_grad:
            raise OwnCodeError(
                f"objective {self.name}: expected a loss with a gradient, got one that doesn't depend on the student's"
                f" logits; compute it from student_logits by torch's functions, without detach and no_grad"
            )
        return {self.term: loss}

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the weight 1; a combination multiplies it by the part's factor."""
        return {self.term: 1.0}


def own_objective(name: str, thing: object, options: Mapping[str, object]) -> Objective:
    """Make an objective from what a user wrote: an `Objective`, a subclass of it, or a function.

    A function takes the student's logits, the teacher's logits and the labels; its further arguments are options. A
    function without these three arguments makes an `Objective` from its options. Raises `ConfigError` for anything
    else, and for wrong options.
    """
    where = f"objective {name!r}"
    if isinstance(thing, Objective):
        return with_options(where, lambda: thing, options)
    if isclass(thing) and not issubclass(thing, Objective):
        raise ConfigError(f"{where}: expected a function or a subclass of Objective, got the class {thing.__name__}")
    assert callable(thing)
    parameters = _parameters(where, thing)
    positional = [key for key, one in parameters.items() if one.kind in _POSITIONAL]
    if isclass(thing) or not (positional or _has(parameters, Parameter.VAR_POSITIONAL)):
        with running(where):
            made = with_options(where, thing, options)
        if not isinstance(made, Objective):
            raise ConfigError(f"{where}: {_expected(name, parameters)}")
        return made
    if len(positional) < len(ARGUMENTS) and not _has(parameters, Parameter.VAR_POSITIONAL):
        raise ConfigError(f"{where}: {_expected(name, parameters)}")
    further = {key: one for key, one in parameters.items() if key not in positional[: len(ARGUMENTS)]}
    return OwnLoss(name, thing, checked_options(where, further, options))


def _parameters(where: str, thing: Own) -> Mapping[str, Parameter]:
    try:
        return parameters_of(thing.forward if isinstance(thing, nn.Module) else thing)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: expected a function of ({', '.join(ARGUMENTS)}) ({error})") from error


def _has(parameters: Mapping[str, Parameter], kind: Any) -> bool:
    return any(one.kind is kind for one in parameters.values())


def _expected(name: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    got = f"{name.rpartition(':')[2]}({', '.join(parameters)})"
    return f"expected a function of ({', '.join(ARGUMENTS)}), got {got}"


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
