"""Numbers as text for tables and the page, each in a unit that suits its size."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands that show only bytes needn't import scipy, which takes long
    from dhkd.stages.report.statistics import Difference, Spread


def bytes_text(number: float) -> str:
    """Format bytes with three significant digits, in a unit from B to TB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:  # numbers from here on are rounded to at least 1.00 of this unit
            scaled = number / size
            return f"{scaled:,.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{number:.0f} B"


def duration_text(hours: float) -> str:
    """Format a duration, given in hours, as seconds, minutes or hours."""
    seconds = hours * 3600
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{hours:,.1f} h"


def spread_text(spread: "Spread") -> str:
    """Format a mean over seeds; with two or more seeds, add half of the mean's interval and the standard deviation."""
    if spread.half is None:
        return f"{spread.mean:.2f}"
    return f"{spread.mean:.2f} ± {spread.half:.2f} ({spread.deviation:.2f})"


def difference_text(difference: "Difference | None") -> str:
    """Format a difference with half of its interval and its verdict; None gives an empty text."""
    if difference is None:
        return ""
    if difference.half is None:
        return f"{difference.mean:+.2f}, {difference.verdict}"
    return f"{difference.mean:+.2f} ± {difference.half:.2f}, {difference.verdict}".replace("-", "−")
