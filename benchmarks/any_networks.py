"""Checks which methods run for which pairs of networks, with a forward and backward pass of two images on the CPU.

    python -P -m dhkd.benchmarks.any_networks [--out FILE.md]

prints the table of docs/networks.md. The networks are randomly initialised; nothing is downloaded.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from dhkd.pipeline.fits import misfit, trial_teacher
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.signals import Shapes
from dhkd.stages.train.objectives import OBJECTIVES, build_objective
from dhkd.stages.train.objectives.contract import Setting

CLASSES, PIXELS = 10, 32
OURS = Architecture("resnet8")
CNN = Architecture("timm:resnet10t")
POOLED_TWICE = Architecture("timm:mobilenetv3_small_050")
VIT = Architecture("timm:vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "depth": 4})
LIBRARYS = Architecture("torchvision:resnet18")
PAIRS = (
    (CNN, OURS),
    (OURS, CNN),
    (CNN, VIT),
    (VIT, CNN),
    (POOLED_TWICE, VIT),
    (VIT, POOLED_TWICE),
    (LIBRARYS, CNN),
    (LIBRARYS, VIT),
)
SHORT = {VIT.name: "vit_tiny", POOLED_TWICE.name: "mobilenetv3_small", CNN.name: "resnet10t", LIBRARYS.name: "resnet18"}


def setting_of(teacher: Architecture, student: Architecture) -> Setting:
    """Return the `Setting` of a pair of networks, with a randomly initialised teacher."""
    of_student, of_teacher = (Shapes(one, CLASSES, (PIXELS, PIXELS)) for one in (student, teacher))
    plain = Setting(of_student, of_teacher, torch.arange(4 * CLASSES) % CLASSES, 0)
    return replace(plain, teacher_network=trial_teacher(plain))


def faults(teacher: Architecture, student: Architecture, names: Sequence[str] = tuple(OBJECTIVES)) -> dict[str, str]:
    """Return, for each method that doesn't run for this pair, the reason."""
    setting = setting_of(teacher, student)
    found = {name: misfit(build_objective(name, {}), setting, backward=True) for name in names}
    return {name: fault for name, fault in found.items() if fault is not None}


def table(pairs: Sequence[tuple[Architecture, Architecture]] = PAIRS) -> str:
    """Return the Markdown table of methods and pairs, followed by the numbered reasons why some methods don't run."""
    of_pairs = {pair_name(*pair): faults(*pair) for pair in pairs}
    lines = [f"| method | {' | '.join(of_pairs)} |", f"|---|{'---|' * len(of_pairs)}"]
    reasons = sorted({fault for fault_of in of_pairs.values() for fault in fault_of.values()})
    numbers = {reason: number for number, reason in enumerate(reasons, 1)}
    for name in OBJECTIVES:
        cells = [f"no ({numbers[fault_of[name]]})" if name in fault_of else "yes" for fault_of in of_pairs.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in numbers.items())])


def pair_name(teacher: Architecture, student: Architecture) -> str:
    """Return the pair as TEACHER → STUDENT, with short names."""
    return " → ".join(SHORT.get(one.name, one.name) for one in (teacher, student))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table into this file")
    arguments = parser.parse_args()
    text = table()
    sys.stdout.write(text + "\n")
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
