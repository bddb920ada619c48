"""Tables for people, of what the commands return as plain values."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def cache_table(result: Mapping[str, Any]) -> str:
    """What `inspect` says of a cache."""
    identity, provenance = result["identity"], result["provenance"]
    recipe = ", ".join(f"{key} {value}" for key, value in identity["recipe"].items() if key != "kind")
    rows = [
        ("cache", f"{result['path']} ({result['digest'][:12]}), {result['store']}, format {result['format']}"),
        ("state", _state(result)),
        ("size", f"{result['bytes'] / 1e6:,.1f} MB" if result["bytes"] is not None else "known when it is finished"),
        ("blocks", f"of {result['rows_per_block']:,} rows"),
        (
            "data set",
            f"{identity['dataset']['name']}, {identity['dataset']['split']}: {result['samples']:,} samples,"
            f" {result['classes']} classes ({identity['dataset']['fingerprint'][:12]})",
        ),
        ("views", f"{result['views']} of {identity['recipe']['kind']} ({recipe})"),
    ]
    before: list[tuple[str, str]] = []
    for name, signal in identity["signals"].items():
        teacher, made = signal["teacher"], provenance.get(name, {})
        codec = ", ".join(f"{value}" if key == "kind" else f"{key} {value}" for key, value in signal["codec"].items())
        origin = [
            (
                "  teacher",
                f"{teacher.get('architecture')} ({str(teacher.get('sha256'))[:12]}),"
                f" test top-1 {made.get('teacher_test_top1', float('nan')):.2f} %",
            ),
            ("  made with", ", ".join(f"{library} {version}" for library, version in made.get("versions", {}).items())),
            ("  made on", str(made.get("hardware", "unknown"))),
            ("  command", str(made.get("command", "unknown"))),
        ]
        rows += [
            (f"signal {name}", f"{codec}, computed in {signal['precision']}"),
            *([("  in runs", result["digests"][name][:12])] if name in result["digests"] else []),
            *((f"  {key}", text) for key, text in _exactness(result["bounds"].get(name)).items()),
            *([("  teacher", "the same, in the same call")] if origin == before else origin),
        ]
        before = origin
    return plain_table(["", ""], rows, header=False)


def _state(result: Mapping[str, Any]) -> str:
    blocks = f"{result['blocks_done']} of {result['blocks']} blocks"
    if result["complete"]:
        return f"complete, {blocks}"
    if result["complete_views"]:
        signals = ", ".join(result["complete_signals"])
        return f"complete with {result['complete_views']} views of {signals}; being extended or damaged: {blocks}"
    return f"not finished, {blocks}"


def _exactness(bound: Mapping[str, float | None] | None) -> dict[str, str]:
    """What follows from how the values are stored."""
    if bound is None:
        return {}
    lines = {
        "error": f"a logit differs from the teacher's by at most {bound['error']:.2g}; the top class can change only"
        f" where it leads by at most {bound['margin']:.2g}",
        "losses": f"KL at temperature 4 ≤ {bound['kl_at_4']:.2g}, BinaryKL at temperature 2 ≤"
        f" {bound['binary_kl_at_2']:.2g} (before the factor τ²)",
    }
    if bound["tail_mass"] is not None:
        lines = {
            "error": f"a stored logit differs by at most {bound['error']:.2g}; the others' probabilities, at most"
            f" {bound['tail_mass']:.2g} of a row, are kept as their sum"
        }
    return lines


def presets_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The presets; for the published pairs with sizes and top-1 accuracies in percent."""
    pairs = [row for row in rows if row["published"]]
    table = [
        (
            row["name"],
            *(f"{row[role]} ({row['parameters'][role] / 1e6:,.2f} M)" for role in ("teacher", "student")),
            *(f"{row['published'][key]:.2f}" for key in ("teacher", "student", "kd", "dhkd")),
        )
        for row in pairs
    ]
    header = ["published pair", "teacher", "student", "teacher %", "student alone %", "kd %", "dhkd %"]
    width = max(len(row["name"]) for row in rows)
    others = [f"{row['name']:{width}}  {row['description']}" for row in rows if not row["published"]]
    return "\n".join([plain_table(header, table, left=3), "", *others])


def methods_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each objective needs, of `dhkd methods`."""
    table = []
    for row in rows:
        weights = f"; takes the teacher's {row['takes_of_teacher']}" if row["takes_of_teacher"] else ""
        table.append(
            (
                row["method"],
                signals_in_short(row["signals"]),
                f"{row['row_bytes']:,}" if row["signals"] else "",
                f"{row['view_bytes'] / 1e6:,.1f}" if row["signals"] else "",
                f"{row['extra_parameters']:,}",
                {None: "no teacher", True: "cache or live", False: "live only"}[row["cacheable"]] + weights,
            )
        )
    header = ["method", "signals", "bytes a row", "MB a view", "extra parameters", "from"]
    return plain_table(header, table, left=2)


def signals_in_short(names: Sequence[str]) -> str:
    """Signals' names, those of several stages as one: "map1…3-before"."""
    numbered = [name for name in names if re.match(r"(map|attention)\d", name)]
    if len(numbered) < 2:
        return ", ".join(names)
    first, last = numbered[0], numbered[-1]
    number = re.search(r"\d+", last)
    assert number is not None
    several = re.sub(r"\d+", lambda found: f"{found[0]}…{number[0]}", first.partition("-")[0], count=1)
    suffix = first.partition("-")[2] if not first.startswith("attention") else ""
    return ", ".join([several + (f"-{suffix}" if suffix else ""), *(name for name in names if name not in numbered)])


def demo_table(result: Mapping[str, Any]) -> str:
    """What the demo measured, with its own honest reading."""
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


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool = True, left: int = 2) -> str:
    """Rows of text under `columns`; the first `left` columns to the left, the others to the right, nothing wrapped."""
    table = Table(show_header=header, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(columns):
        table.add_column(name, justify="left" if position < left else "right", overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    stream = io.StringIO()
    # A plain file, whatever FORCE_COLOR says of terminals, and as wide as its rows are.
    width = sum(2 * max(map(len, column)) + 2 for column in zip(columns, *rows, strict=True))
    console = Console(
        file=stream, width=width, force_terminal=False, color_system=None, highlight=False, markup=False, emoji=False
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())
