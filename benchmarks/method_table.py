"""The table of methods in docs/methods.md: `python benchmarks/method_table.py BENCH.json`.

What each needs and how large that is comes from the presets of CIFAR-100 and ImageNet, what a step costs from the file
that `make bench ARGS="--only methods"` wrote; without one that column is left empty.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from dhkd.configs.load import load_experiment
from dhkd.pipeline.methods import list_methods
from dhkd.stages.report.tables import signals_in_short
from rich.console import Console

PRESETS = ("cifar100/resnet32x4-resnet8x4", "imagenet/resnet34-resnet18")
HEADER = (
    "method",
    "needs of the teacher",
    "MB a view, CIFAR-100",
    "MB a view, ImageNet",
    "from",
    "extra parameters",
    "step / ce",
)


def method_table(steps: dict[str, str]) -> list[str]:
    """The table's lines in Markdown; `steps` has each method's cost over cross-entropy, as text."""
    small, large = (list_methods(load_experiment(preset)) for preset in PRESETS)
    lines = [f"| {' | '.join(HEADER)} |", "|---|---|" + "---:|" * 2 + "---|" + "---:|" * 2]
    for one, other in zip(small, large, strict=True):
        needs = f"`{signals_in_short(one['signals'])}`" if one["signals"] else "–"
        if one["takes_of_teacher"]:
            needs += f" and its {one['takes_of_teacher']}"
        sizes = [_megabytes(row) for row in (one, other)]
        cells = [f"`{one['method']}`", needs, *sizes, _source(one), f"{one['extra_parameters']:,}"]
        lines.append(f"| {' | '.join([*cells, steps.get(one['method'], '')])} |")
    return lines


def _megabytes(row: dict[str, Any]) -> str:
    if not row["signals"]:
        return "–"
    size = row["view_bytes"] / 1e6
    return f"{size:,.1f}" if size < 1000 else f"{size:,.0f}"


def _source(row: dict[str, Any]) -> str:
    return {None: "–", True: "cache or live", False: "live"}[row["cacheable"]]


def step_costs(bench: Path) -> dict[str, str]:
    """Each method's median, and whether its signals were cached, of a bench's JSON."""
    costs = {"ce": "1"}
    for figure in json.loads(bench.read_bytes())["figures"]:
        found = re.fullmatch(r"step: (.+) \((live|cached|no teacher)\) / ce", figure["name"])
        if found:
            costs[found[1]] = f"{figure['value']:.2f}{' live' if found[2] == 'live' else ''}"
    return costs


if __name__ == "__main__":
    costs = step_costs(Path(sys.argv[1])) if len(sys.argv) > 1 else {}
    Console(width=1000, highlight=False, markup=False).print("\n".join(method_table(costs)))
