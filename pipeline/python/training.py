"""Training from Python: a teacher, a student, or the students of a grid."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError
from dhkd.pipeline import training
from dhkd.pipeline.build.cache import reader_of
from dhkd.pipeline.build.recorded import recorded_settings
from dhkd.pipeline.claims import near_runs
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.python.objects import Loss, Model, Views, name_of_loss, name_of_model, views_of, weights_of
from dhkd.pipeline.python.own_data import Dataset, Split, settings_of_data
from dhkd.pipeline.python.runs import RunTable, report
from dhkd.pipeline.python.settings import (
    Settings,
    StudentSettings,
    TrainingSettings,
    base_tree,
    below,
    built,
    place_to_write,
)
from dhkd.pipeline.python.surroundings import undisturbed
from dhkd.pipeline.results import TrainedRun
from dhkd.pipeline.sweep import sweep as train_all

MODEL, OBJECTIVE = "model", "objective"  # keys of a grid whose values may be objects


def train_teacher(
    model: Model | None,
    dataset: Dataset | None = None,
    recipe: Views | None = None,
    out: str | Path | None = None,
    *,
    test: Split | None = None,
    preset: str | Path | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    data: DataOptions | None = None,
    track: Sequence[str] = (),
    cpu: bool = False,
    resume: bool = True,
    allow_changed_code: bool = False,
    **teacher: Unpack[TrainingSettings],
) -> TrainedRun:
    """Train a network with cross-entropy on freshly drawn views, and write its weights and result into folder `out`.

    The arguments are those of `cache_teacher`; the keywords are those of the section `teacher`. If `model` is a
    network, it is copied, and the copy starts from its weights. Repeating the call continues an interrupted run, or
    returns the result of a finished one; with `resume=False`, it raises an error.
    """
    place = place_to_write(out)
    tree, chosen, data = _begun(dataset, test, recipe, preset, data)
    if model is not None:
        chosen["teacher.architecture"] = name_of_model(model, "student")
    if preset is None:
        # The schema requires a student, though this call trains none.
        needed = {key: teacher[key] for key in ("epochs", "lr") if key in teacher}
        tree["teacher"], tree["student"] = {}, {"architecture": chosen.get("teacher.architecture"), **needed}
    experiment = built(tree, {**chosen, **below("teacher", teacher), **_seeded(seed), **(settings or {})})
    with undisturbed(allow_changed_code=allow_changed_code), near_runs(place, resume=resume) as runs:
        folder, held = runs[""].folder, {runs[""].folder: runs[""]}
        return training.train_teacher(experiment, folder, data=data, track=track, cpu=cpu, resume=resume, held=held)


def train_student(
    model: Model | None,
    cache: str | Path | None,
    objective: Loss | None = None,
    out: str | Path | None = None,
    *,
    dataset: Dataset | None = None,
    test: Split | None = None,
    recipe: Views | None = None,
    teacher: Model | None = None,
    teacher_weights: str | Path | None = None,
    preset: str | Path | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    data: DataOptions | None = None,
    allow_drift: bool = False,
    track: Sequence[str] = (),
    cpu: bool = False,
    resume: bool = True,
    allow_changed_code: bool = False,
    **student: Unpack[StudentSettings],
) -> TrainedRun:
    """Train a student from a cache, and write its weights and result into the folder `out`.

    `model` is a name or a function of the number of classes, such as a network's class; the network is then built and
    initialised under the `seed`. If `model` is a network, it is copied, and the copy starts from its weights, whatever
    the seed. `objective` is a name, a sum such as "dhkd + 0.5 * cat-kd", an `Objective`, or a function; if it is None,
    the objective is the preset's, or else dhkd. `cache` is a path or URL; it is None for objectives without a teacher,
    or if the teacher runs in every step (`settings={"teacher.live": True}`, and `teacher`).

    Data and recipe are those that the cache records, unless `dataset` or a `preset` says otherwise. A cache can't
    record objects, so another process must pass the arrays or the `Dataset` again. `teacher` is the teacher's network,
    or its name together with `teacher_weights`; it is needed for a live teacher and for objectives that use the
    teacher's network.

    Settings come from the preset, then from these arguments, then from the keywords, which belong to the section
    `student`, and last from `settings`, by dotted key: {"objectives.kd.temperature": 2}. Later ones override earlier
    ones.

    Repeating the call continues an interrupted run, or returns the result of a finished one; with `resume=False`, it
    raises an error. Raises `RunMismatch` if the folder holds a run with other settings, another network or another
    cache, and also if code has changed since, unless `allow_changed_code` is set.
    """
    place = place_to_write(out)
    tree, chosen, data = _of_student(model, cache, objective, dataset, test, recipe, teacher, preset, data)
    experiment = built(tree, {**chosen, **below("student", student), **_seeded(seed), **(settings or {})})
    with (
        undisturbed(allow_changed_code=allow_changed_code),
        weights_of(teacher, teacher_weights) as file,
        near_runs(place, resume=resume) as runs,
    ):
        folder, held = runs[""].folder, {runs[""].folder: runs[""]}
        return training.train_student(
            *(experiment, _location(cache), folder),
            data=data,
            teacher=file,
            allow_drift=allow_drift,
            track=track,
            cpu=cpu,
            resume=resume,
            held=held,
        )


def sweep(
    model: Model | None,
    cache: str | Path | None,
    objective: Loss | None = None,
    out: str | Path | None = None,
    *,
    grid: Mapping[str, Sequence[object]] | None = None,
    seeds: int | Sequence[int] | None = None,
    together: int = 1,
    part: tuple[int, int] = (0, 1),
    again: bool = False,
    baseline: str | None = None,
    dataset: Dataset | None = None,
    test: Split | None = None,
    recipe: Views | None = None,
    teacher: Model | None = None,
    teacher_weights: str | Path | None = None,
    preset: str | Path | None = None,
    settings: Settings | None = None,
    data: DataOptions | None = None,
    allow_drift: bool = False,
    track: Sequence[str] = (),
    cpu: bool = False,
    allow_changed_code: bool = False,
    **student: Unpack[StudentSettings],
) -> RunTable:
    """Train a student for every combination of a grid, each in a subfolder of `out`, and return the table of the runs.

    `grid` maps settings to their values: {"objective": ["ce", "kd", my_loss], "student.lr": [0.05, 0.1]}. The keys
    "model" and "objective" take objects as well. `seeds` is a list of seeds, or their number, counted from 0.
    `together` students are trained side by side. `part` (I, N) is this call's share of the runs, the I-th (from 0) of
    N. Runs that failed earlier are skipped unless `again` is set; the table names their errors. `baseline`, such as
    "objective=kd", is what the table compares the other runs with. All other arguments are those of `train_student`.

    Repeating the call continues where it was interrupted.
    """
    place = place_to_write(out)
    tree, chosen, data = _of_student(model, cache, objective, dataset, test, recipe, teacher, preset, data)
    chosen |= {**below("student", student), **(settings or {})}
    choices = dict(grid or {})
    if seeds is not None:
        choices["seed"] = list(range(seeds) if isinstance(seeds, int) else seeds)
    experiments = _combined(tree, chosen, choices)
    with undisturbed(allow_changed_code=allow_changed_code), weights_of(teacher, teacher_weights) as file:
        train_all(
            experiments,
            _location(cache),
            place,
            command="dhkd.sweep",
            data=data,
            part=part,
            together=together,
            again=again,
            teacher=file,
            allow_drift=allow_drift,
            track=track,
            cpu=cpu,
        )
    return report(place, baseline=baseline)


# Any: settings are plain values, as YAML stores them.
def _begun(
    dataset: Dataset | None,
    test: Split | None,
    recipe: Views | None,
    preset: str | Path | None,
    data: DataOptions | None,
) -> tuple[dict[str, Any], dict[str, object], DataOptions]:
    """Return the preset's settings, those that replace them for data set and recipe, and the options for reading."""
    data_settings, data = settings_of_data(dataset, test, data)
    chosen: dict[str, object] = {"data": data_settings} if data_settings else {}
    if recipe is not None:
        chosen["views"] = views_of(recipe)
    return base_tree(preset), chosen, data


