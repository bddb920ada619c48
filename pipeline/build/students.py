"""Prepares students: finds out which signals (teacher outputs) come from the cache and which from a live teacher."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment, Student
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.data.images.base import Images
from dhkd.data.recipes.base import Recipe
from dhkd.data.stream.signals import Names
from dhkd.pipeline.build.beginning import Beginning, beginning_of
from dhkd.pipeline.build.cache import (
    LOGITS,
    cached_names,
    digest_for,
    gives_logits,
    of_views,
    reader_of,
    summary_of,
    teacher_in,
)
from dhkd.pipeline.build.checks import require_cache, require_labels, require_live, require_one_class, require_rows
from dhkd.pipeline.build.code import code_facts, code_of_student
from dhkd.pipeline.build.data import images_of, recipe_of
from dhkd.pipeline.build.networks import Trained
from dhkd.pipeline.build.regularizing import require_network, require_regularizing
from dhkd.pipeline.build.teacher import teachers_classes, trained_teacher
from dhkd.pipeline.build.training import objective_of, require_trainable, setting_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.results import Distillation
from dhkd.stages.models.network import Network
from dhkd.stages.processes import Precision, resolve_precision
from dhkd.stages.train.objectives.contract import Objective, Setting

log = logging.getLogger("dhkd")


@dataclass(frozen=True)
class Source:
    """What students learn from: images, a recipe for views and, if given, the cache and the teacher's network."""

    images: Images
    recipe: Recipe
    reader: LogitReader | None
    teacher: Trained | None
    teacher_precision: Precision  # in which the teacher's cache would be made
    data: DataOptions

    @property
    def network(self) -> Network | None:
        """The teacher's network; None if its weights were not given."""
        return self.teacher.network if self.teacher else None


@dataclass(frozen=True)
class PreparedStudent:
    """An experiment that was checked against the cache, with its objective.

    The signals `names` come from the cache, and the signals `live` from the teacher that runs in every step.
    """

    experiment: Experiment
    objective: Objective
    setting: Setting
    names: Names
    live: Sequence[str]
    digest: str | None  # digest of the cached logits that the student learns from; None without a cache
    num_views: int | None  # how many of the cache's views the student sees; None without a cache
    live_sha256: str | None  # hash of the weights of the live teacher; None if no teacher runs
    live_precision: Precision  # in which the live teacher computes
    beginning: Beginning | None  # the weights that the student begins with; None for random ones

    def facts(self) -> dict[str, Any]:
        """Return what defines the student's run besides its settings, as plain values for config.yaml."""
        definitions = self.objective.definitions(self.setting)
        live = {"signals": list(self.live), "sha256": self.live_sha256, "precision": self.live_precision}
        code = code_of_student(self.experiment, self.setting.student.architecture, live=bool(self.live))
        return {
            "command": "train-student",
            "cache": self.digest,
            "views": self.num_views,
            "live": live if self.live_sha256 else None,
            # Left out if unset, so that runs from before the setting existed can be resumed.
            **({"student_weights": self.beginning.sha256} if self.beginning else {}),
            # Left out for first definitions, so that runs of those methods from before there were others go on.
            **({"definitions": dict(definitions)} if definitions else {}),
            **code_facts(code),
        }

    def distillation(self, source: Source, *, together: int) -> Distillation:
        """Return what the run's result says of the distillation; `together` students were trained side by side."""
        cache = None
        if source.reader is not None:
            assert self.digest is not None
            teacher, sha256 = teacher_in(source.reader.manifest, self.names)
            cache = replace(
                summary_of(source.reader.location, source.reader.manifest),
                digest=self.digest,
                teacher=teacher,
                teacher_sha256=sha256,
            )
        return Distillation(objective=self.experiment.objective, cache=cache, live=list(self.live), together=together)


