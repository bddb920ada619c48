"""report with its analyses, and serve: what came out of a folder of runs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dhkd.pipeline.cli.options import (
    PATH,
    TEACHER_HELP,
    Decorator,
    baseline_option,
    cpu_option,
    data_options,
    json_option,
    options,
)
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.data_options import DataOptions

if TYPE_CHECKING:
    from dhkd.pipeline.report.rows import Analysis


class _ReportGroup(click.Group):
    """A group in which a word that is no command's name is a folder, whose runs are compared.

    A folder may have the name of an analysis: if no other word is a folder, the folder is meant.
    """

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        is_folder = Path(words[0]).is_dir() and not any(Path(word).is_dir() for word in words[1:])
        is_command = words[0] in self.commands and not is_folder
        return super().resolve_command(context, words if is_command else ["runs", *words])


@click.group(cls=_ReportGroup)
def report() -> None:
    """Compare the runs in a folder, or analyse them.

    'dhkd report FOLDER' compares the runs in FOLDER, 'dhkd report ANALYSIS FOLDER' analyses them.
    """


@report.command("runs")
@click.argument("folder", type=PATH)
@baseline_option
@click.option("--html", type=PATH, metavar="FILE", help="Also write a page: one file that needs no network.")
@json_option
def report_runs(folder: Path, baseline: str | None, html: Path | None, as_json: bool) -> None:
    """Compare the finished runs in FOLDER.

    Shows accuracies over seeds, differences from the baseline, and cost. The word 'runs' may be left out.
    """
    from dhkd.data.runs.read import require_runs
    from dhkd.pipeline.cli.tables.runs import runs_table
    from dhkd.pipeline.report.analyses import report_comparison
    from dhkd.pipeline.report.comparison import compare, comparison_json
    from dhkd.pipeline.report.table import write_table

    runs = require_runs(folder)
    compared = compare(runs, baseline)
    table = write_table(runs, folder)
    lines = [*report_comparison(runs, compared, folder / "report"), f"Every run: {table}"]
    if html is not None:
        from dhkd.pipeline.report.page import write_page

        write_page(runs, folder, html, baseline)
        lines.append(f"Page: {html}")
    emit(comparison_json(compared), as_json, lambda: "\n".join([runs_table(compared), *lines]))


@click.command()
@click.argument("folder", type=PATH)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The port; 0 takes any free one."
)
@baseline_option
def serve(folder: Path, port: int, baseline: str | None) -> None:
    """Show a page of the runs in a folder while they train.

    Only this machine can reach the page. Ctrl-C ends it.
    """
    from dhkd.pipeline.report.serve import server_of

    with server_of(folder, port, baseline) as server:
        click.echo(f"http://127.0.0.1:{server.server_port}/", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _analysis(name: str, *further: Decorator) -> Callable[[Callable[..., "Analysis"]], click.Command]:
    """A command of `report` that reads the runs of a folder and writes a table and pictures to --out.

    The function that it decorates takes the runs, the folder to write to and the values of the `further` options, and
    returns the analysis.
    """
    common = options(
        click.argument("folder", type=PATH),
        click.option("--out", type=PATH, help="Where table and pictures go [default: FOLDER/report]."),
        *further,
        json_option,
    )

    def decorate(function: Callable[..., "Analysis"]) -> click.Command:
        @functools.wraps(function)
        def analyse(folder: Path, out: Path | None, as_json: bool, **values: Any) -> None:
            from dhkd.data.runs.read import read_runs
            from dhkd.pipeline.cli.tables.runs import analysis_table
            from dhkd.pipeline.report.rows import analysis_json

            analysis = function(read_runs(folder), out or folder / "report", **values)
            emit(analysis_json(analysis), as_json, lambda: analysis_table(analysis))

        return report.command(name)(common(analyse))

    return decorate


_teacher_of_runs = click.option("--teacher", type=PATH, required=True, help=TEACHER_HELP)
_samples = click.option("--samples", type=click.IntRange(2), default=2000, show_default=True, help="How many images.")


@_analysis(
    "views",
    click.option(
        "--teacher-rate",
        type=click.FloatRange(0, min_open=True),
        metavar="ROWS/S",
        help="The teacher's images per second, as 'plan --measure' and cache-teacher print them: adds hours.",
    ),
)
def report_views(runs: Any, out: Path, teacher_rate: float | None) -> "Analysis":
    """Plot accuracy against the number of cached views.

    Shows how many views are enough, and what they cost.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_views(runs, out, teacher_rate=teacher_rate)


@_analysis("collapse")
def report_collapse(runs: Any, out: Path) -> "Analysis":
    """Plot accuracy and loss over training for each kind of run.

    Shows what happens if cross-entropy and BinaryKL train one head together, beside each loss alone and two heads.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_collapse(runs, out)


@_analysis(
    "conflict",
    click.option("--cache", required=True, help="The cache that the runs were trained from."),
    _samples,
    click.option(
        "--temperature",
        type=click.FloatRange(0, min_open=True),
        default=2.0,
        show_default=True,
        help="BinaryKL's temperature.",
    ),
    data_options,
    cpu_option,
)
def report_conflict(
    runs: Any, out: Path, cache: str, samples: int, temperature: float, data: DataOptions, cpu: bool
) -> "Analysis":
    """Measure where the gradients of the two losses conflict.

    Shows over training where cross-entropy and BinaryKL pull the classifier and the features apart. The runs must have
    kept their weights: --set student.keep_every=N.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_conflict(runs, cache, out, samples=samples, temperature=temperature, data=data, cpu=cpu)


@_analysis("correlation", _teacher_of_runs, data_options, cpu_option)
def report_correlation(runs: Any, out: Path, teacher: Path, data: DataOptions, cpu: bool) -> "Analysis":
    """Compare how logits correlate in teacher and students.

    Shows the difference of the teacher's correlation matrix from that of each student, on the test set.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_correlation(runs, teacher, out, data=data, cpu=cpu)


@_analysis("tsne", _teacher_of_runs, _samples, data_options, cpu_option)
def report_tsne(runs: Any, out: Path, teacher: Path, samples: int, data: DataOptions, cpu: bool) -> "Analysis":
    """Draw t-SNE maps of the penultimate features.

    Shows the teacher's and each student's, for images of the test set.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_tsne(runs, teacher, out, samples=samples, data=data, cpu=cpu)


@_analysis("etf", click.option("--teacher", type=PATH, help=TEACHER_HELP), data_options, cpu_option)
def report_etf(runs: Any, out: Path, teacher: Path | None, data: DataOptions, cpu: bool) -> "Analysis":
    """Measure how far classes have collapsed to a simplex ETF.

    ETF stands for equiangular tight frame, the arrangement of class means to which neural collapse leads.
    """
    from dhkd.pipeline.report import analyses

    return analyses.report_etf(runs, teacher, out, data=data, cpu=cpu)
