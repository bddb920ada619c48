"""`predict`: the most probable classes of images, by a run's network or an exported file.

Images are prepared as the test images were in training: resized, cropped, in as many channels, and normalised. So the
accuracy on a split of a data set is the one that `evaluate` measures.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from dhkd.configs.load import experiment_with
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.data.images.decoding import USUAL, Reading
from dhkd.data.progress import progress
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.preparation import preparation_of
from dhkd.data.render import Renderer
from dhkd.data.sources.base import Place
from dhkd.pipeline.build.code import code_of_data, require_code_of_run
from dhkd.pipeline.build.data import images_of, renderer_of
from dhkd.pipeline.build.described import Described, experiment_of, role_of, test_recipe_of
from dhkd.pipeline.build.networks import weights_file
from dhkd.pipeline.build.teacher import ROLE
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.environment import processes_for
from dhkd.pipeline.evaluation import EVALUATION_BATCH
from dhkd.pipeline.image_files import Reader, files_named
from dhkd.pipeline.predictor import Predictor, predictor_of
from dhkd.pipeline.results import LikelyClass, Predicted, Prediction
from dhkd.stages.processes import Processes
from torch import Tensor

log = logging.getLogger("dhkd")

TOP = 3
FILES_AT_ONCE = 64

# The settings that a data set needs of an experiment, for a network of which there is only a file.
NO_RUN = {
    "description": "a data set alone",
    "views": {
        "kind": "random-resized-crop",
        "flip": False,
    },  # takes images of any size; they are prepared by another recipe
    "teacher": {"architecture": "none", "epochs": 1, "lr": 0.05},
    "student": {"architecture": "none", "epochs": 1, "lr": 0.05},
}


@dataclass(frozen=True)
class Wanted:
    """Which images are predicted: the `files` that arguments name, or a split of a data set.

    If `source` is None, the data set is the run's. A split of a data set has a name in `split`, else it is None.
    """

    files: Sequence[str | Path] = ()
    split: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` unless there is one kind of images."""
        if bool(self.files) == (self.split is not None):
            got = "both" if self.files else "neither"
            raise ConfigError(f"images: expected files, or the split of a data set (--split test), got {got}")
        if self.source is not None and self.split is None:
            raise ConfigError(f"--source {self.source}: expected --split beside it, got none; name test or train")


def predict(
    path: Path,
    wanted: Wanted,
    *,
    data: DataOptions | None = None,
    top: int = TOP,
    batch: int | None = None,
    ema: bool = False,
    precision: str | None = None,
    cpu: bool = False,
    allow_code: bool = False,
) -> Predicted:
    """Predict the `top` most probable classes of each image by the network at `path`.

    `path` is a run's folder, a weights file that dhkd wrote, or an exported file. The precision is the run's if it is
    None, and float32 for files. Images that can't be read are logged and listed in the result. `allow_code` is as in
    `open_program`.
    """
    data = data or DataOptions()
    if top < 1:
        raise ConfigError(f"top: expected at least 1, got {top}")
    with processes_for(precision or _precision_of(path), cpu=cpu) as processes:
        if processes.world_size > 1:
            raise ConfigError(f"predict: expected one process, got {processes.world_size}; leave the launcher out")
        predictor = predictor_of(path, processes, ema=ema, allow_code=allow_code)
        unreadable: dict[str, str] = {}
        if wanted.split is None:
            rows = _of_files(predictor, wanted.files, data, processes, batch or FILES_AT_ONCE, unreadable)
        else:
            rows = _of_split(predictor, wanted, data, processes, batch or EVALUATION_BATCH)
        with torch.inference_mode():
            predictions = [one for row in rows for one in _predictions(predictor.facts, row, top)]
    labelled = [one for one in predictions if one.label is not None]
    hits = sum(one.classes[0].number == one.label for one in labelled)
    return Predicted(
        weights=str(predictor.origin),
        architecture=predictor.facts.architecture,
        precision=processes.precision,
        predictions=predictions,
        unreadable=unreadable,
        top1=100 * hits / len(labelled) if labelled else None,
    )


@dataclass(frozen=True)
class _Rows:
    """A batch: its images' names, their labels if there are any, and the network's logits (B, K)."""

    names: Sequence[str]
    labels: Sequence[int] | None
    logits_BK: Tensor


def _precision_of(path: Path) -> str:
    experiment = experiment_of(path)
    if experiment is None:
        return "float32"
    role = role_of(weights_file(path, "student"))
    return (experiment.teacher if role == ROLE else experiment.student).precision


