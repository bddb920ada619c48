"""Print the table of methods in docs/methods.md: `python benchmarks/method_table.py BENCH.json`.

The signals (teacher outputs) that a method needs, and their sizes, come from the presets of CIFAR-100 and ImageNet. The
cost of a step comes from the file that `make bench ARGS="--only methods"` writes; without the file, that column stays
empty.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from dhkd.configs.load import load_experiment
from dhkd.pipeline.cli.tables.methods import signals_in_short
from dhkd.pipeline.methods import Method, list_methods
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
SOURCE_OF_SIGNALS = {None: "–", True: "cache or live", False: "live"}


def method_table(step_costs: Mapping[str, str], presets: tuple[str, str] = PRESETS) -> list[str]:
    """Build the table's lines in Markdown; `step_costs` has each method's cost relative to cross-entropy, as text."""
    described = {preset: list_methods(load_experiment(preset)) for preset in set(presets)}
    on_cifar, on_imagenet = (described[preset] for preset in presets)
    lines = [f"| {' | '.join(HEADER)} |", "|---|---|" + "---:|" * 2 + "---|" + "---:|" * 2]
    for cifar, imagenet in zip(on_cifar, on_imagenet, strict=True):
        cells = (
            f"`{cifar.method}`",
            _needs(cifar),
            _megabytes(cifar),
            _megabytes(imagenet),
            SOURCE_OF_SIGNALS[cifar.cacheable],
            f"{cifar.extra_parameters:,}",
            step_costs.get(cifar.method, ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _needs(method: Method) -> str:
    signals = f"`{signals_in_short(method.signals)}`" if method.signals else "–"
    return f"{signals} and its {method.takes_of_teacher}" if method.takes_of_teacher else signals


def _megabytes(method: Method) -> str:
    if not method.signals:
        return "–"
    size = method.view_bytes / 1e6
    return f"{size:,.1f}" if size < 1000 else f"{size:,.0f}"


def read_step_costs(bench: Path) -> dict[str, str]:
    """Read each method's median from a JSON file of `dhkd bench`, with the mark "live" if the teacher ran live."""
    costs = {"ce": "1"}
    for figure in json.loads(bench.read_bytes())["figures"]:
        match = re.fullmatch(r"step: (.+) \((live|cached|no teacher)\) / ce", figure["name"])
        if match:
            costs[match[1]] = f"{figure['value']:.2f}{' live' if match[2] == 'live' else ''}"
    return costs


if __name__ == "__main__":
    costs = read_step_costs(Path(sys.argv[1])) if len(sys.argv) > 1 else {}
    Console(width=1000, highlight=False, markup=False).print("\n".join(method_table(costs)))
