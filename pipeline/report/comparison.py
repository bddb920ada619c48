"""Runs side by side. Each row is a *kind* of run, i.e. runs that differ only in their seed.

A row also has the difference from the baseline, and the accuracy that the paper reports for the same networks and
method. The *axes* of a comparison are the settings in which the runs differ, apart from the seed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from dhkd.configs.load import load_experiment, preset_names
from dhkd.data.errors import ConfigError, unknown
from dhkd.data.runs.measured import USUAL, common_top1_name
from dhkd.data.runs.names import (
    CACHE_KEY,
    CODE_KEY,
    MEASURED_KEY,
    OBJECTIVE_KEY,
    OBJECTIVE_OPTIONS_KEY,
    SOURCE_KEY,
    STUDENT_KEY,
    TEACHER_KEY,
    VIEWS_KEY,
)
from dhkd.data.runs.read import Run, finished_of, naturally
from dhkd.data.shown import printable_line
from dhkd.pipeline.report.table import axes_of
from dhkd.stages.report.statistics import Difference, Spread, difference, spread

# If the user names no baseline, the baseline is the first of these objectives that some run has.
BASELINES = ("ce", "kd")
# Objectives that need no forward passes of a teacher.
WITHOUT_TEACHER = ("ce", "label-smoothing")
# Axes whose values need no explanation: a kind's name has "resnet20", not "student=resnet20".
TELLING = ("objective", "student", "teacher")
# Settings that follow from the cache. A run without a cache lacks them, but can be compared with runs of any cache.
OF_CACHE = (CACHE_KEY, VIEWS_KEY)


@dataclass(frozen=True)
class ComparedRow:
    """Runs that differ only in their seed. Accuracies are in percent, `seconds` is the mean over the runs.

    `values` holds the row's value on each axis. `difference` is the difference from the baseline after the last epoch;
    it is None for the baseline itself and for rows without a baseline. `published` is the paper's accuracy.
    `last_ema_top1` is the accuracy of the average (EMA) of the weights; it is None unless every run kept one.
    """

    name: str
    values: Mapping[str, Any]  # Any: settings as they are stored in the run's file
    runs: Sequence[str]
    seeds: Sequence[int]
    last_top1: Spread
    best_top1: Spread
    difference: Difference | None
    published: float | None
    seconds: float
    last_ema_top1: Spread | None = None


@dataclass(frozen=True)
class Cost:
    """What all runs cost: teacher forward passes and seconds of training.

    `teacher_forwards_cached` counts the forward passes for the caches, each cache once; `teacher_forwards_live` counts
    the forward passes that training with live teachers, which compute their outputs during training, would have needed
    instead.
    """

    teacher_forwards_cached: int
    teacher_forwards_live: int
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of finished runs. `axes` are short names of settings that differ, `baseline` is "AXIS=VALUE".

    `baseline` is None if there is no baseline. `warnings` name the runs that are left out, and differences between runs
    that may distort the comparison. `top1` is the name of the top-1 figures, as in `top1_name`.
    """

    axes: Sequence[str]
    baseline: str | None
    rows: Sequence[ComparedRow]
    warnings: Sequence[str]
    cost: Cost
    top1: str = "top-1"

    @property
    def has_average(self) -> bool:
        """Whether a row has the accuracy of an average of weights, which tables then show."""
        return any(row.last_ema_top1 is not None for row in self.rows)


def comparison_json(compared: Comparison) -> dict[str, Any]:
    """Convert the comparison to the JSON object that `dhkd report DIR --json` prints."""
    plain = asdict(compared)
    if compared.top1 == "top-1":
        del plain["top1"]
    for row, plain_row in zip(compared.rows, plain["rows"], strict=True):
        if row.last_ema_top1 is None:
            del plain_row["last_ema_top1"]
        if row.difference is not None:
            plain_row["difference"]["verdict"] = row.difference.verdict
    return plain


