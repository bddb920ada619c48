"""Caching a teacher from Python."""

from pathlib import Path
from typing import Unpack

from dhkd.data.errors import ConfigError
from dhkd.pipeline import caching
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.python.objects import Model, Views, name_of_model, views_of, weights_of
from dhkd.pipeline.python.own_data import Dataset, Split, settings_of_data
from dhkd.pipeline.python.settings import CacheSettings, Settings, base_tree, below, built, place_to_write
from dhkd.pipeline.python.surroundings import undisturbed
from dhkd.pipeline.results import CachedTeacher


def cache_teacher(
    model: Model | None,
    dataset: Dataset | None = None,
    recipe: Views | None = None,
    out: str | Path | None = None,
    *,
    test: Split | None = None,
    weights: str | Path | None = None,
    student: Model | None = None,
    preset: str | Path | None = None,
    settings: Settings | None = None,
    data: DataOptions | None = None,
    name: str | None = None,
    part: tuple[int, int] = (0, 1),
    cpu: bool = False,
    allow_changed_code: bool = False,
    **cache: Unpack[CacheSettings],
) -> CachedTeacher:
    """Run a teacher once over every view of a training set, and cache its outputs at `out`, a path or URL.

    `model` is a trained network, or else a function of the number of classes or a name; then `weights` names a run
    folder or a weights file. A network is copied, so it stays on its device and in its mode. The cache records the
    SHA-256 of the network's weights and the name of its class; a later call is refused if either differs.

    `dataset` is either the training split alone, as a torch `Dataset` or a pair of arrays (images, labels); then `test`
    is the test split, in the same form. Or `dataset` provides both splits, as {"train": …, "test": …}, a function that
    returns the split "train" or "test", the name of a source, or the path of a folder with a subfolder for each class.
    `recipe` is a name, a mapping such as {"kind": "crop-flip", "padding": 4, "flip": True}, or a `Recipe`. `student` is
    needed if the `signals` depend on the student's network, as cam and attention do.

    Settings come from the `preset`, if one is given, then from these arguments, then from the keywords, which belong to
    the section `cache`, and last from `settings`, by dotted key: {"data.limit": 1000}. Later ones override earlier
    ones. `data` says where files are. `name` is the teacher's name in a cache of several teachers. `part` (I, N) is
    this call's share of the work, the I-th (from 0) of N.

    Repeating the call continues an interrupted cache, and repairs a damaged one. Raises `CacheMismatch` if the cache
    has another teacher, data set or recipe, and also if the code of a network has changed, unless `allow_changed_code`
    is set.
    """
    out = place_to_write(out)
    tree = base_tree(preset)
    chosen: dict[str, object] = {}
    data_settings, data = settings_of_data(dataset, test, data)
    if data_settings:
        chosen["data"] = data_settings
    if recipe is not None:
        chosen["views"] = views_of(recipe)
    if model is not None:
        chosen["teacher.architecture"] = name_of_model(model, "teacher")
    if student is not None:
        chosen["student.architecture"] = name_of_model(student, "student")
    elif preset is None:
        chosen["student"] = {"architecture": chosen.get("teacher.architecture"), "epochs": 1, "lr": 0.05}
    experiment = built(tree, {**chosen, **below("cache", cache), **(settings or {})})
    with undisturbed(allow_changed_code=allow_changed_code), weights_of(model, weights) as file:
        if file is None:
            raise ConfigError(
                "weights: expected a run's folder, a weights file or packaged, got none; or pass a trained network"
            )
        return caching.cache_teacher(
            experiment, file, out, data=data, name=name, part=part, command="dhkd.cache_teacher", cpu=cpu
        )
