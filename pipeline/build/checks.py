"""Checks that an experiment fits its cache, and that students can train side by side.

Each check raises an error that says what does not fit.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment, Training
from dhkd.data.cache.codecs import row_bytes
from dhkd.data.cache.manifest import NOTHING, Manifest, require_identity, signal_name, teachers_own
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch, ConfigError, DataError
from dhkd.data.images.base import Images
from dhkd.data.recipes.base import Recipe
from dhkd.data.stream.batches import shares
from dhkd.data.stream.signals import Names
from dhkd.pipeline.build.cache import LOGITS, MEAN_OF_TEACHERS, stored_row_bytes
from dhkd.pipeline.build.code import code_of_data, code_of_teacher, require_code_of_cache
from dhkd.pipeline.build.data import dataset_identity, num_views_of, recipe_of
from dhkd.pipeline.build.networks import Trained, chosen_network, teacher_facts
from dhkd.pipeline.build.teacher import expected_record
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models.dropping import draws_from_torch
from dhkd.stages.models.signals import Shapes, parse
from dhkd.stages.models.student import Student
from dhkd.stages.processes import Processes
from dhkd.stages.train.accumulation import LEAST_ROWS
from dhkd.stages.train.objectives import combined_objective
from dhkd.stages.train.objectives.contract import Objective, Setting
from torch import Tensor

LARGEST_BLOCK_BYTES = 2**30  # a process holds two blocks: it computes one, as float32, while it writes another

# What students that train side by side must have in common: sections of the preset, and fields of its student section.
SHARED = ("data", "views", "teacher", "cache")
SHARED_OF_STUDENT = ("precision", "channels")


def require_small_blocks(manifest: Manifest, signals: Sequence[str], location: str) -> None:
    """Raise `ConfigError` if the cache's blocks, which were cut for small signals, are too large for these signals."""
    row = sum(row_bytes(manifest.signals[name].parts) for name in signals)
    if row * manifest.block_rows > LARGEST_BLOCK_BYTES:
        raise ConfigError(
            f"cache at {location}: its blocks of {manifest.block_rows:,} rows would hold"
            f" {row * manifest.block_rows / 1e9:.1f} GB of {', '.join(signals)}, expected at most"
            f" {LARGEST_BLOCK_BYTES / 1e9:.1f}; write all signals to another --out, where blocks are cut for them, or"
            f" run the teacher live"
        )


def require_cache(
    experiment: Experiment,
    reader: LogitReader,
    images: Images,
    recipe: Recipe,
    names: Collection[str],
    teacher: Trained | None,
    data: DataOptions,
) -> None:
    """Raise `CacheMismatch` unless the cache fits the data set and the recipe, and its signals `names` fit the teacher.

    The recorded teacher must have the preset's architecture, size and classes, the preset's normalisation if the preset
    sets one, and the weights hash of `teacher`. If `teacher` is None, the hash must be the preset's if the preset sets
    one. Any precision and any codec is accepted.
    """
    identity = {  # JSON, as the manifest holds it
        "dataset": dataset_identity(images).model_dump(mode="json"),
        "recipe": recipe.identity,
        "signals": {name: {"teacher": _expected_teacher(experiment, images, teacher, data)} for name in names},
    }
    remedy = "use the preset and settings that it was made with, or make another with 'dhkd cache-teacher'"
    require_identity(identity, reader.manifest, reader.location, remedy)
    code = code_of_data(experiment) if teacher is None else code_of_teacher(experiment)
    require_code_of_cache(reader.manifest, reader.location, names, code)


def require_rows(reader: LogitReader, names: Names, setting: Setting) -> None:
    """Raise `CacheMismatch` unless the cache's rows have the shapes that the objective expects of the teacher.

    Maps must also come from the modules whose outputs are the maps of the experiment's teacher.
    """
    for need, stored in names.items():
        path = setting.teacher.map_path(need) or NOTHING
        expected = (setting.student.num_classes,) if need == LOGITS else setting.teacher.row(need)
        for name in stored:
            row = tuple(reader.manifest.signals[name].row)
            recorded = str(reader.manifest.signals[name].teacher.get("map", NOTHING))
            if recorded != path:
                raise CacheMismatch(
                    f"cache at {reader.location}: signal {name}: expected the map of {path}, got that of {recorded};"
                    f" set teacher.maps as the cache has it, or make another with 'dhkd cache-teacher'"
                )
            if row != expected:
                raise CacheMismatch(
                    f"cache at {reader.location}: signal {name}: expected rows of shape {expected} for"
                    f" {setting.student.num_classes} classes and {setting.teacher.architecture}, got {row}; make"
                    f" another with 'dhkd cache-teacher'"
                )


