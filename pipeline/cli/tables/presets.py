"""The table of `dhkd presets`."""

from collections.abc import Mapping, Sequence
from typing import Any

from dhkd.pipeline.cli.tables.plain import plain_table


# Any: parameters and published accuracies come from the presets' records, which are free YAML.
def presets_table(presets: Sequence[Mapping[str, Any]]) -> str:
    """The published pairs with millions of parameters and top-1 accuracies in percent, then the other presets."""
    rows = [
        (
            preset["name"],
            *(f"{preset[role]} ({preset['parameters'][role] / 1e6:,.2f} M)" for role in ("teacher", "student")),
            *(f"{preset['published'][key]:.2f}" for key in ("teacher", "student", "kd", "dhkd")),
        )
        for preset in presets
        if preset["published"]
    ]
    header = ["published pair", "teacher", "student", "teacher %", "student alone %", "kd %", "dhkd %"]
    width = max(len(preset["name"]) for preset in presets)
    others = [f"{preset['name']:{width}}  {preset['description']}" for preset in presets if not preset["published"]]
    return "\n".join([plain_table(header, rows, left=3), "", *others])
