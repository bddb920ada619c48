"""The commands `report` (with its analyses) and `serve`, which show the results of a folder of runs."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from dhkd.pipeline.cli.groups import Group
from dhkd.pipeline.cli.options import (
    TEACHER_HELP,
    Decorator,
    FiniteRange,
    baseline_option,
    cpu_option,
    data_options,
    json_option,
    options,
    own_code_options,
)
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.cli.paths import LOCATION, OUT_FILE, OUT_FOLDER, RUN
from dhkd.pipeline.data_options import DataOptions

if TYPE_CHECKING:
    from dhkd.pipeline.report.rows import Analysis

Weights = Literal["none", "final", "kept"]


class _ReportGroup(Group):
    """A group that treats a first word that is not a command's name as the folder of `report runs`.

    If a folder has the name of an analysis, as in `dhkd report views`, the word means the folder unless a later word is
    a folder, too.
    """

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        is_folder = Path(words[0]).is_dir() and not any("://" in word or Path(word).is_dir() for word in words[1:])
        is_command = words[0] in self.commands and not is_folder
        return super().resolve_command(context, words if is_command else ["runs", *words])


@click.group(cls=_ReportGroup)
def report() -> None:
    """Compare the runs in a folder or at a URL, or analyse them.

    'dhkd report FOLDER' is short for 'dhkd report runs FOLDER' and compares the finished runs in FOLDER. Each other
    command below is an analysis: 'dhkd report COMMAND FOLDER'.
    """


@report.command("runs")
@click.argument("folder", type=LOCATION)
@baseline_option
@click.option("--html", type=OUT_FILE, metavar="FILE", help="Also write the report as one self-contained HTML file.")
@json_option
def report_runs(folder: str, baseline: str | None, html: Path | None, as_json: bool) -> None:
    """Compare the finished runs in FOLDER.

    Shows mean accuracies over seeds, differences from the baseline, and costs. The word 'runs' may be left out. FOLDER
    may also be a URL in a bucket.
    """
    from dhkd.data.extras import require
    from dhkd.data.runs.place import runs_at
    from dhkd.data.runs.read import require_runs
    from dhkd.pipeline.cli.tables.runs import runs_table
    from dhkd.pipeline.report.analyses import report_comparison
    from dhkd.pipeline.report.comparison import compare, comparison_json
    from dhkd.pipeline.report.table import write_table

    if html is not None:
        require("plotly", "--html")
    place = runs_at(folder)
    with place.named():
        place.refresh()
        runs = require_runs(place.folder, place.shown)
        place.require_writable("FOLDER")
        compared = compare(runs, baseline)
        table = write_table(runs, place.folder)
        lines = [*report_comparison(runs, compared, place.folder / "report"), f"Every run: {table}"]
        if html is not None:
            from dhkd.pipeline.report.page import write_page

            write_page(runs, place.folder, html, baseline)
            lines.append(f"Page: {html}")
        place.send(table.name, "report")
    emit(
        comparison_json(compared),
        as_json,
        lambda: "\n".join([runs_table(compared), *map(place.shown, lines)]),
    )


@click.command()
@click.argument("folder", type=LOCATION)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port of the web page; 0 picks any free port.",
)
@baseline_option
def serve(folder: str, port: int, baseline: str | None) -> None:
    """Serve a web page that shows the runs in FOLDER as they train.

    FOLDER may also be a URL in a bucket. Only this machine can reach the page. Ctrl-C stops the server.
    """
    from dhkd.data.extras import require
    from dhkd.data.runs.place import runs_at
    from dhkd.pipeline.report.serve import server_of

    require("plotly", "serve")
    with server_of(runs_at(folder), port, baseline) as server:
        click.echo(f"http://127.0.0.1:{server.server_port}/", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _analysis(
    name: str, *further: Decorator, weights: Weights = "none"
) -> Callable[[Callable[..., "Analysis"]], click.Command]:
    """Return a decorator that makes a function a command of `report`.

    The command reads the runs in a folder, and writes a table and plots to --out. The decorated function takes the
    runs, the output folder and the values of the `further` options, and returns the analysis. `weights` says which of
    the runs' weights it reads.
    """
    common = options(
        click.argument("folder", type=LOCATION),
        click.option("--out", type=OUT_FOLDER, help="Folder for the table and the plots [default: FOLDER/report]."),
        *further,
        json_option,
    )

    def decorate(function: Callable[..., "Analysis"]) -> click.Command:
        @functools.wraps(function)
        def analyse(folder: str, out: Path | None, as_json: bool, **values: Any) -> None:
            from dhkd.data.runs.near import FINAL_WEIGHTS, KEPT_WEIGHTS
            from dhkd.data.runs.place import runs_at
            from dhkd.data.runs.read import read_runs
            from dhkd.pipeline.cli.tables.runs import analysis_table
            from dhkd.pipeline.report.rows import analysis_json

            place = runs_at(folder)
            with place.named():
                place.refresh({"none": (), "final": FINAL_WEIGHTS, "kept": KEPT_WEIGHTS}[weights])
                runs = read_runs(place.folder, place.shown)
                if out is None:
                    place.require_writable("FOLDER", "report")
                analysis = function(runs, out or place.folder / "report", **values)
                if out is None:
                    place.send("report")
            files = [place.shown(file) for file in analysis.files]
            analysis = replace(analysis, files=files)
            emit(analysis_json(analysis), as_json, lambda: analysis_table(analysis))

        return report.command(name)(common(analyse))

    return decorate


_teacher_of_runs = click.option("--teacher", type=RUN, required=True, help=TEACHER_HELP)
_samples = click.option("--samples", type=click.IntRange(2), default=2000, show_default=True, help="Number of images.")


@_analysis(
    "views",
    click.option(
        "--teacher-rate",
        type=FiniteRange(0, min_open=True),
        metavar="ROWS/S",
        help="The teacher's images per second, printed by 'plan --measure' or cache-teacher; adds the cost in hours.",
    ),
)
def report_views(runs: Any, out: Path, teacher_rate: float | None) -> "Analysis":
    """Plot accuracy against the number of cached views.

    Shows how many cached views are enough, and what they cost in disk space and teacher forward passes.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_views(runs, out, teacher_rate=teacher_rate)


