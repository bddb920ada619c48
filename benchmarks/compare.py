"""Two runs of `dhkd bench` beside each other."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dhkd.benchmarks.figure import text_of
from dhkd.data.errors import ConfigError
from dhkd.pipeline.cli.tables.plain import plain_table

SAME = ("hardware", "gpu", "cores", "versions", "quick")  # what two runs should share for their figures to be compared


def comparison(first: Path, second: Path) -> str:
    """A table of both files' medians; a difference is called one where the quartiles of the two don't overlap.

    Raises `ConfigError`, in one line, for a file that holds no figures.
    """
    runs = [_read(first), _read(second)]
    one, other = ({(f["name"], f["detail"]): f for f in run["figures"]} for run in runs)
    lines = []
    for key, figure in one.items():
        if key in other:
            a, b = figure["value"], other[key]["value"]
            ratio = text_of(b / a) if a else "–"
            lines.append([*key, text_of(a), text_of(b), figure["unit"], ratio, _verdict(figure, other[key])])
    table = plain_table(["figure", "of", "A", "B", "", "B / A", ""], lines)
    notes = [f"A: {first}, B: {second}; beyond the noise: the middle halves of the repetitions don't overlap"]
    for name, only in (("A", one.keys() - other.keys()), ("B", other.keys() - one.keys())):
        if only:
            notes.append(f"only in {name}: {'; '.join(sorted(f'{figure} ({of})' for figure, of in only))}")
    told = [(same, runs[0].get(same), runs[1].get(same)) for same in SAME]
    notes += [f"{same} differ: A {of_a}, B {of_b}" for same, of_a, of_b in told if of_a != of_b]
    return "\n".join([table, *notes])


def _verdict(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if not (one["quartiles"] and other["quartiles"]):
        return "measured once"
    (low, high), (other_low, other_high) = one["quartiles"], other["quartiles"]
    return "beyond the noise" if high < other_low or other_high < low else "within the noise"


def _read(file: Path) -> dict[str, Any]:
    try:
        run = json.loads(file.read_bytes())
        fields = {"name", "value", "unit", "detail", "quartiles"}
        if not all(fields <= set(figure) for figure in run["figures"]):
            raise KeyError("figures")
    except OSError as error:
        raise ConfigError(f"--compare {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--compare {file}: expected the JSON that 'dhkd bench' writes, found something else"
        ) from error
    return dict(run)
