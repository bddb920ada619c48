"""Where a run's values go beside its own files: TensorBoard, W&B and MLflow, through Accelerate's trackers.

Each is set up as its makers say, by environment variables (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, …). What a service calls a run is kept in the run's folder, so that a resumed run is the same
one there. Trackers are a comfort: one that can't begin is told before anything is trained, one that breaks later is
left behind, since metrics.jsonl holds every value.
"""

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import ConfigError, TrackerError
from dhkd.data.runs.flat import flat

log = logging.getLogger("dhkd")

TRACKING, NAMES = "tracking", "names.json"
PROJECT = "dhkd"

Log = Callable[[dict[str, float], int], None]
End = Callable[[bool], None]


def installed_trackers(names: Sequence[str] = ()) -> tuple[str, ...]:
    """These trackers ("none" is none of them); where none is named, TensorBoard if it is installed.

    Raises `ConfigError` for one that isn't installed.
    """
    if not names:
        return ("tensorboard",) if find_spec("tensorboard") else ()
    wanted = tuple(name for name in dict.fromkeys(names) if name != "none")
    for name in wanted:
        if not find_spec(name):
            raise ConfigError(
                f"--track {name}: expected {name} to be installed, found none; pip install 'dhkd[{name}]'"
            )
    return wanted


class Trackers:
    """One run in every tracker that is to show it."""

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin the run of `folder`, or go on with it; `settings` are nested plain values.

        Raises `TrackerError` where a tracker says no.
        """
        shown = {
            key: value if isinstance(value, int | float | str | bool) else str(value)
            for key, value in flat(settings).items()
        }
        self._begun: dict[str, tuple[Log, End]] = {}
        for name in names:
            try:
                self._begun[name] = BEGIN[name](folder, shown)
            except Exception as error:  # each service has errors of its own kind
                self.end(failed=True)
                raise TrackerError(
                    f"--track {name}: expected a run to begin there, got: {_first_line(error)}; put right what it says"
                    f"{WITHOUT_SERVICE[name]}, or leave it out"
                ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add the values of a step; a tracker that can't take them gets no more."""
        for name, (add, _) in list(self._begun.items()):
            try:
                add(dict(values), step)
            except Exception as error:
                del self._begun[name]
                log.warning("tracker %s: %s; the run goes on without it", name, _first_line(error))

    def end(self, *, failed: bool) -> None:
        """Say that no more will come, and whether the run ended early."""
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
    run_id = _name_there(folder, "wandb") or secrets.token_hex(8)
    _keep_name(folder, "wandb", run_id)
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=_name_here(folder),
        id=run_id,
        resume="allow",
        dir=str(folder / TRACKING),
        config=settings,  # Accelerate would store them in the one run that W&B has for a whole process
        reinit="create_new",  # as several students side by side have one each
    )
    tracker.start()
    return tracker.log, lambda failed: tracker.tracker.finish(exit_code=int(failed))


def _mlflow(folder: Path, settings: dict[str, Any]) -> tuple[Log, End]:
    import mlflow

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    tracker = MLflowTracker(experiment, run_name=_name_here(folder), run_id=_name_there(folder, "mlflow"))
    tracker.start()
    run_id = tracker.tracker.info.run_id
    _keep_name(folder, "mlflow", run_id)
    tracker.store_init_configuration(settings)
    # MLflow takes one run of a process as the active one. Students side by side have one each: none of them stays it,
    # each goes on until it is said to have ended.
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


def _name_here(folder: Path) -> str:
    """A sweep's name and that of the run in it."""
    return "/".join(folder.resolve().parts[-2:])


def _names(folder: Path) -> dict[str, str]:
    path = folder / TRACKING / NAMES
    names: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
    return names


def _name_there(folder: Path, tracker: str) -> str | None:
    """What the tracker calls the run, if it has begun there."""
    return _names(folder).get(tracker)


def _keep_name(folder: Path, tracker: str, name: str) -> None:
    content = json.dumps({**_names(folder), tracker: name}).encode()
    write_atomically(folder / TRACKING / NAMES, lambda stream: stream.write(content))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
