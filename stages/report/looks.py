"""How names look in figures: the colour, dash and marker, which are the same in files and on the page.

The first ten names differ by colour; the next ten have the same colours with another dash. Colours and dashes are
stored independently of any plotting library, and each renderer translates them for its library.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Dash = Literal["solid", "dashed", "dotted"]  # in CSS and matplotlib alike

# "Tableau 10", the default of matplotlib and plotly: blue, orange, green, red, purple, brown, pink, grey, olive, cyan.
COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
)  # fmt: skip
DASHES: tuple[Dash, ...] = ("solid", "dashed", "dotted")
MARKERS = "osD^v<>PX"  # matplotlib's letters


@dataclass(frozen=True)
class Look:
    """A name's colour (red, green, blue, each 0 to 255), its line's dash and its points' marker."""

    colour: tuple[int, int, int]
    dash: Dash
    marker: str


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """Assign a look to each name, in order of first appearance."""
    return {name: _look(number) for number, name in enumerate(dict.fromkeys(names))}


def _look(number: int) -> Look:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return Look(COLOURS[number % len(COLOURS)], dash, MARKERS[number % len(MARKERS)])
