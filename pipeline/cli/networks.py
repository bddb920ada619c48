"""The commands `evaluate` and `export`, for trained networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from dhkd.pipeline.cli.options import (
    ExperimentOptions,
    cpu_option,
    data_options,
    experiment_options,
    gathered,
    json_option,
    own_code_options,
    precision_option,
)
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.cli.paths import OUT_FILE, RUN
from dhkd.pipeline.data_options import DataOptions

if TYPE_CHECKING:
    from dhkd.pipeline.results import Exported


@dataclass(frozen=True)
class EvaluateOptions:
    """Which weights are evaluated, and in which precision."""

    teacher: Path | None
    student: Path | None
    ema: bool
    precision: str | None
    cpu: bool

    def network(self, preset: str) -> tuple[Path, str]:
        """Return the path of the weights, and their role: "teacher" or "student".

        Without --teacher and --student, `preset` must be a run's folder; this run's weights are used, with --ema their
        average.
        """
        teacher, student, run = self.teacher, self.student, Path(preset)
        if teacher is None and student is None and run.is_dir():
            teacher, student = (run, None) if (run / "teacher.safetensors").is_file() else (None, run)
        weights = student or teacher
        if weights is None:
            raise click.UsageError("expected one of --teacher and --student, or a run's folder as PRESET")
        role = "student" if student else "teacher"
        if self.ema:
            from dhkd.pipeline.build.networks import file_of_average

            weights = file_of_average(weights)
        return weights, role


@click.command()
@experiment_options()
@gathered("evaluated", EvaluateOptions)
@click.option("--teacher", type=RUN, help="Load these weights into the preset's teacher network, and evaluate it.")
@click.option("--student", type=RUN, help="Load these weights into the preset's student network, and evaluate it.")
@click.option("--ema", is_flag=True, help="Evaluate the average (EMA) that the run kept of its weights.")
@precision_option
@data_options
@cpu_option
@json_option
def evaluate(experiment: ExperimentOptions, evaluated: EvaluateOptions, data: DataOptions, as_json: bool) -> None:
    """Measure the test accuracy of a run or of a weights file.

    To evaluate the network of a run, give the run's folder as PRESET, without --teacher or --student. With both
    --student and --teacher, measure how often the student's top class equals the teacher's; this needs no labels.
    """
    weights, role = evaluated.network(str(experiment.preset))
    against = evaluated.teacher if role == "student" else None
    precision = evaluated.precision
    loaded = experiment.load(*([f"{role}.precision={precision}"] if precision is not None else []))
    from dhkd.pipeline.evaluation import evaluate_network

    result = evaluate_network(loaded, weights, role, data=data, cpu=evaluated.cpu, against=against)
    emit(result, as_json, lambda: str(result))


@click.command()
@click.argument("run", type=RUN)
@click.option("--out", type=OUT_FILE, required=True, help="The .safetensors file to write; it must not exist yet.")
@click.option("--ema", is_flag=True, help="Write the average (EMA) that the run kept of its weights.")
@own_code_options
@json_option
def export(run: Path, out: Path, ema: bool, as_json: bool) -> None:
    """Write a run's trained network to a safetensors file.

    The auxiliary head, which is used only in training, is left out.
    """
    from dhkd.pipeline.export import export as export_network

    result = export_network(run, out, ema=ema)
    emit(result, as_json, lambda: _line_of_export(out, result))


def _line_of_export(out: Path, result: "Exported") -> str:
    return f"{out}: {result.metadata['architecture']}, {result.parameters:,} parameters"
