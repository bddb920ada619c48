"""The table of `dhkd demo`."""

from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.results import Demo


def demo_table(demo: Demo) -> str:
    """Return a table with a row for each run, followed by sentences that explain the results."""
    rows = [
        (
            row.name,
            row.run.architecture,
            f"{row.run.last_top1:.2f}",
            f"{row.run.best_top1:.2f}",
            f"{row.run.seconds:.1f}",
            f"{row.teacher_seconds_saved:.1f}" if row.teacher_seconds_saved else "–",
        )
        for row in demo.runs
    ]
    header = ["run", "network", "top-1 %", "best", "seconds", "teacher's forwards saved, s"]
    return "\n".join([plain_table(header, rows), *demo.reading])
