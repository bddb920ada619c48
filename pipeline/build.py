"""The one place where configuration becomes objects: frozen models in, flat arguments out."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from dhkd.configs.schema import Codec as CodecSettings
from dhkd.configs.schema import Experiment, Teacher, Training, Views
from dhkd.configs.schema import Student as StudentSettings
from dhkd.data.cache.codecs import Codec, Float, Int8, TopK, row_bytes
from dhkd.data.cache.contract import Plan
from dhkd.data.cache.manifest import (
    DatasetIdentity,
    Identity,
    Manifest,
    SignalIdentity,
    require_identity,
    signal_name,
    teachers_own,
)
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
from dhkd.stages.models.signals import Shapes, parse
from dhkd.stages.models.student import Student, auxiliary_head
from dhkd.stages.models.weights import fit_weights, read_metadata, read_weights, weights_sha256
from dhkd.stages.processes import Precision
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives import build_objective, combined_objective
from dhkd.stages.train.objectives.contract import Objective, Setting
from torch import nn

Images = ImageSet | PhotoSet
MeanStd = tuple[Triple, Triple]
Recipe = CropFlip | RandomResizedCrop

LOGITS = "logits"
LARGEST_BLOCK_BYTES = 2**30  # a process computes one and writes another, as float32
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
    """The experiment's objective, or several, with the options that the preset gives each."""
    said = experiment.alignment
    alignment = Alignment(said.kept, said.against, said.every) if said else None
    return combined_objective(experiment.objective, experiment.objectives, alignment)


def setting_of(
    experiment: Experiment, training: Training, images: Images, objective: Objective, teacher: Network | None = None
) -> Setting:
    """What `objective` is to work with in training the network of `training`; `teacher` has the teacher's weights."""
    if isinstance(images, ImageSet):
        _, _, height, width = images.images_NCHW.shape
    else:
        assert experiment.views.size is not None
        height = width = experiment.views.size
    shapes_of = partial(Shapes, num_classes=images.num_classes, image=(height, width))
    student, of_teacher = shapes_of(training.architecture), shapes_of(experiment.teacher.architecture)
    setting = Setting(student, of_teacher, images.labels_N, experiment.seed, teacher)
    return replace(setting, student=student.of(objective.architecture(setting)))


def student_of(objective: Objective, setting: Setting) -> Student:
    """A freshly initialised student with what its objective puts beside it, a function of the experiment's seed.

    Channels last in memory.
    """
    torch.manual_seed(setting.seed)
    backbone = build_network(setting.student.architecture, setting.student.num_classes)
    objective.start(backbone, setting)
    kind = objective.auxiliary
    head = auxiliary_head(kind, backbone.embedding_dim, setting.student.num_classes) if kind else None
    student = Student(backbone, head, objective.reads(setting), objective.adapter(setting))
    return student.to(memory_format=torch.channels_last)


