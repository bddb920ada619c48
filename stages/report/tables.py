"""Tables for people, of what the commands return as plain values."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def runs_table(result: Mapping[str, Any]) -> str:
    """Runs compared, and below it what to beware of and what the cache saved."""
    axes, baseline = result["axes"], result["baseline"]
    published = any(row["published"] is not None for row in result["rows"])
    table = []
    for row in result["rows"]:
        differs = row["difference"]
        table.append(
            (
                *("–" if row["values"][axis] is None else str(row["values"][axis]) for axis in axes),
                str(len(row["seeds"])),
                spread_text(row["last_top1"]),
                spread_text(row["best_top1"]),
                *([difference_text(differs)] if baseline else []),
                *([f"{row['published']:.2f}" if row["published"] is not None else ""] if published else []),
                f"{row['seconds']:,.1f}",
            )
        )
    header = [*axes, "seeds", "top-1 %", "best", *([f"against {baseline}"] if baseline else [])]
    header += [*(["published"] if published else []), "seconds"]
    cost = result["cost"]
    lines = [plain_table(header, table, left=len(axes))]
    if any(row["last_top1"]["half"] is not None for row in result["rows"]):
        lines.append("mean ± half of the 95 % interval over seeds (standard deviation)")
    if cost["teacher_forwards_live"]:
        lines.append(
            f"teacher: {cost['teacher_forwards_cached']:,} forwards into the cache;"
            f" live, these runs would have made {cost['teacher_forwards_live']:,}"
        )
    return "\n".join([*lines, *(f"beware: {line}" for line in result["warnings"])])


def analysis_table(result: Mapping[str, Any]) -> str:
    """An analysis's rows, and the files that hold them and their picture."""
    header = list(result["rows"][0])
    rows = [
        [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in result["rows"]
    ]
    return "\n".join([plain_table(header, rows, left=1), *result["files"]])


def spread_text(found: Mapping[str, Any]) -> str:
    """A mean over seeds, with half of its interval and the standard deviation where there are two or more."""
    if found["half"] is None:
        return f"{found['mean']:.2f}"
    return f"{found['mean']:.2f} ± {found['half']:.2f} ({found['deviation']:.2f})"


def difference_text(found: Mapping[str, Any] | None) -> str:
    """A difference with half of its interval, and what that says; nothing where there is none."""
    if found is None:
        return ""
    if found["half"] is None:
        return f"{found['mean']:+.2f}, {found['verdict']}"
    return f"{found['mean']:+.2f} ± {found['half']:.2f}, {found['verdict']}".replace("-", "−")


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool = True, left: int = 2) -> str:
    """Rows of text under `columns`; the first `left` columns to the left, the others to the right, nothing wrapped."""
    table = Table(show_header=header, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(columns):
        table.add_column(name, justify="left" if position < left else "right", overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    stream = io.StringIO()
    # A plain file, whatever FORCE_COLOR says of terminals, and as wide as its rows are.
    width = sum(2 * max(map(len, column)) + 2 for column in zip(columns, *rows, strict=True))
    console = Console(
        file=stream, width=width, force_terminal=False, color_system=None, highlight=False, markup=False, emoji=False
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())