def compare(runs: Sequence[Run], baseline: str | None = None) -> Comparison:
    """Compare the finished runs. `baseline` is "AXIS=VALUE", such as objective=kd.

    The baseline of a row is the row that has this value and otherwise the same settings. If `baseline` is None and the
    runs differ in their objective, the value is the first of `BASELINES` that some run has. If there is no such value,
    or all runs have one objective, there is no baseline. Raises `ConfigError` if AXIS is not an axis of the comparison,
    or if no run has VALUE.
    """
    finished = finished_of(runs)
    axes = compared_axes(finished)
    key, value = _baseline(baseline, axes, finished)
    # The baseline's axis is the last column, so that rows that are compared with one another are adjacent.
    axes = {short: axis for short, axis in axes.items() if axis != key} | {
        short: axis for short, axis in axes.items() if axis == key
    }
    kinds = kinds_of(finished, axes, first=value)
    rows = []
    for name, kind in kinds.items():
        reference = None
        if key is not None and kind[0].settings.get(key) != value:
            candidates = kinds.values()
            reference = next((runs for runs in candidates if _is_baseline(runs[0], kind[0], axes, key, value)), None)
        rows.append(_row(name, kind, reference, axes))
    named = None if key is None else f"{next(short for short, axis in axes.items() if axis == key)}={value}"
    top1 = common_top1_name([run.settings for run in finished])
    return Comparison(list(axes), named, rows, _warnings(runs, finished), _cost(finished), top1)


def kinds_of(runs: Sequence[Run], axes: Mapping[str, str], first: Any = None) -> dict[str, list[Run]]:
    """Group the runs that have the same values on these axes; a group's name is made of these values.

    Groups are sorted by value, and the runs in a group by seed. On the last axis, the value `first` comes before all
    other values; if `first` is None, no value is preferred. A setting that a run lacks is not in the group's name.
    """
    kinds: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: _sorting_key(run, axes, first)):
        values = {short: run.settings.get(key) for short, key in axes.items() if run.settings.get(key) is not None}
        parts = [str(value) for short, value in values.items() if short in TELLING]
        parts += [f"{short}={value}" for short, value in values.items() if short not in TELLING]
        kinds.setdefault(printable_line(", ".join(parts)) or "all", []).append(run)
    return kinds


def kind_by_run(runs: Sequence[Run]) -> Mapping[str, str]:
    """Map each run's name to its kind's name: the run's values of all settings that differ, except for the seed."""
    return {run.name: kind for kind, of_kind in kinds_of(runs, axes_of(runs)).items() for run in of_kind}


def published_of(run: Run) -> float | None:
    """Return the paper's top-1 accuracy in percent for the run's networks and method, or None if it is unknown.

    Papers report accuracy on the test split, so the result is None for a run that measures something else.
    """
    if run.settings.get(MEASURED_KEY, USUAL) != USUAL:
        return None
    pair = tuple(run.settings.get(key) for key in (SOURCE_KEY, TEACHER_KEY, STUDENT_KEY))
    objective = str(run.settings.get(OBJECTIVE_KEY))
    top1 = _published().get(pair, {}).get("student" if objective == "ce" else objective)
    return None if top1 is None else float(top1)


def _sorting_key(run: Run, axes: Mapping[str, str], first: Any) -> list[Any]:
    values = [run.settings.get(key) for key in axes.values()]
    places: list[Any] = [naturally(str(value)) if value is not None else [] for value in values]
    if first is not None and values:
        places[-1] = (values[-1] != first, places[-1])
    return [*places, run.seed]


def compared_axes(finished: Sequence[Run]) -> dict[str, str]:
    """Return the axes of these runs; a setting in `OF_CACHE` is an axis only if runs that have a cache differ in it."""
    return {
        short: key
        for short, key in axes_of(finished).items()
        if key not in OF_CACHE or len({run.settings.get(key) for run in finished} - {None}) > 1
    }


def _baseline(option: str | None, axes: Mapping[str, str], finished: Sequence[Run]) -> tuple[str | None, Any]:
    """Return the key and the value of the baseline's setting, or (None, None) if there is no baseline."""
    if option is None:
        key = axes.get("objective")
        objectives = {run.settings.get(key) for run in finished} if key is not None else set()
        default = next((name for name in BASELINES if name in objectives), None)
        return (key, default) if default is not None else (None, None)
    short, separator, text = option.partition("=")
    if not separator or short not in axes:
        raise ConfigError(f"--baseline {option}: expected AXIS=VALUE; {unknown('axis', short, axes)}")
    by_text = {str(run.settings.get(axes[short])): run.settings.get(axes[short]) for run in finished}
    if text not in by_text:
        raise ConfigError(f"--baseline {option}: {unknown('value', text, by_text)}")
    return axes[short], by_text[text]