def optimizer_of(training: Training, student: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
    """SGD over all the student's parameters; `fused` it can leave an update out without asking the host."""
    return torch.optim.SGD(
        student.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
        fused=fused,
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


def architecture_of(path: Path, role: str, architecture: str) -> str:
    """The network that weights are of: the preset's, or one that was made of it, as the file says."""
    if str(path).partition(":")[0] == PACKAGED and not path.exists():
        return architecture
    file = weights_file(path, role)
    said = read_metadata(file).get("architecture", "") if file.suffix == ".safetensors" and file.is_file() else ""
    return said if said.startswith(f"simkd:{architecture}+") else architecture


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


# Words for what an objective needs, where its needs depend on its options and both networks.
NEEDED_BY = {"cam": "cat-kd", "attention": "at"}


def asked_signals(experiment: Experiment, setting: Setting) -> list[str]:
    """The teacher's signals that the preset wants cached, by their own names. Raises `ConfigError` for others."""
    names: list[str] = []
    for word in experiment.cache.signals:
        if word in NEEDED_BY:
            objective = NEEDED_BY[word]
            names += build_objective(objective, experiment.objectives.get(objective, {})).needs(setting)
        elif parse(word).batch:
            raise ConfigError(f"signal {word!r}: it depends on the other rows of a batch, and can't be cached")
        else:
            names.append(word)
    return list(dict.fromkeys(names))


def codec_of_signal(settings: CodecSettings, own: str, num_classes: int) -> Codec:
    """How the preset wants a signal stored: logits with its codec, others as floats, float16 unless it says float32."""
    if own == LOGITS:
        return codec_of(settings, num_classes)
    return Float("float32" if settings.kind == "float32" else "float16")


def cache_identity(
    experiment: Experiment,
    images: DataSet,
    recipe: Recipe,
    setting: Setting,
    network: nn.Module,
    normalize: Normalization,
    precision: Precision,
    name: str | None,
) -> Identity:
    """The identity of the cache that stage one is to write; `name` is the teacher's, where a cache holds several."""
    teacher = {
        "architecture": experiment.teacher.architecture,
        "sha256": weights_sha256(network),
        "mean": list(normalize.mean),
        "std": list(normalize.std),
    }
    signals = {
        signal_name(name, own): SignalIdentity(
            teacher=teacher,
            precision=precision,
            codec=codec_of_signal(experiment.cache.codec, own, images.num_classes),
            row=setting.teacher.row(own),
        )
        for own in asked_signals(experiment, setting)
    }
    return Identity(dataset=dataset_identity(images), recipe=recipe.identity, signals=signals)


def plan_of(experiment: Experiment, images: DataSet, recipe: Recipe, setting: Setting) -> Plan:
    """How the cache is cut into blocks."""
    return _plan(experiment, images, setting, num_views_of(experiment, recipe))


def block_rows_of(experiment: Experiment, images: DataSet, setting: Setting) -> int:
    """How many rows a block of the preset's cache has, for training without one in the same order."""
    return _plan(experiment, images, setting, 1).block_rows


def largest_row(experiment: Experiment, setting: Setting) -> int:
    """Bytes of a row of the largest signal that the preset wants cached: what a block is measured by."""
    num_classes, sizes = setting.teacher.num_classes, []
    for own in asked_signals(experiment, setting):
        codec = codec_of_signal(experiment.cache.codec, own, num_classes)
        sizes.append(row_bytes(codec.parts(setting.teacher.row(own))))
    return max(sizes)


def _plan(experiment: Experiment, images: DataSet, setting: Setting, num_views: int) -> Plan:
    block_bytes = int(experiment.cache.block_mb * 2**20)
    return Plan.balanced(num_views, len(images), largest_row(experiment, setting), block_bytes)


def require_small_blocks(manifest: Manifest, signals: Sequence[str], location: str) -> None:
    """Raise `ConfigError` where blocks that were cut for small signals would hold too much of these."""
    row = sum(row_bytes(manifest.signals[name].parts) for name in signals)
    if row * manifest.block_rows > LARGEST_BLOCK_BYTES:
        raise ConfigError(
            f"cache at {location}: its blocks of {manifest.block_rows:,} rows would hold"
            f" {row * manifest.block_rows / 1e9:.1f} GB of {', '.join(signals)}, expected at most"
            f" {LARGEST_BLOCK_BYTES / 1e9:.1f}; write all signals to another --out, where blocks are cut for them, or"
            f" run the teacher live"
        )


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
    expected: dict[str, Any] = {}
    if experiment.student.teacher != MEAN_OF_TEACHERS:  # which may be of several architectures
        expected["architecture"] = settings.architecture
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


def digest_for(reader: LogitReader, teacher: str | None) -> str:
    """The name of what students of a teacher (None, its name there, or "mean") learn from: its logits on these images.

    It stays what it is when other signals, teachers or views are added to the cache.
    """
    signals = reader.manifest.signals
    own = [name for name in signals if name == signal_name(teacher, LOGITS)]
    logits = [name for name in signals if teachers_own(name) == LOGITS] if teacher == MEAN_OF_TEACHERS else own
    return reader.manifest.digest_of(logits or signals)


def cached_names(
    needs: Mapping[str, float | None], reader: LogitReader, teacher: str | None, otherwise: str
) -> tuple[Names, list[str]]:
    """For each signal of an objective's `needs`, the cached ones to take; and the needs that the cache lacks.

    `teacher` is one's name there, None the one without, "mean" all of them.

    Raises `CacheMismatch` where one can't serve as it is stored, `otherwise` being the remedy that needs no other
    cache, and `ConfigError` for the mean of what has none.
    """
    signals = reader.manifest.signals
    names: dict[str, list[str]] = {}
    lacking: list[str] = []
    for need, temperature in needs.items():
        if teacher == MEAN_OF_TEACHERS and need != LOGITS:
            raise ConfigError(
                f"student.teacher {MEAN_OF_TEACHERS}: several teachers have a mean of their logits, not of {need};"
                f" choose one with --set student.teacher=NAME"
            )
        if teacher == MEAN_OF_TEACHERS:
            found = [name for name in signals if teachers_own(name) == need]
        else:
            found = [name for name in signals if name == signal_name(teacher, need)]
        if not found:
            lacking.append(need)
            continue
        names[need] = found
        for name in found:
            refusal = signals[name].codec.refusal(temperature)
            if refusal:
                raise CacheMismatch(
                    f"cache at {reader.location}: signal {name} can't serve the objective: {refusal}; cache the teacher"
                    f" with --set cache.codec=float16 or int8, or {otherwise}"
                )
    return names, lacking


def require_live(
    experiment: Experiment, setting: Setting, lacking: Sequence[str], reader: LogitReader | None, recipe: Recipe
) -> None:
    """Raise an error unless the experiment says that the teacher runs in every step, for the signals `lacking`.

    It names the two ways to get them, and what each costs: `CacheMismatch`, or `ConfigError` where there is no cache.
    """
    if not lacking or experiment.teacher.live:
        return
    epochs, num_samples = experiment.student.epochs, len(setting.labels_N)
    views = reader.plan.num_views if reader else num_views_of(experiment, recipe)
    live = (
        f"run the teacher in every step with --set teacher.live=true and --teacher FILE ({num_samples * epochs:,}"
        f" forwards for each student)"
    )
    uncacheable = [need for need in lacking if parse(need).batch]
    codec, size = experiment.cache.codec, 0
    for need in lacking:
        parts = codec_of_signal(codec, need, setting.teacher.num_classes).parts(setting.teacher.row(need))
        size += num_samples * row_bytes(parts)
    cache = (
        f"cache it with 'dhkd cache-teacher … --signals {','.join(lacking)}' ({size / 1e6:,.1f} MB a view,"
        f" {num_samples * views:,} forwards once for {views} views), or {live}"
    )
    remedy = f"{', '.join(uncacheable)} can't be cached: {live}" if uncacheable else cache
    if reader is None:
        raise ConfigError(
            f"--cache: objective {experiment.objective!r} needs the signal {', '.join(lacking)}, no cache was given;"
            f" {remedy}"
        )
    named = experiment.student.teacher
    wanted = [signal_name(None if named == MEAN_OF_TEACHERS else named, need) for need in lacking]
    if {teachers_own(name) for name in reader.manifest.signals} >= set(lacking):
        remedy = f"choose another teacher of it with --set student.teacher=NAME, or {remedy}"
    raise CacheMismatch(
        f"cache at {reader.location}: objective {experiment.objective!r} needs the signal {', '.join(wanted)}, it holds"
        f" {', '.join(reader.manifest.signals)}; {remedy}"
    )


def of_views(reader: LogitReader, student: StudentSettings) -> LogitReader:
    """The cache, or as many of its views as the student is to train on."""
    if student.views is None:
        return reader
    if student.views > reader.plan.num_views:
        raise ConfigError(
            f"student.views: expected at most {reader.plan.num_views}, which the cache at {reader.location} holds, got"
            f" {student.views}; cache more with 'dhkd cache-teacher --views {student.views}'"
        )
    return reader.of_first_views(student.views)


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