# Any: settings are plain values, as YAML stores them.
def _of_student(
    model: Model | None,
    cache: str | Path | None,
    objective: Loss | None,
    dataset: Dataset | None,
    test: Split | None,
    recipe: Views | None,
    teacher: Model | None,
    preset: str | Path | None,
    data: DataOptions | None,
) -> tuple[dict[str, Any], dict[str, object], DataOptions]:
    """Return the settings of preset or cache, those that replace them for the arguments, and the reading options."""
    tree, chosen, data = _begun(dataset, test, recipe, preset, data)
    if preset is None and cache is not None:
        reader = reader_of(str(cache), data)
        tree |= recorded_settings(reader.manifest, reader.location, known=chosen.keys())
    if teacher is not None:
        chosen["teacher.architecture"] = name_of_model(teacher, "teacher")
    elif preset is None and cache is None:
        tree["teacher"]["architecture"] = "none"
    return tree, chosen | _objects({MODEL: model, OBJECTIVE: objective}), data


def _objects(values: Mapping[str, Any]) -> dict[str, object]:  # Any: what users give
    """Return the settings that name the network and the objective; for None, the setting stays as it is."""
    settings: dict[str, object] = {}
    if values.get(MODEL) is not None:
        settings["student.architecture"] = name_of_model(values[MODEL], "student")
    if values.get(OBJECTIVE) is not None:
        settings["objective"] = name_of_loss(values[OBJECTIVE])
    return settings


def _combined(
    tree: Mapping[str, Any], chosen: Settings, choices: Mapping[str, Sequence[object]]
) -> dict[str, Experiment]:
    """Return the experiment of every combination, by a name that is a valid folder name; `tree` has plain values."""
    for key, values in choices.items():
        if not values or isinstance(values, str):
            raise ConfigError(f"grid: {key}: expected a list of values, got none")
    experiments: dict[str, Experiment] = {}
    for combination in itertools.product(*choices.values()):
        given = dict(zip(choices, combination, strict=True))
        objects = {key: given.pop(key) for key in (MODEL, OBJECTIVE) if key in given}
        changed = {**_objects(objects), **given}
        labels = [f"{key}={_label(value)}" for key, value in changed.items()]
        name = re.sub(r"[^\w.=+*@,-]+", "_", ",".join(labels)) or "run"
        if name in experiments:
            raise ConfigError(f"grid: expected different values, got {name} twice")
        experiments[name] = built(tree, {**chosen, **changed})
    return experiments


def _label(value: object) -> str:
    """Return a value as it appears in a folder's name; a function appears without its module."""
    return str(value).rpartition(":")[2] if isinstance(value, str) else str(value)


def _seeded(seed: int | None) -> dict[str, object]:
    return {} if seed is None else {"seed": seed}


def _location(cache: str | Path | None) -> str | None:
    return None if cache is None else str(cache)
