"""The table of `dhkd methods`."""

import re
from collections.abc import Sequence

from dhkd.data.shown import printable_line
from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.methods import Method

LONGEST_REASON = 500  # characters
SOURCE_OF_SIGNALS = {None: "no teacher", True: "cache or live", False: "live only"}


def methods_table(methods: Sequence[Method]) -> str:
    """Return a table with a row for each method, which shows what the method needs."""
    rows = []
    for method in methods:
        if method.stands_against is not None:
            rows.append((method.method, *[""] * 5, "no"))
            continue
        weights = f"; takes the teacher's {method.takes_of_teacher}" if method.takes_of_teacher else ""
        rows.append(
            (
                method.method,
                signals_in_short(method.signals),
                f"{method.row_bytes:,}" if method.signals else "",
                f"{method.view_bytes / 1e6:,.1f}" if method.signals else "",
                f"{method.extra_parameters:,}",
                SOURCE_OF_SIGNALS[method.cacheable] + weights,
                "runs",
            )
        )
    header = ["method", "signals", "bytes a row", "MB a view", "extra parameters", "from", "this pair"]
    against = [
        f"{method.method} doesn't run: {printable_line(method.stands_against, LONGEST_REASON)}"
        for method in methods
        if method.stands_against is not None
    ]
    return "\n".join([plain_table(header, rows, left=2), *against])


def signals_in_short(names: Sequence[str]) -> str:
    """Join names of signals, i.e. teacher outputs; the names of several stages become one, such as "map1…3-before"."""
    of_stages = [name for name in names if re.match(r"(map|attention)\d", name)]
    if len(of_stages) < 2:
        return ", ".join(names)
    first, last = of_stages[0], of_stages[-1]
    last_stage = re.search(r"\d+", last)
    assert last_stage is not None
    start, _, suffix = first.partition("-")
    stages = re.sub(r"\d+", lambda first_stage: f"{first_stage[0]}…{last_stage[0]}", start, count=1)
    if suffix and not first.startswith("attention"):  # the suffix of attention is a resolution, which differs by stage
        stages += f"-{suffix}"
    return ", ".join([stages, *(name for name in names if name not in of_stages)])
