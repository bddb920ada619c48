"""Tables as CSV files."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from dhkd.data.disk.atomic import write_atomically


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to `path`, with None as an empty field; a file that already holds the table is left as it is."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    content = text.getvalue().encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, lambda stream: stream.write(content))
