"""Builds the teacher's network, the renderers of the images that it sees, and its record in a cache."""

from pathlib import Path
from typing import Any

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.cache.manifest import NOTHING
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import Images
from dhkd.data.images.resizing import Interpolation, Resizing
from dhkd.data.recipes.base import Recipe
from dhkd.data.render import Normalization, Renderer
from dhkd.pipeline.build.data import channels_of, normalization_of, recipe_of, renderer_of, test_renderer_of
from dhkd.pipeline.build.networks import (
    MeanStd,
    Trained,
    chosen_network,
    classes_in,
    fitted,
    num_outputs,
    trained_network,
    weights_at,
)
from dhkd.pipeline.build.teacher_classes import names_of_outputs, outputs_of_classes, require_outputs
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models.of_classes import OfClasses
from dhkd.stages.models.signals import Shapes

ROLE = "teacher"
USUAL: Interpolation = "bilinear"


def trained_teacher(experiment: Experiment, images: Images, path: Path, data: DataOptions) -> Trained:
    """Build the preset's teacher with the weights at `path`, as `trained_network` takes it.

    If the preset maps the teacher's outputs to the classes of `images`, the network has only these outputs.
    """
    settings = experiment.teacher
    if settings.classes is None:
        return trained_network(chosen_network(settings), images.num_classes, path, ROLE, channels_of(settings, images))
    channels = channels_of(settings, images)
    if not Shapes(chosen_network(settings), images.num_classes, _shape(experiment, images), channels).gives_logits:
        raise ConfigError(
            f"teacher.classes: expected a teacher with a classifier, {settings.architecture} gives features alone;"
            f" leave it out"
        )
    weights = weights_at(chosen_network(settings), path, ROLE)
    outputs = outputs_of_classes(experiment, images, data, weights.class_names)
    assert outputs is not None, "weights were given"
    found = num_outputs(chosen_network(settings), images.num_classes, weights, channels)
    require_outputs(outputs, found, names_of_outputs(experiment, data, weights.class_names), weights.origin)
    whole = fitted(chosen_network(settings), found, weights, channels)
    network = OfClasses(whole.network, outputs).eval()
    return Trained(network, whole.origin, whole.mean_std, outputs, whole.network)


def _shape(experiment: Experiment, images: Images) -> tuple[int, int]:
    """Return the height and width of the images that the teacher sees."""
    size = experiment.teacher.size
    shape = (size, size) if size is not None else recipe_of(experiment.views).shape or images.shape
    assert shape is not None, "images_of decodes all images where the recipe keeps their size"
    return shape


def teachers_classes(experiment: Experiment, path: Path) -> int | None:
    """Return the teacher's number of classes, for images without labels; None if it is unknown."""
    settings = experiment.teacher
    if isinstance(settings.classes, tuple) and isinstance(settings.classes[0], int):
        return len(settings.classes)
    return classes_in(chosen_network(settings), path, ROLE)


def teacher_recipe_of(experiment: Experiment) -> Recipe | None:
    """Return the recipe that shows the teacher a view at the teacher's own size.

    It is None if the teacher has no size of its own, and if the recipe can't resize images. In the latter case,
    `teacher_normalization` resizes the student's pixels.
    """
    size = experiment.teacher.size
    recipe = recipe_of(experiment.views)
    return None if size is None else recipe.at_size(size, experiment.teacher.interpolation or USUAL)


def teacher_normalization(experiment: Experiment, images: Images, trained_with: MeanStd | None = None) -> Normalization:
    """Build the teacher's normalisation; it first resizes pixels to the teacher's size if the recipe can't do so."""
    settings, plain = experiment.teacher, normalization_of(experiment.teacher, images, trained_with)
    if settings.size is None or teacher_recipe_of(experiment) is not None:
        return plain
    return Normalization(plain.mean, plain.std, Resizing(settings.size, settings.interpolation or USUAL))


def teacher_renderer(experiment: Experiment, images: Images, device: torch.device, options: DataOptions) -> Renderer:
    """Build the renderer of the teacher's images, which `teacher_normalization` may resize afterwards."""
    return renderer_of(images, teacher_recipe_of(experiment) or recipe_of(experiment.views), device, options)


def teacher_test_renderer(
    experiment: Experiment, device: torch.device, options: DataOptions, train: Images | None = None
) -> Renderer:
    """Load the test images and build their renderer for the teacher; `train` is as in `test_renderer_of`."""
    return test_renderer_of(experiment, device, options, train, recipe=teacher_recipe_of(experiment))


def seen_by_teacher(experiment: Experiment, test: Renderer, options: DataOptions) -> Renderer:
    """Return the renderer that shows the images of `test` as the teacher sees them."""
    recipe = teacher_recipe_of(experiment)
    return test if recipe is None else renderer_of(test.images, recipe.at_test(), test.device, options)


# Any: JSON, as a manifest holds it.
def teacher_record(experiment: Experiment, classes: tuple[int, ...] | None) -> dict[str, Any]:
    """Return the teacher's image size and the outputs that are read, as a cache's identity records them; JSON.

    `classes` holds the number of the teacher's output for each class; it is None if all outputs are read in order.
    """
    settings = experiment.teacher
    size = {} if settings.size is None else {"size": settings.size, "interpolation": settings.interpolation or USUAL}
    return size if classes is None else {**size, "classes": list(classes)}


# Any: JSON, as a manifest holds it.
def expected_record(
    experiment: Experiment, images: Images, trained: Trained | None, data: DataOptions
) -> dict[str, Any]:
    """Return the record that a cache's identity must contain for this preset.

    It is that of `teacher_record`, with `NOTHING` for entries that must be absent. If only the teacher's weights name
    its outputs and `trained` is None, the entry `classes` is left out, so that any classes are accepted.
    """
    if trained is not None:
        classes = trained.classes
    elif experiment.teacher.classes is not None:
        classes = outputs_of_classes(experiment, images, data, None)
    else:
        classes = None
    record = dict.fromkeys(("size", "interpolation", "classes"), NOTHING) | teacher_record(experiment, classes)
    if experiment.teacher.classes is not None and classes is None:
        del record["classes"]
    return record
