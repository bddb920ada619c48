"""Runs side by side: those that differ in their seed alone as one row, with a baseline's and the paper's figures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from dhkd.configs.load import load_experiment, preset_names
from dhkd.data.errors import ConfigError, unknown
from dhkd.data.runs.read import Run, naturally
from dhkd.pipeline.report.table import axes_of
from dhkd.stages.report.statistics import Difference, Spread, difference, spread

# Where nobody says what to compare with: the first of these objectives that is there.
BASELINES = ("ce", "kd")
WITHOUT_TEACHER = ("ce", "label-smoothing")
# Axes whose values say which axis they are of.
TELLING = ("objective", "student", "teacher")
OBJECTIVE = "experiment.objective"
# A run without a cache is comparable to runs with any.
OF_CACHE = ("run.cache", "run.views")


def compare(runs: Sequence[Run], baseline: str | None = None) -> dict[str, Any]:
    """Finished runs by what they differ in: accuracy over seeds in percent, differences, cost; and what to beware of.

    `baseline` is "AXIS=VALUE", such as objective=kd: what each row is compared with that differs in nothing else.
    """
    finished = [run for run in runs if run.state == "finished"]
    axes = _axes(finished)
    key, value = _baseline(baseline, axes, finished)
    # What is compared stands together, in the last column, the baseline first.
    axes = {short: axis for short, axis in axes.items() if axis != key} | {
        short: axis for short, axis in axes.items() if axis == key
    }
    groups = groups_of(finished, axes, first=value)
    rows = []
    for name, group in groups.items():
        against = None
        if key is not None and group[0].settings.get(key) != value:
            against = next(
                (other for other in groups.values() if _is_baseline(other[0], group[0], axes, key, value)), None
            )
        rows.append({"name": name, **_row(group, against, axes)})
    return {
        "axes": list(axes),
        "baseline": None if key is None else f"{next(short for short, long in axes.items() if long == key)}={value}",
        "rows": rows,
        "warnings": _warnings(runs, finished),
        "cost": _cost(finished),
    }


def groups_of(runs: Sequence[Run], axes: Mapping[str, str], first: Any = None) -> dict[str, list[Run]]:
    """Runs that are alike in these settings, under a name that says what those are, sorted by them.

    `first` is the last axis's value that goes before the others. What a run has no value of isn't in its name.
    """
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: _by_settings(run, axes, first)):
        values = {short: run.settings.get(key) for short, key in axes.items() if run.settings.get(key) is not None}
        said = [str(value) for short, value in values.items() if short in TELLING]
        said += [f"{short}={value}" for short, value in values.items() if short not in TELLING]
        groups.setdefault(", ".join(said) or "all", []).append(run)
    return groups


def _by_settings(run: Run, axes: Mapping[str, str], first: Any) -> list[Any]:
    """As people sort, axis by axis, then by seed."""
    values = [run.settings.get(key) for key in axes.values()]
    places: list[Any] = [naturally(str(value)) if value is not None else [] for value in values]
    if first is not None and values:
        places[-1] = (values[-1] != first, places[-1])
    return [*places, run.seed]


def _axes(finished: Sequence[Run]) -> dict[str, str]:
    """Those of all runs, but for a cache in which runs differ only by having none."""
    axes = axes_of(finished)
    return {
        short: key
        for short, key in axes.items()
        if key not in OF_CACHE or len({run.settings.get(key) for run in finished} - {None}) > 1
    }


def _baseline(said: str | None, axes: Mapping[str, str], finished: Sequence[Run]) -> tuple[str | None, Any]:
    if said is None:
        key = axes.get("objective")
        values = {run.settings.get(key) for run in finished} if key is not None else set()
        found = next((name for name in BASELINES if name in values), None)
        return (key, found) if found is not None else (None, None)
    short, separator, text = said.partition("=")
    if not separator or short not in axes:
        raise ConfigError(f"--baseline {said}: expected AXIS=VALUE; {unknown('axis', short, axes)}")
    named = {str(run.settings.get(axes[short])): run.settings.get(axes[short]) for run in finished}
    if text not in named:
        raise ConfigError(f"--baseline {said}: {unknown('value', text, named)}")
    return axes[short], named[text]


def _is_baseline(other: Run, run: Run, axes: Mapping[str, str], key: str, value: Any) -> bool:
    alike = all(
        other.settings.get(axis) == run.settings.get(axis)
        or (axis in OF_CACHE and other.settings.get(axis) is None)
        or (key == OBJECTIVE and _is_of_other_objectives(axis, str(value)))
        for axis in axes.values()
        if axis != key
    )
    return alike and other.settings.get(key) == value


def _is_of_other_objectives(axis: str, objective: str) -> bool:
    """Whether a setting is an option of objectives other than these: it does nothing to them."""
    _, _, option = axis.partition(f"{OBJECTIVE}s.")
    return bool(option) and option.partition(".")[0] not in re.findall(r"[\w-]+", objective)


def _row(group: Sequence[Run], against: Sequence[Run] | None, axes: Mapping[str, str]) -> dict[str, Any]:
    first = group[0]
    last, best = (_by_seed(group, name) for name in ("last_top1", "best_top1"))
    differs = difference(last, _by_seed(against, "last_top1")) if against else None
    return {
        "values": {short: _shown(key, first.settings.get(key)) for short, key in axes.items()},
        "runs": [run.name for run in group],
        "seeds": sorted(last),
        "last_top1": _plain(spread(list(last.values()))),
        "best_top1": _plain(spread(list(best.values()))),
        "difference": None if differs is None else _plain(differs),
        "published": published_of(first),
        "seconds": spread([float(run.result["seconds"]) for run in group if run.result]).mean,
    }


def _shown(key: str, value: Any) -> Any:
    return value[:12] if key == "run.cache" and value is not None else value


def _by_seed(group: Sequence[Run], figure: str) -> dict[int, float]:
    """Where two runs are of one seed, which only runs of different folders can be, the last one's."""
    return {run.seed: float(run.result[figure]) for run in group if run.result is not None}


