"""Records the user code that an experiment names, and checks that this code is still the same.

User code is what users wrote: networks, data sources, recipes and objectives. Runs and caches keep a record of it,
which maps the name of each object to the result of `Origin.plain`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment, Training
from dhkd.data.cache.manifest import Manifest
from dhkd.data.errors import CacheMismatch, RunMismatch, WeightsError
from dhkd.data.own_code import origin_of, require_unchanged
from dhkd.data.recipes import RECIPES
from dhkd.data.runs.config import read_config
from dhkd.data.runs.names import CODE
from dhkd.data.sources import is_own
from dhkd.stages.models import own_networks
from dhkd.stages.train.objectives import own_objectives
from dhkd.stages.train.optimizers import SGD, own_optimizers

Code = Mapping[str, Mapping[str, object]]


def code_of_data(experiment: Experiment) -> Code:
    """Return the record of the user code that makes the images, i.e. of the data source and the recipe."""
    source, kind = experiment.data.source, experiment.views.kind
    code_of_source = _record([source], "data source") if is_own(source) else {}
    return {**code_of_source, **({} if kind in RECIPES else _record([kind], "views.kind"))}


def code_of_network(architecture: str) -> Code:
    """Return the record of the user code that builds a network."""
    return _record(own_networks(architecture), "network")


def code_of_optimizer(training: Training) -> Code:
    """Return the record of the user code that updates a network's weights."""
    name = training.optimizer.name if training.optimizer else SGD
    return _record(own_optimizers(name), "optimizer")


def code_of_teacher(experiment: Experiment) -> Code:
    """Return the record of the user code with which a teacher is trained or cached."""
    return {**code_of_network(experiment.teacher.architecture), **code_of_data(experiment)}


def code_of_student(experiment: Experiment, architecture: str, *, live: bool) -> Code:
    """Return the record of the user code with which a student is trained; `architecture` names its network.

    The code of the teacher's network is included only if the teacher runs in every step (`live`).
    """
    teacher = code_of_network(experiment.teacher.architecture) if live else {}
    objective = _record(own_objectives(experiment.objective), "objective")
    optimizer = code_of_optimizer(experiment.student)
    return {**code_of_network(architecture), **teacher, **objective, **optimizer, **code_of_data(experiment)}


def code_facts(code: Code) -> dict[str, Any]:
    """Return the code's entry in a run's facts or a cache's provenance, as plain values; empty if there is no code."""
    return {CODE: dict(code)} if code else {}


def require_code_of_cache(manifest: Manifest, location: str, signals: Iterable[str], code: Code) -> None:
    """Raise `CacheMismatch` if user code has changed since these signals were cached."""
    for signal in signals:
        provenance = manifest.provenance.get(signal)
        recorded = provenance.get(CODE) if isinstance(provenance, Mapping) else None
        require_unchanged(f"cache at {location}", recorded, code, CacheMismatch)


def require_code_of_run(run: Path, names: Iterable[str] | None = None) -> None:
    """Raise `RunMismatch` if user code has changed since the run in this folder began.

    If `names` are given, only the code of these objects is compared. Raises `ConfigError` if their code was not loaded.
    """
    recorded = _recorded(run)
    compared = recorded if names is None else [name for name in names if name in recorded]
    require_unchanged(f"run at {run}", recorded, _record(compared, f"run at {run}:"), RunMismatch)


def kept_code(out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a run that begins or resumes in the folder `out`, as plain values.

    Raises `RunMismatch` if user code has changed since the run began. If the user allows changed code, the facts record
    the code with which the run began.
    """
    recorded, code = _recorded(out), facts.get(CODE)
    if not recorded or not isinstance(code, Mapping):
        return dict(facts)
    require_unchanged(f"run at {out}", recorded, code, RunMismatch)
    return {**facts, CODE: {name: recorded.get(name, plain) for name, plain in code.items()}}


def code_metadata(architecture: str) -> dict[str, str]:
    """Return the metadata with which a weights file records its network's user code; empty if there is none."""
    code = code_of_network(architecture)
    return {CODE: json.dumps(code, sort_keys=True)} if code else {}


def require_code_of_weights(file: Path, metadata: Mapping[str, str], architecture: str) -> None:
    """Raise `WeightsError` if a network's user code has changed since this file of its weights was written."""
    try:
        recorded = json.loads(metadata.get(CODE, "{}"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"weights {file}: expected its code in JSON, got another text in its metadata") from error
    require_unchanged(f"weights {file}", recorded, code_of_network(architecture), WeightsError)


def _recorded(run: Path) -> Mapping[str, Any]:
    """Return the record of user code in a run folder, as read from YAML; empty if there is no such record."""
    facts = (read_config(run) or {}).get("run")
    code = facts.get(CODE) if isinstance(facts, Mapping) else None
    return code if isinstance(code, Mapping) else {}


def _record(names: Iterable[str], kind: str) -> Code:
    return {name: origin.plain() for name in names if (origin := origin_of(name, kind)) is not None}
