"""`dhkd sweep`: every student of a grid, each trained once, whatever interrupts it, and one table of what came out.

A run's folder says where it stands: result.json, it is finished; failed.txt, it ended early and is left alone until it
is asked for again; else it is begun, or gone on with. Whoever works on a run holds its lock, so that the same command
may be started several times.
"""

import contextlib
import fcntl
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.cache.manifest import differences
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import ConfigError, DhkdError, RunMismatch, TrackerError
from dhkd.data.runs.folder import read_config
from dhkd.data.runs.names import CONFIG, FAILED, RESULT, SWEEP
from dhkd.data.runs.read import read_runs
from dhkd.pipeline.build.cache import digest_for, reader_of
from dhkd.pipeline.build.training import objective_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.report.table import write_table
from dhkd.pipeline.training import settings_of, train_students

log = logging.getLogger("dhkd")

Train = Callable[[Mapping[Path, Experiment]], Mapping[Path, dict[str, Any] | DhkdError]]


def sweep(
    experiments: Mapping[str, Experiment],
    cache: str | None,
    out: Path,
    *,
    command: str,
    data: DataOptions,
    part: tuple[int, int] = (0, 1),
    together: int = 1,
    again: bool = False,
    teacher: Path | None = None,
    allow_drift: bool = False,
    track: Sequence[str] = (),
    cpu: bool = False,
) -> dict[str, Any]:
    """Train each name's student in its folder of `out`, unless it is finished or has failed; how all of them stand.

    `part` (I, N) takes every N-th run from the I-th (from 0) on, `together` trains as many side by side, `again` has
    failed runs gone on with, `track` is that of `train_student`. What ends one run early leaves the others. Raises
    `DhkdError` for what concerns all.
    """
    for experiment in experiments.values():
        objective_of(experiment)  # a name that is none is found before hours have passed
    _require_different(experiments)
    reader = reader_of(cache, data) if cache is not None else None
    if reader is not None:
        reader.require_present()
    for name, experiment in experiments.items():
        digest = None if reader is None else digest_for(reader, experiment.student.teacher)
        _require_same(out / name, experiment, digest)
    _remember(out, command, list(experiments))
    mine = list(experiments)[part[0] :: part[1]]
    waiting = [name for name in mine if _is_open(out / name, again)]
    finished = sum((out / name / RESULT).exists() for name in mine)
    log.info("sweep: %d of %d runs to train%s", len(waiting), len(mine), f", {finished} finished" if finished else "")
    train = partial(
        train_students,
        cache=cache,
        data=data,
        teacher=teacher,
        allow_drift=allow_drift,
        track=track,
        cpu=cpu,
        resume=True,
    )
    began = time.perf_counter()
    refused: dict[str, str] = {}
    for start in range(0, len(waiting), together):
        with contextlib.ExitStack() as locks:
            group = [name for name in waiting[start : start + together] if locks.enter_context(_mine_alone(out / name))]
            # Another worker may have ended it since.
            group = [name for name in group if _is_open(out / name, again)]
            for name in group:
                (out / name / FAILED).unlink(missing_ok=True)
            refused |= _train({out / name: experiments[name] for name in group}, train)
        write_table(read_runs(out), out)
        # Whoever shares the work goes through the same list: what was passed by here is what all have done.
        passed = start + together
        left = sum(_is_open(out / name, again) for name in waiting[passed:])
        if group and left:
            minutes = (time.perf_counter() - began) / passed * left / 60
            log.info("sweep: %d of %d runs left, about %.1f min", left, len(waiting), minutes)
    runs = read_runs(out)
    return {
        "folder": str(out),
        "table": str(write_table(runs, out)),
        "runs": len(experiments),
        "finished": [run.name for run in runs if run.state == "finished"],
        "failed": {run.name: run.failure for run in runs if run.failure is not None} | refused,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _train(group: Mapping[Path, Experiment], train: Train) -> dict[str, str]:
    """Train these side by side; of those that could not even begin, why."""
    if not group:
        return {}
    try:
        outcomes: Mapping[Path, dict[str, Any] | Exception] = train(group)
    except Exception as error:  # a run's own fault or the program's: either way the other runs are to be trained
        if len(group) > 1:  # what they can't do together they may do one by one
            each = [_train({run: experiment}, train) for run, experiment in group.items()]
            return {name: line for refused in each for name, line in refused.items()}
        outcomes = dict.fromkeys(group, error)
    refused = {}
    for run, outcome in outcomes.items():
        if not isinstance(outcome, Exception):
            log.info("%s: trained, top-1 %.2f %%", run.name, outcome["last_top1"])
            continue
        line = str(outcome) if isinstance(outcome, DhkdError) else f"{type(outcome).__name__}: {outcome}"
        log.error("%s: %s", run.name, line)
        # A tracker that says no is nothing of the run's own.
        if (run / CONFIG).exists() and not isinstance(outcome, TrackerError):
            _keep_failure(run, line, outcome)
        else:
            refused[run.name] = line
    return refused


def _keep_failure(run: Path, line: str, error: Exception) -> None:
    text = "".join([line, "\n\n", *traceback.format_exception(error)])
    write_atomically(run / FAILED, lambda stream: stream.write(text.encode()))


def _is_open(run: Path, again: bool) -> bool:
    return not (run / RESULT).exists() and (again or not (run / FAILED).exists())


@contextlib.contextmanager
def _mine_alone(run: Path) -> Iterator[bool]:
    """Whether this worker may train the run: no other one has its lock, which goes with the process that holds it."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another worker trains it", run.name)
            yield False
        else:
            yield True


def _require_different(experiments: Mapping[str, Experiment]) -> None:
    seen: dict[str, str] = {}
    for name, experiment in experiments.items():
        settings = json.dumps(settings_of(experiment), sort_keys=True)
        if settings in seen:
            raise ConfigError(f"--grid: expected different runs, {seen[settings]} and {name} have the same settings")
        seen[settings] = name


def _require_same(run: Path, experiment: Experiment, cache: str | None) -> None:
    """Raise `RunMismatch` where the folder holds another run: a finished one is not looked at again by training."""
    existing = read_config(run)
    if existing is None:
        return
    changed = differences(existing.get("experiment") or {}, settings_of(experiment), exact=True)
    before = (existing.get("run") or {}).get("cache")
    if before != cache:
        changed.append(f"cache expected {str(before)[:12]}, got {str(cache)[:12]}")
    if changed:
        raise RunMismatch(f"run at {run}: {'; '.join(changed)}; give its own settings or choose another --out")


def _remember(out: Path, command: str, names: Sequence[str]) -> None:
    """Add to what a report of `out` will want to know; a sweep may be extended by another command."""
    path = out / SWEEP
    before: dict[str, Any] = {"commands": [], "runs": []}
    with contextlib.suppress(FileNotFoundError, ValueError):
        before |= json.loads(path.read_bytes())
    both = {key: list(dict.fromkeys([*before[key], *now])) for key, now in (("commands", [command]), ("runs", names))}
    if both != before:
        write_atomically(path, lambda stream: stream.write(json.dumps(both, indent=2).encode() + b"\n"))
