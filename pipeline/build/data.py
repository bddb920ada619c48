"""Builds images, recipes, renderers and normalisation from settings."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dhkd.configs.schema import Experiment, Teacher, Training, Views
from dhkd.data.cache.manifest import DatasetIdentity
from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.shared_tensors import private, sharing_with
from dhkd.data.disk.user_cache import expanded, user_cache_folder
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.base import Decoding, Images
from dhkd.data.images.channels import in_channels
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.base import ENDLESS, Recipe
from dhkd.data.render import Normalization, Renderer
from dhkd.data.sources import load_source, source_of
from dhkd.data.sources.base import READING, Place
from dhkd.data.sources.class_order import classes_listed, is_file
from dhkd.data.sources.shard_urls import is_remote
from dhkd.pipeline.build.networks import MeanStd
from dhkd.pipeline.data_options import DataOptions

log = logging.getLogger("dhkd")


def images_of(
    experiment: Experiment, split: str, options: DataOptions, classes: Callable[[], int | None] | None = None
) -> Images:
    """Load the split "train" or "test" of the experiment's data.

    If the recipe does not change the size of images, all images are decoded into memory. Images without labels have
    `data.num_classes` classes or, if that isn't set, as many as `classes` returns.
    """
    data = experiment.data
    place = Place(
        root=expanded(options.root) if options.root is not None else None,
        download=options.download,
        keep_bytes=options.fetched_gb * 10**9,
        train=expanded(data.train) if data.train is not None else None,
        test=expanded(data.test) if data.test is not None else None,
        num_classes=data.num_classes,
        classes=data.classes,
        label=data.label,
        first_label=data.first_label,
        follow_links=data.follow_links,
        levels=data.levels,
        max_megapixels=data.max_megapixels,
        max_metadata_mb=data.max_metadata_mb,
        options=data.options,
        labels=data.labels,
        network_classes=data.num_classes or _asked(classes, experiment, split),
    )
    held_out = None if data.val_fraction is None else (data.val_fraction, data.val_seed or 0)
    limit = data.limit if split == "train" else data.test_limit
    images = load_source(
        data.source,
        split,
        place,
        limit=limit,
        mean=data.mean,
        std=data.std,
        held_out=held_out,
        channels=data.channels or 3,
    )
    return images.in_memory(_decoding(options)) if recipe_of(experiment.views).shape is None else images


def _asked(classes: Callable[[], int | None] | None, experiment: Experiment, split: str) -> int | None:
    """Return what `classes` returns if the images of this split have no labels, else None."""
    data = experiment.data
    labelled = source_of(data.source).labelled if data.labels is None else False
    return None if classes is None or labelled else classes()


def reading_of(experiment: Experiment, options: DataOptions, images: Images | None = None) -> dict[str, object]:
    """Return the settings that determine how classes and pixels are read, as plain values, without unset ones.

    A file that lists the classes is replaced by the list in it, because the file may change. If `images` has class
    names, they are added.
    """
    data = experiment.data
    settings = {key: value for key, value in data.model_dump(mode="json").items() if key in READING}
    if data.classes is not None and is_file(data.classes) and options.root is not None:
        settings["classes"] = classes_listed(data.classes, Path("." if is_remote(options.root) else options.root))
    return settings | ({"class_names": list(images.class_names)} if images and images.class_names else {})


def recipe_of(views: Views) -> Recipe:
    """Build the recipe that `views.kind` names, with the other keys of `views` as the recipe's parameters.

    Raises `ConfigError` for an unknown kind, and for missing or unknown parameters.
    """
    return build_recipe(views.kind, views.parameters)


def renderer_of(images: Images, recipe: Recipe, device: torch.device, options: DataOptions) -> Renderer:
    """Build a renderer of these images with the recipe."""
    return images.renderer(recipe, device, _decoding(options))


def test_renderer_of(
    experiment: Experiment,
    device: torch.device,
    options: DataOptions,
    train: Images | None = None,  # noqa: PT028 - this is no test
    *,
    classes: Callable[[], int | None] | None = None,  # noqa: PT028
    recipe: Recipe | None = None,  # noqa: PT028
) -> Renderer:
    """Load the test images and build their renderer.

    The renderer uses the test recipe that belongs to `recipe` or, if `recipe` is None, to the preset's recipe.

    If `train` is given, raises `DataError` if the test split has another number of classes, and logs a warning if the
    test images have another size than the training images. Test images without labels have as many classes as `train`
    or as `classes` returns.
    """
    images = images_of(experiment, "test", options, classes if train is None else lambda: train.num_classes)
    if train is not None:
        _require_alike(train, images)
    return renderer_of(images, (recipe or recipe_of(experiment.views)).at_test(), device, options)


def _require_alike(train: Images, test: Images) -> None:
    if train.num_classes != test.num_classes:
        raise DataError(
            f"{test.name}: expected as many classes in both splits, got {train.num_classes} for training and"
            f" {test.num_classes} for testing; both splits need the same classes"
        )
    if None not in (train.shape, test.shape) and train.shape != test.shape:
        (height, width), (test_height, test_width) = train.shape or (0, 0), test.shape or (0, 0)
        log.warning(
            "%s: the training images have %d×%d pixels, the test images %d×%d, at which a network may be far less"
            " accurate; resize one of them",
            *(test.name, width, height, test_width, test_height),
        )


def normalization_of(training: Training, images: Images, trained_with: MeanStd | None = None) -> Normalization:
    """Build a network's normalisation from the preset, or else from `trained_with`, or else from the data set.

    Raises `ConfigError` if the preset's mean or std doesn't have one value for each channel of the network's input.
    """
    preset, channels = training if isinstance(training, Teacher) else None, channels_of(training, images)
    for name in ("mean", "std"):
        values = preset and getattr(preset, name)
        if values and len(values) != channels:
            raise ConfigError(f"teacher.{name}: expected one number for each of {channels} channels, got {len(values)}")
    mean, std = (in_channels(values, channels) for values in trained_with or (images.mean, images.std))
    return Normalization((preset and preset.mean) or mean, (preset and preset.std) or std)


def channels_of(training: Training, images: Images) -> int:
    """Return the number of channels of a network's input: the preset's, or else that of the images."""
    return training.channels or images.channels


def num_views_of(experiment: Experiment, recipe: Recipe) -> int:
    """Return how many views to cache.

    Raises `ConfigError` if the recipe has fewer views, and if all views are to be cached but their number is unlimited.
    """
    views = experiment.cache.views
    if views == "all":
        if recipe.num_views is None:
            raise ConfigError(f"cache.views: {experiment.views.kind} has unlimited views; set a number")
        return recipe.num_views
    most = recipe.num_views or ENDLESS
    if not 1 <= views <= most:
        raise ConfigError(f"cache.views: expected 1 to {most} (all there are) or all, got {views}")
    return views


def dataset_identity(images: Images) -> DatasetIdentity:
    """Return the identity of the data set, as a cache records it."""
    return DatasetIdentity(
        name=images.name,
        split=images.split,
        num_samples=len(images),
        num_classes=images.num_classes,
        fingerprint=images.fingerprint(),
    )


def plain_identity(images: Images) -> dict[str, Any]:
    """Return the identity of the data set as plain values, for processes to compare."""
    return dataset_identity(images).model_dump(mode="json")


def _decoding(options: DataOptions) -> Decoding:
    keep = sharing_with(copies_of(options)) if options.is_shared else private
    return Decoding(workers=options.num_workers, allow_bad=options.allow_bad, keep=keep)


def copies_of(options: DataOptions) -> BoundedCopies:
    """Return the folder in which this machine's processes keep copies of caches and images."""
    return BoundedCopies(user_cache_folder() / "objects", options.fetched_gb * 10**9)


# Any: plain values, as YAML stores them.
def listed_classes(experiment: Experiment, data: DataOptions) -> dict[str, Any]:
    """Return the classes that a file lists, as plain values for config.yaml; nothing if no file is set."""
    return {"classes": reading_of(experiment, data)["classes"]} if is_file(experiment.data.classes) else {}
