"""Compare two runs of `dhkd bench`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhkd.benchmarks.figure import Figure, text_of
from dhkd.data.errors import ConfigError
from dhkd.pipeline.cli.tables.plain import plain_table

SAME = ("hardware", "gpu", "cores", "versions", "quick")  # these keys have to agree for a fair comparison


@dataclass(frozen=True)
class Run:
    """The JSON file of one `dhkd bench`: its figures by name and detail, and its other keys."""

    figures: Mapping[tuple[str, str], Figure]
    facts: Mapping[str, Any]  # values as in the JSON file, which are only compared and printed


def comparison(first: Path, second: Path) -> str:
    """Format a table of both files' medians, with a column for whether the quartile ranges overlap.

    Raises `ConfigError` for a file that holds no figures.
    """
    a, b = _read(first), _read(second)
    rows = []
    for key, figure in a.figures.items():
        if key in b.figures:
            counterpart = b.figures[key]
            ratio = text_of(counterpart.value / figure.value) if figure.value else "–"
            medians = (text_of(figure.value), text_of(counterpart.value))
            rows.append([*key, *medians, figure.unit, ratio, _verdict(figure, counterpart)])
    table = plain_table(["figure", "of", "A", "B", "", "B / A", ""], rows)
    notes = [f"A: {first}, B: {second}; beyond the noise: the middle halves of the repetitions don't overlap"]
    for name, keys in (("A", a.figures.keys() - b.figures.keys()), ("B", b.figures.keys() - a.figures.keys())):
        if keys:
            notes.append(f"only in {name}: {'; '.join(sorted(f'{figure} ({detail})' for figure, detail in keys))}")
    facts = [(key, a.facts.get(key), b.facts.get(key)) for key in SAME]
    notes += [f"{key} differ: A {of_a}, B {of_b}" for key, of_a, of_b in facts if of_a != of_b]
    return "\n".join([table, *notes])


def _verdict(a: Figure, b: Figure) -> str:
    if a.quartiles is None or b.quartiles is None:
        return "measured once"
    (low_a, high_a), (low_b, high_b) = a.quartiles, b.quartiles
    return "beyond the noise" if high_a < low_b or high_b < low_a else "within the noise"


def _read(file: Path) -> Run:
    try:
        tree = json.loads(file.read_bytes())
        figures = [
            Figure(entry["name"], entry["value"], entry["unit"], entry["detail"], entry["quartiles"])
            for entry in tree["figures"]
        ]
    except OSError as error:
        raise ConfigError(f"--compare {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--compare {file}: expected the JSON that 'dhkd bench' writes, found something else"
        ) from error
    return Run({(figure.name, figure.detail): figure for figure in figures}, tree)
