"""evaluate and export: what is done with a trained network."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from dhkd.pipeline.cli.options import (
    PATH,
    ExperimentOptions,
    cpu_option,
    data_options,
    experiment_options,
    gathered,
    json_option,
    precision_option,
)
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.data_options import DataOptions

if TYPE_CHECKING:
    from dhkd.pipeline.results import Evaluated, Exported


@dataclass(frozen=True)
class EvaluateOptions:
    """Whose weights are evaluated, and in what they compute."""

    teacher: Path | None
    student: Path | None
    precision: str | None
    cpu: bool

    def network(self, preset: str) -> tuple[Path, str]:
        """The weights and their role; without --teacher and --student, those of the run whose folder `preset` is."""
        teacher, student, run = self.teacher, self.student, Path(preset)
        if teacher is None and student is None and run.is_dir():
            teacher, student = (run, None) if (run / "teacher.safetensors").is_file() else (None, run)
        weights = teacher or student
        if weights is None or (teacher and student):
            raise click.UsageError("expected one of --teacher and --student, or a run's folder as PRESET")
        return weights, "teacher" if teacher else "student"


@click.command()
@experiment_options()
@gathered("evaluated", EvaluateOptions)
@click.option("--teacher", type=PATH, help="Evaluate these weights in the preset's teacher.")
@click.option("--student", type=PATH, help="Evaluate these weights in the preset's student.")
@precision_option
@data_options
@cpu_option
@json_option
def evaluate(experiment: ExperimentOptions, evaluated: EvaluateOptions, data: DataOptions, as_json: bool) -> None:
    """Measure the test accuracy of a run, or of given weights.

    With a run's folder as PRESET and neither --teacher nor --student, that run's network is evaluated.
    """
    weights, role = evaluated.network(str(experiment.preset))
    precision = evaluated.precision
    loaded = experiment.load(*([f"{role}.precision={precision}"] if precision is not None else []))
    from dhkd.pipeline.evaluation import evaluate_network

    result = evaluate_network(loaded, weights, role, data=data, cpu=evaluated.cpu)
    emit(result, as_json, lambda: _line_of_evaluate(result))


def _line_of_evaluate(result: "Evaluated") -> str:
    return (
        f"{result.weights}: {result.architecture}, top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %"
        f" of {result.samples} test images ({result.precision})"
    )


@click.command()
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, required=True, help="The new .safetensors file.")
@json_option
def export(run: Path, out: Path, as_json: bool) -> None:
    """Write a run's network as safetensors.

    The auxiliary head is left out.
    """
    from dhkd.pipeline.export import export as export_network

    result = export_network(run, out)
    emit(result, as_json, lambda: _line_of_export(out, result))


def _line_of_export(out: Path, result: "Exported") -> str:
    return f"{out}: {result.metadata['architecture']}, {result.parameters:,} parameters"
