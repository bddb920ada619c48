"""The one place where configuration becomes objects: frozen models in, flat arguments out."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from dhkd.configs.schema import Codec as CodecSettings
from dhkd.configs.schema import Experiment, Teacher, Training, Views
from dhkd.configs.schema import Student as StudentSettings
from dhkd.data.cache.codecs import Codec, Float, Int8, TopK, row_bytes
from dhkd.data.cache.contract import Plan
from dhkd.data.cache.manifest import DatasetIdentity, Identity, SignalIdentity, require_identity
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.copies import BoundedCopies
from dhkd.data.errors import CacheMismatch, ConfigError, WeightsError
from dhkd.data.files import user_cache_folder
from dhkd.data.image_set import ImageSet, Triple
from dhkd.data.photographs import PhotoRenderer, PhotoSet, in_memory
from dhkd.data.render import DataSet, Normalization, Renderer, ResidentRenderer, UnaugmentedRenderer
from dhkd.data.resized_crop import CenterCrop, RandomResizedCrop
from dhkd.data.sources import Selection, load_source
from dhkd.data.stream import Names, NoSignals, ResidentSignals, Signals, StreamedSignals, WindowedSignals
from dhkd.data.views import CropFlip
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.foreign import packaged_weights
from dhkd.stages.models.student import AuxiliaryHead, Student, auxiliary_head
from dhkd.stages.models.weights import fit_weights, read_metadata, read_weights, weights_sha256
from dhkd.stages.processes import Precision
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Objective
from torch import nn

Images = ImageSet | PhotoSet
MeanStd = tuple[Triple, Triple]
Recipe = CropFlip | RandomResizedCrop

MEAN_OF_TEACHERS = "mean"  # instead of a teacher's name


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


def objective_of(experiment: Experiment) -> Objective:
    """The experiment's objective, with the options that the preset gives it."""
    return build_objective(experiment.objective, experiment.objectives.get(experiment.objective, {}))


def student_of(training: Training, num_classes: int, auxiliary: AuxiliaryHead | None, seed: int) -> Student:
    """A freshly initialised student, a function of the seed, channels last in memory."""
    torch.manual_seed(seed)
    backbone = build_network(training.architecture, num_classes)
    head = auxiliary_head(auxiliary, backbone.embedding_dim, num_classes) if auxiliary else None
    return Student(backbone, head).to(memory_format=torch.channels_last)


def optimizer_of(training: Training, student: nn.Module) -> torch.optim.Optimizer:
    """SGD over all the student's parameters."""
    return torch.optim.SGD(
        student.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )


def learning_rate_of(training: Training) -> LearningRate:
    """The learning rate as a function of epoch and step."""
    return LearningRate(
        base=training.lr,
        kind=training.lr_schedule,
        epochs=training.epochs,
        milestones=training.milestones,
        gamma=training.gamma,
        warmup_epochs=training.warmup_epochs,
    )


PACKAGED = "packaged"  # instead of a path: the weights that torchvision or timm offers, perhaps with a :TAG


@dataclass(frozen=True)
class Trained:
    """A network with weights, on the CPU, in eval mode; where they are from; the mean and std it was trained with."""

    network: Network
    origin: str
    mean_std: MeanStd | None


def weights_file(path: Path, role: str) -> Path:
    """The file of weights that `path` means: itself, or the network that a run's folder holds."""
    if not path.is_dir():
        return path
    found = [path / f"{name}.safetensors" for name in (role, "teacher", "student")]
    for file in found:
        if file.is_file():
            return file
    raise WeightsError(f"{path}: expected a finished run, found no {found[0].name}; finish it with --resume")


def trained_network(architecture: str, num_classes: int, path: Path, role: str) -> Trained:
    """The network `architecture` with the weights at `path`: a run's folder, a file, or packaged[:TAG]."""
    network = build_network(architecture, num_classes)
    word, _, tag = str(path).partition(":")
    if word == PACKAGED and not path.exists():
        state, colours = packaged_weights(architecture, tag or None)
        mean_std = colours and (_triple(colours[0]), _triple(colours[1]))
        origin = f"{path} of {architecture}"
    else:
        file = weights_file(path, role)
        state, mean_std, origin = read_weights(file), _trained_with(file), str(file)
    fit_weights(network, state, origin)
    return Trained(network.eval(), origin, mean_std)


def _trained_with(file: Path) -> MeanStd | None:
    """What `save_weights` wrote of the normalisation; other files don't tell."""
    facts = read_metadata(file) if file.suffix == ".safetensors" else {}
    if "mean" not in facts or "std" not in facts:
        return None
    return _triple(json.loads(facts["mean"])), _triple(json.loads(facts["std"]))


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue


def dataset_identity(images: DataSet) -> DatasetIdentity:
    """What a cache records of its data set, and compares."""
    return DatasetIdentity(
        name=images.name,
        split=images.split,
        num_samples=len(images),
        num_classes=images.num_classes,
        fingerprint=images.fingerprint(),
    )


def codec_of(settings: CodecSettings, num_classes: int) -> Codec:
    """How the preset wants logits of `num_classes` classes stored."""
    if settings.kind == "top-k":
        assert settings.k is not None
        assert settings.temperature is not None
        if settings.k >= num_classes:
            raise ConfigError(f"cache.codec.k: expected fewer than all {num_classes} classes, got {settings.k}")
        return TopK(k=settings.k, temperature=settings.temperature)
    return Int8() if settings.kind == "int8" else Float(kind=settings.kind)