def _is_baseline(candidate: Run, run: Run, axes: Mapping[str, str], key: str, value: Any) -> bool:
    """Return whether `candidate` has the baseline's value and agrees with `run` in all other settings that matter."""
    alike = all(
        candidate.settings.get(axis) == run.settings.get(axis)
        or (axis in OF_CACHE and candidate.settings.get(axis) is None)
        or (key == OBJECTIVE_KEY and _is_of_other_objectives(axis, str(value)))
        for axis in axes.values()
        if axis != key
    )
    return alike and candidate.settings.get(key) == value


def _is_of_other_objectives(axis: str, objective: str) -> bool:
    """Return whether a setting is an option of other objectives, which has no effect on runs with `objective`."""
    _, _, option = axis.partition(f"{OBJECTIVE_OPTIONS_KEY}.")
    names = [part.rpartition("*")[2].strip() for part in objective.split("+")]
    return bool(option) and not any(f"{option}.".startswith(f"{name}.") for name in names)


def _row(name: str, kind: Sequence[Run], reference: Sequence[Run] | None, axes: Mapping[str, str]) -> ComparedRow:
    # If two runs have the same seed, as runs from different folders can, the last run counts.
    last = _last_top1_by_seed(kind)
    best = {run.seed: run.finished_result.best_top1 for run in kind}
    averages = {run.seed: run.finished_result.last_ema_top1 for run in kind}
    of_averages = [top1 for top1 in averages.values() if top1 is not None]
    return ComparedRow(
        name,
        values={short: _shown(key, kind[0].settings.get(key)) for short, key in axes.items()},
        runs=[run.name for run in kind],
        seeds=sorted(last),
        last_top1=spread(list(last.values())),
        best_top1=spread(list(best.values())),
        difference=difference(last, _last_top1_by_seed(reference)) if reference else None,
        published=published_of(kind[0]),
        seconds=spread([run.finished_result.seconds for run in kind]).mean,
        last_ema_top1=spread(of_averages) if len(of_averages) == len(averages) else None,
    )


def _last_top1_by_seed(kind: Sequence[Run]) -> dict[int, float]:
    return {run.seed: run.finished_result.last_top1 for run in kind}


def _shown(key: str, value: Any) -> Any:
    return value[:12] if isinstance(value, str) and (key == CACHE_KEY or key.startswith(f"{CODE_KEY}.")) else value


@cache
def _published() -> dict[tuple[Any, ...], Mapping[str, float]]:
    """Read from the presets' records, for each (data set, teacher, student), the paper's accuracies by method."""
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
    caches = sorted({run.settings[CACHE_KEY][:12] for run in finished if run.settings.get(CACHE_KEY)})
    if len(caches) > 1:
        lines.append(f"runs of {len(caches)} caches ({', '.join(caches)}): what differs may be the caches' doing")
    seen = sorted({run.settings[VIEWS_KEY] for run in finished if run.settings.get(VIEWS_KEY)})
    if len(seen) > 1:
        numbers = ", ".join(map(str, seen))
        lines.append(
            f"runs saw {numbers} views of their cache: each is compared with runs that saw as many, or no cache"
        )
    measures = sorted({run.settings.get(MEASURED_KEY, USUAL) for run in finished})
    if len(measures) > 1:
        lines.append(f"runs measure different things ({', '.join(measures)}), which can't be compared with each other")
    twice = [name for name, count in Counter(_identities(finished)).items() if count > 1]
    if twice:
        lines.append(f"several runs of one kind and seed ({'; '.join(twice)}): the last of each counts")
    return lines


def _identities(finished: Sequence[Run]) -> list[str]:
    return [
        f"{name}, seed {run.seed}" for name, kind in kinds_of(finished, compared_axes(finished)).items() for run in kind
    ]


def _cost(finished: Sequence[Run]) -> Cost:
    cached: dict[str, int] = {}
    live = 0
    for run in finished:
        result = run.finished_result
        if result.cache and not result.live and run.settings.get(OBJECTIVE_KEY) not in WITHOUT_TEACHER:
            # A cache may have been extended after some of the runs.
            cached[result.cache.digest] = max(result.cache.forwards, cached.get(result.cache.digest, 0))
            live += result.epochs * result.cache.samples
    return Cost(sum(cached.values()), live, sum(run.finished_result.seconds for run in finished))
