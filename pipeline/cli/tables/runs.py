"""The tables of comparisons and analyses, which `dhkd report` and `dhkd sweep` print."""

from dataclasses import astuple
from typing import Any

from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.report.comparison import ComparedRow, Comparison
from dhkd.pipeline.report.rows import Analysis, columns_of
from dhkd.stages.report.text import difference_text, spread_text


def runs_table(compared: Comparison) -> str:
    """Return the table of a comparison, followed by the savings of the cache and the warnings."""
    rows = [run_cells(row, compared) for row in compared.rows]
    return "\n".join([plain_table(run_columns(compared), rows, left=len(compared.axes)), *run_notes(compared)])


def run_columns(compared: Comparison) -> list[str]:
    """Return the titles of the columns."""
    return [
        *compared.axes,
        *("seeds", f"{compared.top1} %", "best"),
        *(["ema"] if compared.has_average else []),
        *([f"against {compared.baseline}"] if compared.baseline else []),
        *(["published"] if _has_published(compared) else []),
        "seconds",
    ]


def run_cells(row: ComparedRow, compared: Comparison) -> list[str]:
    """Return the texts of a row's cells."""
    published = f"{row.published:.2f}" if row.published is not None else ""
    return [
        *("–" if row.values[axis] is None else str(row.values[axis]) for axis in compared.axes),
        str(len(row.seeds)),
        spread_text(row.last_top1),
        spread_text(row.best_top1),
        *([_of_average(row)] if compared.has_average else []),
        *([difference_text(row.difference)] if compared.baseline else []),
        *([published] if _has_published(compared) else []),
        f"{row.seconds:,.1f}",
    ]


def run_notes(compared: Comparison) -> list[str]:
    """Return the lines below the table: what its numbers mean, the savings of the cache, and the warnings."""
    lines = []
    if any(row.last_top1.half is not None for row in compared.rows):
        lines.append("mean ± half of the 95 % interval over seeds (standard deviation)")
    cost = compared.cost
    if cost.teacher_forwards_live:
        lines.append(
            f"teacher: {cost.teacher_forwards_cached:,} forwards into the cache;"
            f" live, these runs would have made {cost.teacher_forwards_live:,}"
        )
    return [*lines, *(f"beware: {line}" for line in compared.warnings)]


def analysis_table(analysis: Analysis) -> str:
    """Return the table of an analysis, followed by the paths of the files that were written."""
    header = columns_of(type(analysis.rows[0]))
    rows = [[_cell(value) for value in astuple(row)] for row in analysis.rows]
    return "\n".join([plain_table(header, rows, left=1), *analysis.files])


def _of_average(row: ComparedRow) -> str:
    return "" if row.last_ema_top1 is None else spread_text(row.last_ema_top1)


def _has_published(compared: Comparison) -> bool:
    return any(row.published is not None for row in compared.rows)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
