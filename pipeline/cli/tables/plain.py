"""A plain-text table: no colours, no lines, no wrapping, in every terminal, whatever the names in it."""

import io
from collections.abc import Sequence

from dhkd.data.shown import printable_line
from rich.console import Console
from rich.table import Table

LONGEST_CELL = 2000  # characters


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool = True, left: int = 2) -> str:
    """Format `rows` under the header `columns`; the first `left` columns are left-aligned, the others right-aligned."""
    table = Table(show_header=header, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(columns):
        table.add_column(name, justify="left" if position < left else "right", overflow="fold", no_wrap=True)
    # A cell is one line, whatever a stranger's cache or run holds: it can't imitate another row.
    rows = [[_cell(text) for text in row] for row in rows]
    for row in rows:
        table.add_row(*row)
    stream = io.StringIO()
    # Wide enough for every row, and treated as a file rather than a terminal, even if FORCE_COLOR is set.
    width = sum(2 * max(map(len, column)) + 2 for column in zip(columns, *rows, strict=True))
    console = Console(
        file=stream,
        width=width,
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def _cell(text: str) -> str:
    line = printable_line(text)
    return line if len(line) <= LONGEST_CELL else f"{line[:LONGEST_CELL]}…"
