"""Claiming the folder of a run, for all compute processes of the run together."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.errors import RunMismatch, RunTaken
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.lock import RunLock, held
from dhkd.data.runs.metrics import read_metrics
from dhkd.data.runs.names import METRICS, RESULT
from dhkd.data.runs.place import NearRun, is_elsewhere, runs_at
from dhkd.data.runs.result import read_result
from dhkd.pipeline.build.code import kept_code
from dhkd.pipeline.environment import log_once
from dhkd.pipeline.launch import is_first_process, settle_launch
from dhkd.pipeline.results import TrainedRun
from dhkd.stages.agreement import require_agreement
from dhkd.stages.processes import Processes


def _lock(near: NearRun, processes: Processes, locks: ExitStack) -> RunLock | None:
    """Take the lock of a run's folder, to be held until `locks` ends, unless it is held already.

    Only the first process takes it, for all; the others get None.
    """
    mine, refusal = near.lock, None
    if mine is None and processes.is_first:
        try:
            mine = locks.enter_context(held(near.folder))
        except (RunTaken, OSError) as error:
            refusal = error
    refusal = processes.broadcast(refusal)
    if refusal is not None:
        raise refusal
    return mine


@contextlib.contextmanager
def near_runs(out: str | Path, names: Sequence[str] = ("",), *, resume: bool) -> Iterator[dict[str, NearRun]]:
    """Yield where each run below `out` is trained, by name; the name "" is that of the run which is `out` itself.

    Runs at a URL are held until the context ends, and their files are sent there. The lock of a folder on the file
    system is taken by training itself.
    """
    if not is_elsewhere(out):
        yield {name: NearRun(Path(out) / name) for name in names}
        return
    settle_launch()
    place, first = runs_at(out), is_first_process()
    with ExitStack() as held:
        yield {name: held.enter_context(place.trained(name, resume=resume, first=first)) for name in names}


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that define a run of the experiment, as plain values for config.yaml."""
    return experiment.model_dump(mode="json", exclude={"smoke", "record"})


def claimed(
    near: NearRun,
    experiment: Experiment,
    facts: Mapping[str, Any],
    processes: Processes,
    resume: bool,
    locks: ExitStack,
) -> tuple[RunFolder, TrainedRun | None]:
    """Claim a folder for a run of the experiment; `facts` are further plain values for config.yaml.

    The folder's lock is held until `locks` ends. Also returns the result if the run is finished already. Raises what
    `RunFolder` raises, `RunTaken` if another process trains in the folder, and `RunMismatch` if the result is not that
    of the settings and metrics beside it.
    """
    out = near.folder
    facts = kept_code(out, facts) if resume else facts
    config = {"run": {**facts, "precision": processes.precision}, "experiment": settings_of(experiment)}
    run = RunFolder(out, config, resume=resume)
    result = _finished(run, processes)  # a finished run needs no lock, so it may lie on a disk that can only be read
    # Every process takes part in `_lock`, even if only some see a result that another program is writing.
    if all(processes.collect(result is not None)):
        return run, result
    run = RunFolder(out, config, resume=resume, lock=_lock(near, processes, locks), saved=near.saved)
    result = _finished(run, processes)  # another process may have finished the run before this one got the lock
    # Processes whose machines share no disk would see different runs. This also keeps the first process from writing
    # into the folder before the others have checked it.
    require_agreement(processes, lambda: {"run folder": {"finished": result is not None}})
    return run, result


def _finished(run: RunFolder, processes: Processes) -> TrainedRun | None:
    """Return the run's result if the run is finished already, or else None.

    Raises `RunMismatch` if the result is not that of the settings and metrics beside it.
    """
    plain_result = run.result
    if plain_result is None:
        return None
    where = run.path / RESULT
    result = TrainedRun.from_json(plain_result, str(where))
    epochs = read_metrics(run.path)
    if len(epochs) != result.epochs:
        raise RunMismatch(
            f"{run.path / METRICS}: expected {result.epochs} epochs, as {RESULT} says, got {len(epochs)}; one of them"
            f" was edited or lost; put it back, or choose another --out"
        )
    read_result(run.path, epochs, run.settings_sha256)
    log_once(processes, f"run at {run.path}: already finished")
    return result
