"""The table of `dhkd demo`."""

from collections.abc import Mapping
from typing import Any

from dhkd.pipeline.cli.tables.plain import plain_table


# Any: the command's JSON object.
def demo_table(result: Mapping[str, Any]) -> str:
    """A row for each run, and below the table how to read it."""
    rows = [
        (
            run["name"],
            run["architecture"],
            f"{run['last_top1']:.2f}",
            f"{run['best_top1']:.2f}",
            f"{run['seconds']:.1f}",
            f"{run['teacher_seconds_saved']:.1f}" if run["teacher_seconds_saved"] else "–",
        )
        for run in result["runs"]
    ]
    header = ["run", "network", "top-1 %", "best", "seconds", "teacher's forwards saved, s"]
    return "\n".join([plain_table(header, rows), *result["reading"]])
