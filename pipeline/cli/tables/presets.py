"""The table of `dhkd presets`."""

from collections.abc import Sequence

from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.results import ListedPreset


def presets_table(presets: Sequence[ListedPreset]) -> str:
    """Return a table of the published pairs of teacher and student, followed by a list of the other presets.

    The table shows parameters in millions and published top-1 accuracies in percent.
    """
    rows = [
        (
            preset.name,
            f"{preset.teacher} ({preset.parameters['teacher'] / 1e6:,.2f} M)",
            f"{preset.student} ({preset.parameters['student'] / 1e6:,.2f} M)",
            *(f"{preset.published[method]:.2f}" for method in ("teacher", "student", "kd", "dhkd")),
        )
        for preset in presets
        if preset.published
    ]
    header = ["published pair", "teacher", "student", "teacher %", "student alone %", "kd %", "dhkd %"]
    width = max(len(preset.name) for preset in presets)
    others = [f"{preset.name:{width}}  {preset.description}" for preset in presets if not preset.published]
    return "\n".join([plain_table(header, rows, left=3), "", *others])