def labels_of(images: Images) -> Tensor:
    """Return the labels, int64 (N,). Raises `ConfigError` for images without labels."""
    if images.labels_N is None:
        raise ConfigError(
            f"{images.name}: expected {images.split} images with labels, got images without; name labelled images, or"
            f" hold out a part of the training images with data.val_fraction"
        )
    return images.labels_N


def require_labels(experiment: Experiment, objective: Objective, images: Images) -> None:
    """Raise `ConfigError` if the objective needs labels and the images have none.

    The message names settings that work without labels.
    """
    if images.labels_N is not None or not objective.needs_labels:
        return
    parts = [part.rpartition("*")[2].strip() for part in experiment.objective.split("+")]
    options = {part: {**experiment.objectives.get(part, {}), "ce_weight": 0.0} for part in parts}
    remedy = "choose an objective without labels, such as mse, kd, binary-kl or rkd, each with ce_weight=0"
    with suppress(ConfigError):
        without = combined_objective(experiment.objective, {**experiment.objectives, **options})
        if not without.needs_labels:
            remedy = " ".join(f"--set objectives.{part}.ce_weight=0" for part in parts)
            remedy = f"train without it: {remedy}{' --set alignment=null' if experiment.alignment else ''}"
    terms = ", ".join(objective.needs_labels)
    raise ConfigError(
        f"objective {experiment.objective!r}: expected images with labels, for {terms}, got {images.name} without;"
        f" {remedy}"
    )


def require_one_class(experiment: Experiment, objective: Objective) -> None:
    """Raise `ConfigError` if the preset mixes images and the objective needs one class for each."""
    if objective.of_one_class and recipe_of(experiment.views).mixing is not None:
        raise ConfigError(
            f"objective {experiment.objective!r}: expected images of one class each, for"
            f" {' and '.join(objective.of_one_class)}, got views that mix images; leave views.mix out, or choose an"
            f" objective that takes mixed images, such as kd"
        )


def require_batches(section: str, training: Training, images: Images, processes: Processes) -> None:
    """Raise `ConfigError` unless the training set fills a batch, and a batch gives every process two rows.

    `section`, "teacher" or "student", is where the preset sets the batch size.
    """
    if training.batch_size > len(images):
        raise ConfigError(
            f"{section}.batch_size: expected at most the {len(images)} samples of the training set, got"
            f" {training.batch_size}; use --set {section}.batch_size={len(images)} or fewer"
        )
    shares(len(images), training.batch_size, processes.world_size)
    parts = training.accumulate or 1
    if training.batch_size // processes.world_size // parts < LEAST_ROWS:
        raise ConfigError(
            f"{section}.accumulate: expected parts of at least {LEAST_ROWS} rows in each of {processes.world_size}"
            f" processes, got {parts} parts of a batch of {training.batch_size}; use fewer parts or processes"
        )


def require_same_classes(train: Images, test: Images) -> None:
    """Raise `DataError` unless the training set and the test set have equally many classes."""
    if train.num_classes != test.num_classes:
        raise DataError(
            f"data: expected a test set of {train.num_classes} classes, as the training set has, got"
            f" {test.num_classes}; give data.test the same classes as data.train"
        )


def _expected_teacher(
    experiment: Experiment, images: Images, teacher: Trained | None, data: DataOptions
) -> dict[str, Any]:
    """Return what the manifest must say about the teacher, as JSON; a field that is left out may have any value."""
    settings = experiment.teacher
    expected: dict[str, Any] = {}
    if experiment.student.teacher != MEAN_OF_TEACHERS:  # the teachers may be of several architectures
        expected |= {key: value or NOTHING for key, value in teacher_facts(chosen_network(settings)).items()}
        expected |= expected_record(experiment, images, teacher, data)
        expected |= {key: list(value) for key in ("mean", "std") if (value := getattr(settings, key)) is not None}
    if teacher is not None:
        expected["sha256"] = teacher.sha256
    elif settings.sha256 is not None:
        expected["sha256"] = settings.sha256
    return expected


