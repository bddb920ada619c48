"""Tables as CSV files, which spreadsheets open, too.

A spreadsheet takes a text that begins with one of a few characters for a formula, and runs it. Names come from folders
and settings that anybody may have written. So such a text is written after an apostrophe, and `text_of` takes it off.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from dhkd.data.disk.atomic import write_atomically
from dhkd.data.shown import printable_line

FORMULA = tuple("=+-@＝＋－＠")  # also as East Asian keyboards write them


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to `path`, with None as an empty field; a file that already holds the table is left as it is.

    A text is on one line, as `printable_line` writes it. One that a spreadsheet would take for a formula gets an
    apostrophe in front; numbers stay as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_safe(cell) for cell in row] for row in [header, *rows])
    content = text.getvalue().encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, lambda stream: stream.write(content))


def text_of(cell: str) -> str:
    """Return the text that `write_csv` wrote as this cell."""
    return cell[1:] if cell[:1] == "'" and _is_escaped(cell[1:]) else cell


def _safe(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = printable_line(cell)
    return f"'{text}" if _is_escaped(text) else text


def _is_escaped(text: str) -> bool:
    """Return whether `write_csv` writes this text after an apostrophe; further apostrophes don't matter."""
    return text.lstrip("'").startswith(FORMULA) and not _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