def _of_files(
    predictor: Predictor,
    files: Sequence[str | Path],
    data: DataOptions,
    processes: Processes,
    batch: int,
    unreadable: dict[str, str],
) -> Iterator[_Rows]:
    """Yield the batches of the images that can be read; the others are added to `unreadable`."""
    recipe, channels = _recipe(predictor, data)
    paths, reasons = files_named(files)
    _tell(unreadable, reasons)
    reader = Reader(recipe, channels, _reading(predictor.experiment))
    with progress("predicting", len(paths), visible=len(paths) > batch) as advance:
        for names, pixels_BCHW, reasons in reader.batches(paths, batch, data.num_workers):
            _tell(unreadable, reasons)
            if names:
                logits_BK = predictor.logits_of(pixels_BCHW.to(processes.device))
                yield _Rows([str(name) for name in names], None, logits_BK)
            advance(len(names) + len(reasons))


def _tell(unreadable: dict[str, str], reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        log.error("%s: expected an image, got: %s", name, reason)
    unreadable |= reasons


def _reading(experiment: Experiment | None) -> Reading:
    if experiment is None:
        return USUAL
    data = experiment.data
    return Place(levels=data.levels, max_megapixels=data.max_megapixels, max_metadata_mb=data.max_metadata_mb).reading


def _recipe(predictor: Predictor, data: DataOptions) -> tuple[Recipe, int]:
    """Return the recipe that prepares images of any size, and the number of channels of their pixels."""
    facts, experiment = predictor.facts, predictor.experiment
    if facts.preparation is not None:
        return facts.preparation.recipe, facts.preparation.channels
    if experiment is None:
        raise WeightsError(
            f"{predictor.origin}: expected to read how images are prepared, found nothing, because a version before"
            f" that wrote it, or a recipe of the user's own prepares them; name the run's folder"
        )
    recipe = test_recipe_of(experiment, predictor.role)
    if recipe.shape is not None:
        return recipe, experiment.data.channels or 3
    images = images_of(experiment, "test", data, lambda: facts.num_classes)  # known only from the data set's files
    preparation = preparation_of(recipe, images.shape, images.channels)
    if preparation is None:
        raise ConfigError(
            f"{predictor.origin}: expected a recipe whose test images have a size, got {experiment.views.kind}; set its"
            f" shape"
        )
    return preparation.recipe, images.channels


def _of_split(
    predictor: Predictor, wanted: Wanted, data: DataOptions, processes: Processes, batch: int
) -> Iterator[_Rows]:
    assert wanted.split is not None
    renderer = _renderer(predictor, wanted.split, wanted.source, data, processes)
    images = renderer.images
    if images.labels_N is not None and images.num_classes != predictor.facts.num_classes:
        raise ConfigError(
            f"{predictor.origin}: expected a network of {images.num_classes} classes, as {images.name} has, got one of"
            f" {predictor.facts.num_classes}; name another --source"
        )
    batches = torch.split(torch.arange(len(images)), batch)
    with progress("predicting", len(images)) as advance:
        rendered = renderer.render((torch.zeros_like(index_B), index_B) for index_B in batches)
        for index_B, pixels_BCHW in zip(batches, rendered, strict=True):
            labels = None if images.labels_N is None else images.labels_N[index_B].tolist()
            names = [f"{images.name} {images.split} {index}" for index in index_B.tolist()]
            yield _Rows(names, labels, predictor.logits_of(pixels_BCHW))
            advance(len(index_B))


def _renderer(
    predictor: Predictor, split: str, source: str | None, data: DataOptions, processes: Processes
) -> Renderer:
    """Build the renderer that shows the images of a split as the network's test images are shown."""
    facts, experiment = predictor.facts, predictor.experiment
    if source is None and experiment is None:
        raise ConfigError(
            f"{predictor.origin}: expected --source beside --split, since a file doesn't name a data set, got none"
        )
    if source is None:
        assert experiment is not None
        require_code_of_run(predictor.origin.parent, code_of_data(experiment))
        recipe = test_recipe_of(experiment, predictor.role)
    else:
        recipe, channels = _recipe(predictor, data)
        settings = {"data": {"source": source, "channels": channels}, "views.size": (recipe.shape or (1,))[0]}
        experiment = experiment_with(NO_RUN, settings, f"--source {source}")
    images = images_of(experiment, split, data, lambda: facts.num_classes)
    return renderer_of(images, recipe, processes.device, data)


def _predictions(facts: Described, rows: _Rows, top: int) -> Iterator[Prediction]:
    probabilities_BK = rows.logits_BK.float().softmax(dim=1)
    if probabilities_BK.shape[1] != facts.num_classes or not bool(torch.isfinite(probabilities_BK).all()):
        raise WeightsError(
            f"network {facts.architecture}: expected finite logits of {facts.num_classes} classes, got others; the file"
            f" is damaged or of a failed training"
        )
    best = probabilities_BK.topk(min(top, facts.num_classes), dim=1)
    named = len(facts.class_names) == facts.num_classes
    for position, name in enumerate(rows.names):
        classes = [
            LikelyClass(number=number, name=facts.class_names[number] if named else None, probability=probability)
            for number, probability in zip(best.indices[position].tolist(), best.values[position].tolist(), strict=True)
        ]
        yield Prediction(image=name, label=None if rows.labels is None else rows.labels[position], classes=classes)
