"""The commands `evaluate`, `export` and `predict`, for trained networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from dhkd.data.errors import DataError
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
@click.option(
    "--out",
    type=OUT_FILE,
    required=True,
    help="The file to write, which must not exist yet; its ending is the format: .safetensors, .onnx, or .pt2 for"
    " torch.export.",
)
@click.option("--ema", is_flag=True, help="Write the average (EMA) that the run kept of its weights.")
@click.option("--card", is_flag=True, help="Write the model card as well, as README.md beside the file.")
@click.option(
    "--without-data",
    is_flag=True,
    help="Compare the .onnx or .pt2 file with the network on random images, in place of the run's test images.",
)
@data_options
@own_code_options
@json_option
def export(run: Path, out: Path, ema: bool, card: bool, without_data: bool, data: DataOptions, as_json: bool) -> None:
    """Write a run's network to one file, for other programs.

    'dhkd predict' takes the file, too. The auxiliary head, which is used only in training, is left out. Class names
    and normalisation are in the file. An .onnx or .pt2 file takes pixels (uint8) and normalises them; before it
    gets its name, its outputs are compared with the network's on the run's test images.
    """
    from dhkd.pipeline.export import export as export_network

    result = export_network(run, out, ema=ema, data=data, without_data=without_data, card=card)
    emit(result, as_json, lambda: str(result))


@dataclass(frozen=True)
class PredictOptions:
    """Which classes are predicted, of which images, and how."""

    images: Sequence[str]
    split: str | None
    source: str | None
    top: int
    batch: int | None
    ema: bool
    precision: str | None
    cpu: bool
    allow_code: bool


@click.command()
@click.argument("run_or_file", type=RUN)
@gathered("asked", PredictOptions)
@click.argument("images", nargs=-1)
@click.option("--split", type=click.Choice(["test", "train"]), help="Predict this split of a data set, not IMAGES.")
@click.option("--source", metavar="NAME", help="The data set of --split, such as digits [default: the one of the run].")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Number of classes to print for each image."
)
@click.option("--batch", type=click.IntRange(1), help="Number of images that the network gets at a time.")
@click.option("--ema", is_flag=True, help="Use the average (EMA) that the run kept of its weights.")
@click.option(
    "--allow-code", is_flag=True, help="Open a .pt2 file, which can run code of whoever made it; trust it first."
)
@precision_option
@data_options
@own_code_options
@cpu_option
@json_option
def predict(run_or_file: Path, asked: PredictOptions, data: DataOptions, as_json: bool) -> None:
    """Classify images with a run's network or an exported file.

    IMAGES are files, folders, and patterns such as 'photos/**/*.jpg'. They may have any size: they are resized and
    cropped as the test images were. Those that can't be read are listed on standard error, and the exit code is then 1.
    """
    from dhkd.pipeline.cli.tables.predictions import predictions_table
    from dhkd.pipeline.predict import Wanted
    from dhkd.pipeline.predict import predict as predict_images

    result = predict_images(
        run_or_file,
        Wanted(asked.images, asked.split, asked.source),
        data=data,
        top=asked.top,
        batch=asked.batch,
        ema=asked.ema,
        precision=asked.precision,
        cpu=asked.cpu,
        allow_code=asked.allow_code,
    )
    if result.predictions or as_json:
        emit(result, as_json, lambda: predictions_table(result))
    if result.unreadable:
        number = len(result.unreadable)
        raise DataError(
            f"{number} of {number + len(result.predictions)} images could not be read; the lines above say why"
        )
