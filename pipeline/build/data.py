"""From settings to images, recipes, renderers and normalisation."""

import dataclasses

import torch
from dhkd.configs.schema import Experiment, Teacher, Training, Views
from dhkd.data.cache.manifest import (
    DatasetIdentity,
)
from dhkd.data.errors import ConfigError
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.images.photographs import PhotoRenderer, PhotoSet, in_memory
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.random_resized_crop import CenterCrop, RandomResizedCrop
from dhkd.data.render import DataSet, Normalization, Renderer, ResidentRenderer, UnaugmentedRenderer
from dhkd.data.sources import Selection, load_source
from dhkd.pipeline.build.networks import MeanStd
from dhkd.pipeline.data_options import DataOptions

Images = ImageSet | PhotoSet


Recipe = CropFlip | RandomResizedCrop


def images_of(experiment: Experiment, split: str, options: DataOptions) -> Images:
    """The experiment's data set, `split` being "train" or "test": in memory for crop-flip, as files for photographs."""
    fields = {field.name: getattr(experiment.data, field.name) for field in dataclasses.fields(Selection)}
    images = load_source(
        experiment.data.source,
        split,
        root=options.root,
        download=options.download,
        selection=Selection(**fields),
        keep_bytes=options.fetched_gb * 10**9,
    )
    if experiment.views.kind == CropFlip.kind and isinstance(images, PhotoSet):
        return in_memory(images, workers=options.num_workers, allow_bad=options.allow_bad)
    if experiment.views.kind == RandomResizedCrop.kind and isinstance(images, ImageSet):
        raise ConfigError(
            f"views.kind: {RandomResizedCrop.kind} is for photographs (image-folder, webdataset),"
            f" {experiment.data.source} takes {CropFlip.kind}"
        )
    return images


def recipe_of(views: Views) -> Recipe:
    """The recipe of views."""
    if views.kind == CropFlip.kind:
        assert views.padding is not None
        return CropFlip(padding=views.padding, flip=views.flip, seed=views.seed)
    assert views.size is not None
    return RandomResizedCrop(size=views.size, scale=views.scale, ratio=views.ratio, flip=views.flip, seed=views.seed)


def renderer_of(images: Images, recipe: Recipe, device: torch.device, options: DataOptions) -> Renderer:
    """Training images, augmented."""
    if isinstance(images, ImageSet):
        assert isinstance(recipe, CropFlip)
        return ResidentRenderer(images, recipe, device)
    assert isinstance(recipe, RandomResizedCrop)
    return PhotoRenderer(images, recipe, device, workers=options.num_workers, allow_bad=options.allow_bad)


def test_renderer_of(experiment: Experiment, device: torch.device, options: DataOptions) -> Renderer:
    """Test images: as they are, photographs resized and their centre cropped."""
    images, views = images_of(experiment, "test", options), experiment.views
    if isinstance(images, ImageSet):
        return UnaugmentedRenderer(images, device)
    assert views.size is not None
    # 256 for 224, as usual, and in proportion for other sizes.
    recipe = CenterCrop(views.size, views.test_resize or round(views.size * 256 / 224))
    return PhotoRenderer(images, recipe, device, workers=options.num_workers, allow_bad=options.allow_bad)


def normalization_of(training: Training, images: DataSet, trained_with: MeanStd | None = None) -> Normalization:
    """How a network sees pixels: as its preset says, else as it was trained, else as the data set says."""
    said = training if isinstance(training, Teacher) else None
    mean, std = trained_with or (images.mean, images.std)
    return Normalization((said and said.mean) or mean, (said and said.std) or std)


def num_views_of(experiment: Experiment, recipe: Recipe) -> int:
    """How many views to cache. Raises `ConfigError` when there are not so many."""
    views = experiment.cache.views
    if views == "all":
        if isinstance(recipe, CropFlip):
            return recipe.num_views
        raise ConfigError(f"cache.views: {recipe.kind} has no end of views; set a number")
    if not 1 <= views <= recipe.num_views:
        raise ConfigError(f"cache.views: expected 1 to {recipe.num_views} (all there are) or all, got {views}")
    return views


def dataset_identity(images: DataSet) -> DatasetIdentity:
    """What a cache records of its data set, and compares."""
    return DatasetIdentity(
        name=images.name,
        split=images.split,
        num_samples=len(images),
        num_classes=images.num_classes,
        fingerprint=images.fingerprint(),
    )