@_analysis("collapse")
def report_collapse(runs: Any, out: Path) -> "Analysis":
    """Plot accuracy and loss, to see a classifier head collapse.

    Made to compare three kinds of students: one head trained with both cross-entropy and BinaryKL, two heads trained
    with one of these losses each, and one head trained with only one of them.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_collapse(runs, out)


@_analysis(
    "conflict",
    click.option("--cache", required=True, help="Location of the cache that the runs were trained from."),
    _samples,
    click.option(
        "--temperature",
        type=FiniteRange(1e-3, 1e3),  # as for the objectives' temperatures
        default=2.0,
        show_default=True,
        help="Temperature of BinaryKL.",
    ),
    data_options,
    own_code_options,
    cpu_option,
    weights="kept",
)
def report_conflict(
    runs: Any, out: Path, cache: str, samples: int, temperature: float, data: DataOptions, cpu: bool
) -> "Analysis":
    """Measure in which layers CE and BinaryKL gradients conflict.

    Shows where, over the course of training, the two losses pull the classifier and the features in opposite
    directions. The runs must have kept their weights (--set student.keep_every=N).
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_conflict(runs, cache, out, samples=samples, temperature=temperature, data=data, cpu=cpu)


@_analysis("correlation", _teacher_of_runs, data_options, own_code_options, cpu_option, weights="final")
def report_correlation(runs: Any, out: Path, teacher: Path, data: DataOptions, cpu: bool) -> "Analysis":
    """Compare how logits correlate in teacher and students.

    Shows the teacher's correlation matrix of logits minus that of each student, on the test set.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_correlation(runs, teacher, out, data=data, cpu=cpu)


@_analysis("tsne", _teacher_of_runs, _samples, data_options, own_code_options, cpu_option, weights="final")
def report_tsne(runs: Any, out: Path, teacher: Path, samples: int, data: DataOptions, cpu: bool) -> "Analysis":
    """Draw t-SNE maps of the penultimate features.

    Shows a map for the teacher and one for each kind of student, computed from test images.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_tsne(runs, teacher, out, samples=samples, data=data, cpu=cpu)


@_analysis(
    "etf",
    click.option("--teacher", type=RUN, help=TEACHER_HELP),
    data_options,
    own_code_options,
    cpu_option,
    weights="final",
)
def report_etf(runs: Any, out: Path, teacher: Path | None, data: DataOptions, cpu: bool) -> "Analysis":
    """Measure how far classes have collapsed to a simplex ETF.

    In neural collapse, the class means approach a simplex equiangular tight frame (ETF): vectors of equal length at
    equal angles.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_etf(runs, teacher, out, data=data, cpu=cpu)
