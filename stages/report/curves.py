"""Pictures of runs: test accuracy over epochs."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from dhkd.data.files import write_atomically


def accuracy_curves(curves: Mapping[str, Sequence[float]], teacher_top1: float, title: str, path: Path) -> None:
    """Draw each run's top-1 accuracy in percent after every epoch, and the teacher's as a line, as a PNG at `path`."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, accuracies), marker in zip(curves.items(), cycle("osD^v<>"), strict=False):
        axes.plot(range(1, len(accuracies) + 1), accuracies, marker=marker, label=name)
    axes.axhline(teacher_top1, color="grey", linestyle="--", label="teacher")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="test top-1 accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=150))