def require_live(
    experiment: Experiment,
    setting: Setting,
    lacking: Sequence[str],
    reader: LogitReader | None,
    images: Images,
    recipe: Recipe,
) -> None:
    """Raise an error if signals are `lacking`, unless the experiment runs the teacher in every step.

    The error is a `ConfigError` if there is no cache, and a `CacheMismatch` otherwise. Its message names the ways to
    get the signals and the cost of each way.
    """
    if not lacking or experiment.teacher.live:
        return
    remedy = _ways_to_get(lacking, experiment, setting, reader, recipe, len(images))
    if reader is None:
        raise ConfigError(
            f"--cache: objective {experiment.objective!r} needs the signal {', '.join(lacking)}, no cache was given;"
            f" {remedy}"
        )
    teacher = experiment.student.teacher
    wanted = [signal_name(None if teacher == MEAN_OF_TEACHERS else teacher, need) for need in lacking]
    if {teachers_own(name) for name in reader.manifest.signals} >= set(lacking):
        remedy = f"choose another teacher of it with --set student.teacher=NAME, or {remedy}"
    raise CacheMismatch(
        f"cache at {reader.location}: objective {experiment.objective!r} needs the signal {', '.join(wanted)}, it holds"
        f" {', '.join(reader.manifest.signals)}; {remedy}"
    )


def _ways_to_get(
    lacking: Sequence[str],
    experiment: Experiment,
    setting: Setting,
    reader: LogitReader | None,
    recipe: Recipe,
    num_samples: int,
) -> str:
    """Describe how to get signals that the cache lacks: cache them, if that is possible, or run the teacher live."""
    live = (
        f"run the teacher in every step with --set teacher.live=true and --teacher FILE"
        f" ({num_samples * experiment.student.epochs:,} forwards for each student)"
    )
    uncacheable = [need for need in lacking if parse(need).batch]
    if uncacheable:
        return f"{', '.join(uncacheable)} can't be cached: {live}"
    views = reader.plan.num_views if reader else num_views_of(experiment, recipe)
    view_bytes = num_samples * sum(stored_row_bytes(experiment, need, setting) for need in lacking)
    return (
        f"cache it with 'dhkd cache-teacher … --signals {','.join(lacking)}' ({view_bytes / 1e6:,.1f} MB a view,"
        f" {num_samples * views:,} forwards once for {views} views), or {live}"
    )


def require_alike(experiments: Sequence[Experiment], processes: Processes) -> None:
    """Raise `ConfigError` if these students can't train side by side.

    Several students need a single process, a precision other than fp16, and equal settings in `SHARED` and
    `SHARED_OF_STUDENT`.
    """
    if len(experiments) == 1:
        return
    if processes.world_size > 1:
        raise ConfigError(
            f"{len(experiments)} students together: expected one process, got {processes.world_size}; start it without"
            f" torchrun, or train one student with several processes"
        )
    if processes.precision == "fp16":
        raise ConfigError(
            "several students together: expected precision bf16 or float32, got fp16; they would share"
            " one gradient scaler"
        )
    first, *others = experiments
    for other in others:
        for section in SHARED:
            if getattr(other, section) != getattr(first, section):
                raise ConfigError(
                    f"several students together: expected one {section}, got two that differ; train them"
                    f" one after the other"
                )
        for field in SHARED_OF_STUDENT:
            values = [getattr(experiment.student, field) for experiment in (first, other)]
            if values[0] != values[1]:
                raise ConfigError(
                    f"several students together: expected one student.{field}, got {values[0]} and {values[1]}"
                )


def require_own_draws(students: Mapping[Path, tuple[Student, Shapes]]) -> None:
    """Raise `ConfigError` if one of several students draws from torch's global generator, which all of them share.

    Each student comes with the shapes of its network.
    """
    if len(students) == 1:
        return
    for out, (student, shapes) in students.items():
        if student.adapter_draws_from_torch() or draws_from_torch(student.backbone, shapes.random_images()):
            raise ConfigError(
                f"several students together: {out.name} has dropout that draws from torch's own generator,"
                f" which they would share; train it alone"
            )