def source_of(
    experiment: Experiment, cache: str | None, teacher: Path | None, data: DataOptions, *, cpu: bool = False
) -> Source:
    """Load what the experiment's student learns from: images and, unless None, the cache and the teacher's network.

    `cache` is a path or URL, `teacher` a run folder or a weights file. If `cpu` is true, a GPU is ignored.
    """
    reader = reader_of(cache, data) if cache is not None else None
    recipe = recipe_of(experiment.views)
    images = images_of(experiment, "train", data, lambda: _classes(reader, experiment, teacher))
    trained = None
    if teacher is not None:
        trained = trained_teacher(experiment, images, teacher, data)
    precision, _ = resolve_precision(experiment.cache.precision, cpu)
    return Source(images, recipe, reader, trained, precision, data)


def _classes(reader: LogitReader | None, experiment: Experiment, teacher: Path | None) -> int | None:
    """Return the teacher's number of classes, from the cache or else from the weights; None without either."""
    if reader is not None:
        return reader.manifest.num_classes
    return teachers_classes(experiment, teacher) if teacher is not None else None


def prepared_student(experiment: Experiment, source: Source, begun_views: int | None = None) -> PreparedStudent:
    """Build the objective, and find out where each signal that it needs comes from.

    `begun_views` is the number of cached views with which the student's run began; it goes on with these, even if the
    cache has more by now. If it is None, the run is new. Raises an error that names what is missing or does not fit.
    """
    settings, objective, reader = experiment.student, objective_of(experiment), source.reader
    require_labels(experiment, objective, source.images)
    require_one_class(experiment, objective)
    require_regularizing(experiment, settings, objective)
    if objective.takes_of_teacher and source.network is None:
        raise ConfigError(
            f"--teacher: objective {experiment.objective!r} takes the teacher's {objective.takes_of_teacher}, which"
            f" no cache holds; expected its weights, got none"
        )
    setting = setting_of(experiment, settings, source.images, objective, source.network)
    # What the student or the schedule can't do is refused here, before anything is computed.
    require_trainable(settings, objective)
    setting.student.require_runs()
    require_network(settings, "student", setting.student)
    for name in objective.reads(setting):
        setting.student.row(name)
    needs = objective.needs(setting)
    names: Names = {}
    live = list(needs)
    if reader is not None:
        names, live = cached_names(needs, reader, settings.teacher, "choose another objective")
        stored = [name for signals in names.values() for name in signals]
        require_cache(experiment, reader, source.images, source.recipe, stored, source.teacher, source.data)
        require_rows(reader, names, setting)
    if LOGITS in live and not gives_logits(setting.teacher):
        raise ConfigError(
            f"objective {experiment.objective!r} needs the teacher's logits: expected a teacher with a classifier,"
            f" {setting.teacher.architecture} gives none; choose an objective that compares embeddings (rkd, crd) or"
            f" maps (fitnet, at), or another teacher"
        )
    require_live(experiment, setting, live, reader, source.images, source.recipe)
    if live and source.network is None:
        raise ConfigError(
            f"--teacher: the teacher is to run in every step, for {', '.join(live)}; expected its weights, got none"
        )
    return PreparedStudent(
        experiment=experiment,
        objective=objective,
        setting=setting,
        names=names,
        live=live,
        digest=digest_for(reader, settings.teacher) if reader else None,
        num_views=_num_views(reader, settings, begun_views) if reader else None,
        live_sha256=source.teacher.sha256 if live and source.teacher else None,
        live_precision=source.teacher_precision,
        beginning=beginning_of(experiment, source.images),
    )


def _num_views(reader: LogitReader, settings: Student, begun: int | None) -> int:
    available = of_views(reader, settings).plan.num_views
    if begun is None or settings.views is not None:
        return available
    if begun > available:
        raise CacheMismatch(
            f"cache at {reader.location}: expected at least {begun} views, with which the run began, got {available};"
            f" cache them again with 'dhkd cache-teacher … --views {begun}'"
        )
    if begun < available:
        log.info("the run goes on with the %d views that it began with; the cache holds %d", begun, available)
    return begun
