"""Trackers that show a run's metrics: TensorBoard, W&B and MLflow, through Accelerate.

Each tracker is configured by its usual environment variables (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, …). The identifier that the run has in W&B or MLflow is stored in the run's folder, so that a
resumed run continues under the same identifier. If a tracker can't begin, the command stops before training. If a
tracker fails later, it is dropped, because metrics.jsonl holds every value.
"""

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import TrackerError
from dhkd.data.extras import is_installed, require
from dhkd.data.runs.flat import flat
from dhkd.data.runs.names import TRACKED, TRACKING

log = logging.getLogger("dhkd")

PROJECT = "dhkd"

Log = Callable[[dict[str, float], int], None]
End = Callable[[bool], None]


def installed_trackers(names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the trackers in `names`, each once and without "none".

    If `names` is empty, return TensorBoard if it is installed. Raises `ConfigError` for a tracker that isn't installed.
    """
    if not names:
        return ("tensorboard",) if is_installed("tensorboard") else ()
    wanted = tuple(name for name in dict.fromkeys(names) if name != "none")
    for name in wanted:
        require(name, f"--track {name}")
    return wanted


class Trackers:
    """One run, shown in several trackers."""

    # `settings` is the content of the run's YAML file: nested plain values that only the trackers read.
    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin or resume the run in `folder` with every named tracker.

        Raises `TrackerError` if a tracker can't begin.
        """
        shown = {
            key: value if isinstance(value, int | float | str | bool) else str(value)
            for key, value in flat(settings).items()
        }
        self._begun: dict[str, tuple[Log, End]] = {}
        for name in names:
            try:
                self._begun[name] = BEGIN[name](folder, shown)
            except Exception as error:  # each service raises different types of errors
                self.end(failed=True)
                raise TrackerError(
                    f"--track {name}: expected a run to begin there, got: {_first_line(error)}; put right what it says"
                    f"{WITHOUT_SERVICE[name]}, or leave it out"
                ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a step to every tracker. A tracker that fails is dropped and gets no further values."""
        for name, (add, _) in list(self._begun.items()):
            try:
                add(dict(values), step)
            except Exception as error:
                del self._begun[name]
                log.warning("tracker %s: %s; the run goes on without it", name, _first_line(error))

    def end(self, *, failed: bool) -> None:
        """Tell the trackers that no more values will come; `failed` says that the run ended early."""
        for name, (_, end) in self._begun.items():
            try:
                end(failed)
            except Exception as error:
                log.warning("tracker %s: %s", name, _first_line(error))
        self._begun = {}


def _tensorboard(folder: Path, settings: dict[str, Any]) -> tuple[Log, End]:
    tracker = TensorBoardTracker(TRACKING, str(folder))
    tracker.start()
    tracker.store_init_configuration(settings)
    return tracker.log, lambda failed: tracker.finish()


def _wandb(folder: Path, settings: dict[str, Any]) -> tuple[Log, End]:
    run_id = _known_id(folder, "wandb") or secrets.token_hex(8)
    _keep_id(folder, "wandb", run_id)
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=_shown_name(folder),
        id=run_id,
        resume="allow",
        dir=str(folder / TRACKING),
        config=settings,  # Accelerate would store settings in the only global W&B run of the process
        reinit="create_new",  # students that train side by side need a separate run each
    )
    tracker.start()
    return tracker.log, lambda failed: tracker.tracker.finish(exit_code=int(failed))


def _mlflow(folder: Path, settings: dict[str, Any]) -> tuple[Log, End]:
    import mlflow

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    tracker = MLflowTracker(experiment, run_name=_shown_name(folder), run_id=_known_id(folder, "mlflow"))
    tracker.start()
    run_id = tracker.tracker.info.run_id
    _keep_id(folder, "mlflow", run_id)
    tracker.store_init_configuration(settings)
    # MLflow allows only one active run in a process, but students that train side by side have one run each. So no run
    # stays active; each run is marked as running until its end is reported.
    mlflow.end_run("RUNNING")
    return (
        lambda values, step: tracker.log(values, step, run_id=run_id),
        lambda failed: mlflow.MlflowClient().set_terminated(run_id, "FAILED" if failed else "FINISHED"),
    )


BEGIN: Mapping[str, Callable[[Path, dict[str, Any]], tuple[Log, End]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
WITHOUT_SERVICE = {
    "tensorboard": "",
    "wandb": " (WANDB_MODE=offline needs no account)",
    "mlflow": " (MLFLOW_TRACKING_URI=sqlite:///mlflow.db needs no server)",
}


def _shown_name(folder: Path) -> str:
    """Return "SWEEP/RUN", the last two parts of the folder's path."""
    return "/".join(folder.resolve().parts[-2:])


def _ids(folder: Path) -> dict[str, str]:
    path = folder / TRACKED
    ids: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
    return ids


def _known_id(folder: Path, tracker: str) -> str | None:
    """Return the run's identifier in this tracker, or None if the tracker has not shown the run before."""
    return _ids(folder).get(tracker)


def _keep_id(folder: Path, tracker: str, run_id: str) -> None:
    content = json.dumps({**_ids(folder), tracker: run_id}).encode()
    write_atomically(folder / TRACKED, lambda stream: stream.write(content))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