def _plain(found: Spread) -> dict[str, Any]:
    verdict = {"verdict": found.verdict} if isinstance(found, Difference) else {}
    return {**asdict(found), **verdict}


def published_of(run: Run) -> float | None:
    """What the paper has for this pair of networks and method, top-1 in percent."""
    pair = tuple(
        run.settings.get(f"experiment.{key}") for key in ("data.source", "teacher.architecture", "student.architecture")
    )
    objective = str(run.settings.get(OBJECTIVE))
    found = _published().get(pair, {}).get("student" if objective == "ce" else objective)
    return None if found is None else float(found)


@cache
def _published() -> dict[tuple[Any, ...], Mapping[str, float]]:
    table = {}
    for name in preset_names():
        experiment = load_experiment(name)
        pair = (experiment.data.source, experiment.teacher.architecture, experiment.student.architecture)
        if experiment.record.get("published"):
            table[pair] = experiment.record["published"]
    return table


def _warnings(runs: Sequence[Run], finished: Sequence[Run]) -> list[str]:
    lines = [f"{run.name}: {run.damage}" for run in runs if run.state == "damaged"]
    lines += [f"{run.name} failed: {run.failure}" for run in runs if run.state == "failed"]
    unfinished = [run.name for run in runs if run.state == "unfinished"]
    if unfinished:
        lines.append(f"{len(unfinished)} unfinished runs are left out: {', '.join(unfinished)}")
    caches = sorted({run.settings["run.cache"][:12] for run in finished if run.settings.get("run.cache")})
    if len(caches) > 1:
        lines.append(f"runs of {len(caches)} caches ({', '.join(caches)}): what differs may be the caches' doing")
    return lines


def _cost(finished: Sequence[Run]) -> dict[str, float]:
    """Forwards of the teacher that caches took, once for each, and that live teachers would have made instead."""
    caches: dict[str, int] = {}
    live = 0
    for run in finished:
        result = run.result or {}
        cache = result.get("cache")
        if cache and not result.get("live") and run.settings.get(OBJECTIVE) not in WITHOUT_TEACHER:
            caches[cache["digest"]] = cache["views"] * cache["samples"]
            live += int(result["epochs"] * cache["samples"])
    return {
        "teacher_forwards_cached": sum(caches.values()),
        "teacher_forwards_live": live,
        "seconds": sum(float(run.result["seconds"]) for run in finished if run.result is not None),
    }