def signal_name(teacher: str | None, signal: str) -> str:
    """What a cache calls a signal of a teacher that has a name, or of the one that needs none."""
    return f"{teacher}.{signal}" if teacher else signal


def cache_identity(
    experiment: Experiment,
    images: DataSet,
    recipe: Recipe,
    network: nn.Module,
    normalize: Normalization,
    precision: Precision,
    name: str | None,
) -> Identity:
    """The identity of the cache that stage one is to write; `name` is the teacher's, where a cache holds several."""
    signal = SignalIdentity(
        teacher={
            "architecture": experiment.teacher.architecture,
            "sha256": weights_sha256(network),
            "mean": list(normalize.mean),
            "std": list(normalize.std),
        },
        precision=precision,
        codec=codec_of(experiment.cache.codec, images.num_classes),
        row=(images.num_classes,),
    )
    return Identity(
        dataset=dataset_identity(images), recipe=recipe.identity, signals={signal_name(name, "logits"): signal}
    )


def plan_of(experiment: Experiment, images: DataSet, recipe: Recipe) -> Plan:
    """How the cache is cut into blocks."""
    return _plan(experiment, images, num_views_of(experiment, recipe))


def block_rows_of(experiment: Experiment, images: DataSet) -> int:
    """How many rows a block of the preset's cache has, for training without one in the same order."""
    return _plan(experiment, images, 1).block_rows


def _plan(experiment: Experiment, images: DataSet, num_views: int) -> Plan:
    parts = codec_of(experiment.cache.codec, images.num_classes).parts((images.num_classes,))
    block_bytes = int(experiment.cache.block_mb * 2**20)
    return Plan.balanced(num_views, len(images), row_bytes(parts), block_bytes)


def reader_of(location: str, options: DataOptions) -> LogitReader:
    """The complete cache at a path or URL."""
    return open_cache(location, BoundedCopies(user_cache_folder() / "objects", options.fetched_gb * 10**9))


def require_cache(
    experiment: Experiment,
    reader: LogitReader,
    images: DataSet,
    recipe: Recipe,
    names: Iterable[str],
    teacher: nn.Module | None,
) -> None:
    """Raise `CacheMismatch` unless the cache is of this data set and recipe and the signals `names` of this teacher.

    The teacher is the preset's architecture, with the hash and normalisation that it names, or that of `teacher`.
    Precision and codec are the cache's own affair: any will do.
    """
    settings = experiment.teacher
    expected: dict[str, Any] = {"architecture": settings.architecture}
    for key in ("mean", "std"):
        if getattr(settings, key) is not None:
            expected[key] = list(getattr(settings, key))
    if teacher is not None:
        expected["sha256"] = weights_sha256(teacher)
    elif settings.sha256 is not None:
        expected["sha256"] = settings.sha256
    identity = {
        "dataset": dataset_identity(images).model_dump(mode="json"),
        "recipe": recipe.identity,
        "signals": {name: {"teacher": expected} for name in names},
    }
    remedy = "use the preset and settings that it was made with, or make another with 'dhkd cache-teacher'"
    require_identity(identity, reader.manifest, reader.location, remedy)


def cached_names(needs: Mapping[str, float | None], reader: LogitReader, teacher: str | None, otherwise: str) -> Names:
    """For each signal of an objective's `needs`, the cached ones to take: one teacher's, or of all teachers ("mean").

    Raises `CacheMismatch` where the cache lacks one or can't serve it as it is stored; `otherwise` is the remedy that
    needs no other cache.
    """
    signals = reader.manifest.signals
    names: dict[str, list[str]] = {}
    for need, temperature in needs.items():
        if teacher == MEAN_OF_TEACHERS:
            names[need] = [name for name in signals if name.rpartition(".")[2] == need]
        else:
            names[need] = [signal_name(teacher, need)] if signal_name(teacher, need) in signals else []
        if not names[need]:
            raise CacheMismatch(
                f"cache at {reader.location}: the objective needs the signal {signal_name(teacher, need)}, it holds"
                f" {', '.join(signals)}; cache it with 'dhkd cache-teacher', or choose with --set student.teacher=NAME"
            )
        for name in names[need]:
            refusal = signals[name].codec.refusal(temperature)
            if refusal:
                raise CacheMismatch(
                    f"cache at {reader.location}: signal {name} can't serve the objective: {refusal}; cache the teacher"
                    f" with --set cache.codec=float16 or int8, or {otherwise}"
                )
    return names


def signals_of(
    names: Names, reader: LogitReader, student: StudentSettings, device: torch.device, copies: int
) -> Signals:
    """How signals come from the cache: block by block where the student's order has windows, view by view for `cycle`,
    else all resident.

    Raises `ConfigError` when a resident cache would not fit into memory, `copies` processes on this machine holding one
    each.
    """
    if not names:
        return NoSignals(reader.plan.num_views)
    if student.window is not None and student.view_schedule != "independent":
        return WindowedSignals(reader, names, device, student.window)
    if student.view_schedule == "cycle":
        return StreamedSignals(reader, names, device)
    needed = copies * reader.stored_bytes([name for signals in names.values() for name in signals])
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise ConfigError(
            f"student.view_schedule {student.view_schedule} keeps the whole cache in memory: expected at most"
            f" {free / 1e9:.1f} GB free, got {needed / 1e9:.1f} GB; use --set student.view_schedule=cycle, or for"
            f" 'dhkd train-student' block with student.window"
        )
    return ResidentSignals(reader, names, device)
