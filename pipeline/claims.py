"""Claiming the folder of a run, for all compute processes of the run together."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.errors import RunMismatch, RunTaken
from dhkd.data.runs.folder import RunFolder, Saved
from dhkd.data.runs.lock import RunLock, held
from dhkd.data.runs.metrics import read_metrics
from dhkd.data.runs.names import METRICS, RESULT
from dhkd.data.runs.result import read_result
from dhkd.pipeline.build.code import kept_code
from dhkd.pipeline.environment import log_once
from dhkd.pipeline.results import TrainedRun
from dhkd.stages.agreement import require_agreement
from dhkd.stages.processes import Processes

Lock = Callable[[Path, Processes], RunLock | None]


def locker(locks: ExitStack, taken: Mapping[Path, RunLock]) -> Lock:
    """Return a function that takes the lock of a run's folder, to be held until `locks` ends.

    Only the first process takes it, for all; the others get None. Locks in `taken` are held already.
    """

    def lock(out: Path, processes: Processes) -> RunLock | None:
        mine, refusal = taken.get(out), None
        if mine is None and processes.is_first:
            try:
                mine = locks.enter_context(held(out))
            except (RunTaken, OSError) as error:
                refusal = error
        refusal = processes.broadcast(refusal)
        if refusal is not None:
            raise refusal
        return mine

    return lock


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that define a run of the experiment, as plain values for config.yaml."""
    return experiment.model_dump(mode="json", exclude={"smoke", "record"})


def claimed(
    out: Path,
    experiment: Experiment,
    facts: Mapping[str, Any],
    processes: Processes,
    resume: bool,
    lock: Lock,
    saved: Saved,
) -> tuple[RunFolder, TrainedRun | None]:
    """Claim the folder `out` for a run of the experiment; `facts` are further plain values for config.yaml.

    `saved` is called with the folder whenever something new was saved there; only the first process calls it.

    Also returns the result if the run is finished already. Raises what `RunFolder` raises, `RunTaken` if another
    process trains in the folder, and `RunMismatch` if the result is not that of the settings and metrics beside it.
    """
    facts = kept_code(out, facts) if resume else facts
    config = {"run": {**facts, "precision": processes.precision}, "experiment": settings_of(experiment)}
    run = RunFolder(out, config, resume=resume)
    result = _finished(run, processes)  # a finished run needs no lock, so it may lie on a disk that can only be read
    # Every process takes part in `lock`, even if only some see a result that another program is writing.
    if all(processes.collect(result is not None)):
        return run, result
    run = RunFolder(out, config, resume=resume, lock=lock(out, processes), saved=saved)
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
