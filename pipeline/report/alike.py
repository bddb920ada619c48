"""What runs must have in common before one analysis shows them: the test images, and the teacher if it needs one."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.cache.manifest import differences
from dhkd.data.errors import RunMismatch
from dhkd.data.render import Normalization, Renderer
from dhkd.data.runs.names import LIVE_KEY, OBJECTIVE_KEY
from dhkd.data.runs.read import Run
from dhkd.pipeline.build.data import dataset_identity, recipe_of, test_renderer_of
from dhkd.pipeline.build.networks import chosen_network, classes_in
from dhkd.pipeline.build.teacher import seen_by_teacher, teacher_normalization, trained_teacher
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.report.comparison import WITHOUT_TEACHER
from dhkd.stages.models import Network

# Fields of the preset's sections that don't change the test images, unless a part of the training images is held out.
ONLY_FOR_TRAINING = {"data": ("limit", "train"), "views": ("seed",)}
OF_A_PART = ("train",)


def test_sets_of(
    experiments: Mapping[str, Experiment],
    device: torch.device,
    data: DataOptions,
    folders: Mapping[str, Path],
) -> dict[str, Renderer]:
    """Return the renderer of each run's test images; the mappings are by the runs' names.

    Images without labels have as many classes as the network in the run's folder. Runs with the same settings share a
    renderer. Raises `RunMismatch` unless all runs have the same test images, rendered in the same way.
    """
    by_settings: dict[str, Renderer] = {}
    renderers: dict[str, Renderer] = {}
    for name, experiment in experiments.items():
        settings = _of_test(experiment)
        if settings not in by_settings:
            classes = partial(classes_in, chosen_network(experiment.student), folders[name], "student")
            by_settings[settings] = test_renderer_of(experiment, device, data, classes=classes)
        renderers[name] = by_settings[settings]
    first, *others = experiments
    expected = dataset_identity(renderers[first].images).model_dump(mode="json")
    for other in others:
        if renderers[other] is renderers[first]:
            continue
        changed = differences(expected, dataset_identity(renderers[other].images).model_dump(mode="json"))
        recipes = [recipe_of(experiments[name].views).at_test() for name in (first, other)]
        changed += [] if recipes[0] == recipes[1] else [f"views expected {recipes[0]}, got {recipes[1]}"]
        if changed:
            raise RunMismatch(
                f"runs {first} and {other}: expected the same test images, which an analysis compares, got others:"
                f" {'; '.join(changed)}; give a folder whose runs have one data set"
            )
    return renderers


def _of_test(experiment: Experiment) -> str:
    part = OF_A_PART if experiment.data.val_fraction is not None else ()
    kept = {
        section: getattr(experiment, section).model_dump_json(exclude=set(fields) - set(part))
        for section, fields in ONLY_FOR_TRAINING.items()
    }
    return str(kept)


def teacher_of(
    finished: Sequence[Run],
    experiments: Mapping[str, Experiment],
    tests: Mapping[str, Renderer],
    weights: Path,
    data: DataOptions,
) -> tuple[Network, Normalization, Renderer]:
    """Load the runs' teacher; return it, its normalisation, and the renderer of the test images as it sees them.

    All runs must have learned from the teacher at `weights`, except those whose objective needs no teacher. Raises
    `RunMismatch` if runs learned from several teachers or from another one.
    """
    learners = [run for run in finished if run.settings.get(OBJECTIVE_KEY) not in WITHOUT_TEACHER] or finished[:1]
    first = learners[0].name
    settings = experiments[first].teacher
    test = tests[first]
    trained = trained_teacher(experiments[first], test.images, weights, data)
    normalize = teacher_normalization(experiments[first], test.images, trained.mean_std)
    got = {"sha256": trained.sha256}
    for run in learners:
        own_settings = experiments[run.name].teacher
        own = teacher_normalization(experiments[run.name], tests[run.name].images, trained.mean_std)
        changed = [
            f"{what} {one} and {other}"
            for what, one, other in (
                ("architecture", settings.architecture, own_settings.architecture),
                ("size", settings.size, own_settings.size),
                ("interpolation", settings.interpolation, own_settings.interpolation),
                ("classes", settings.classes, own_settings.classes),
                ("mean", normalize.mean, own.mean),
                ("std", normalize.std, own.std),
            )
            if one != other
        ]
        if changed:
            raise RunMismatch(
                f"runs {first} and {run.name}: expected one teacher, got {'; '.join(changed)}; give a folder whose runs"
                f" have one"
            )
        sha256 = teacher_sha256(run)
        if sha256 is not None and (changed := differences({"sha256": sha256}, got)):
            raise RunMismatch(
                f"--teacher {weights}: {'; '.join(changed)}; give the teacher from which {run.name} learned"
            )
    return trained.network, normalize, seen_by_teacher(experiments[first], test, data)


def teacher_sha256(run: Run) -> str | None:
    """Return the hash of the teacher's weights that a run recorded, or None if it is unknown or a mean of several."""
    live = run.settings.get(f"{LIVE_KEY}.sha256")
    cache = run.finished_result.cache
    return live or (cache.teacher_sha256 if cache else None)
