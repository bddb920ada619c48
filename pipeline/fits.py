"""Finds out whether an objective runs for a pair of networks, by computing its losses for two images on the CPU."""

from dataclasses import replace

import torch
from dhkd.data.errors import ConfigError, DhkdError
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.pipeline.build.training import student_of
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.signals import Shapes, needs_maps, parse, signals_of_outputs
from dhkd.stages.train.objectives.contract import Objective, Setting
from torch import Tensor

ROWS = 2


def setting_for(objective: Objective, plain: Setting) -> Setting:
    """Return `plain`, the setting with the preset's student, with the network that `objective` trains as student."""
    return replace(plain, student=plain.student.of(objective.architecture(plain)))


def trial_teacher(setting: Setting) -> Network:
    """Build the setting's teacher, in eval mode, with freshly initialised weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return build_network(setting.teacher.wanted, setting.teacher.num_classes, setting.teacher.channels).eval()


def misfit(objective: Objective, plain: Setting, *, backward: bool = False) -> str | None:
    """Return in one line why `objective` doesn't run for these two networks; None if it runs.

    To find out, the losses are computed and, if `backward` is set, their gradients. `plain` is the setting with the
    preset's student, and it must have a teacher network.
    """
    try:
        with torch.random.fork_rng(devices=()):
            return _trial(objective, plain, backward=backward)
    except DhkdError as error:
        return str(error)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _trial(objective: Objective, plain: Setting, *, backward: bool) -> str | None:
    setting = setting_for(objective, plain)
    needs = list(objective.needs(setting))
    for shapes, names in ((setting.student, objective.reads(setting)), (setting.teacher, needs)):
        for name in names:
            shapes.row(name)
    student = student_of(objective, setting).train()
    of_teacher = _signals(setting, needs)
    labels = Labels(torch.arange(ROWS))
    images_BCHW = _images(setting.student)
    batch = Batch(0, torch.zeros(ROWS, dtype=torch.int64), torch.arange(ROWS), images_BCHW, labels, of_teacher, ROWS)
    with torch.set_grad_enabled(backward):
        outputs = student(images_BCHW, batch)
        terms = objective.terms(outputs, labels, of_teacher)
        if backward:
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
    broken = [name for name, term in terms.items() if not bool(torch.isfinite(term))]
    if broken:
        raise ConfigError(f"expected finite losses, got none for {', '.join(broken)}")
    return None


@torch.no_grad()
def _signals(setting: Setting, names: list[str]) -> dict[str, Tensor]:
    """Compute the teacher's signals; batch norm uses running statistics, even for signals with the suffix -batch."""
    if not names:
        return {}
    assert setting.teacher_network is not None
    plain = {name: name.removesuffix("-batch") if parse(name).batch else name for name in names}
    outputs = setting.teacher_network.outputs(_images(setting.teacher), maps=needs_maps(names))
    signals = signals_of_outputs(setting.teacher_network, outputs, set(plain.values()))
    return {name: signals[kept].float() for name, kept in plain.items()}


def _images(shapes: Shapes) -> Tensor:
    return torch.rand(ROWS, shapes.channels, *shapes.image, generator=torch.Generator().manual_seed(0))
