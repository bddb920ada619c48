"""`cache-teacher`: computes a teacher's signals for an experiment, and writes them into a cache.

The steps of `cache_teacher` are in the order in which the data passes through them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.cache.find import find
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import one_of
from dhkd.data.images.base import Images
from dhkd.data.images.held_out import VAL
from dhkd.data.render import Normalization, Renderer
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import storage_of
from dhkd.pipeline.build.cache import cache_identity, gives_logits, plan_of, summary_of
from dhkd.pipeline.build.checks import require_small_blocks
from dhkd.pipeline.build.code import Code, code_facts, code_of_teacher, require_code_of_cache
from dhkd.pipeline.build.data import images_of, reading_of, recipe_of, renderer_of
from dhkd.pipeline.build.recorded import SETTINGS, settings_to_record
from dhkd.pipeline.build.teacher import (
    teacher_normalization,
    teacher_recipe_of,
    teacher_test_renderer,
    teachers_classes,
    trained_teacher,
)
from dhkd.pipeline.build.training import setting_of
from dhkd.pipeline.chance import require_better_than_chance
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.environment import hardware_name, log_once, processes_for, unreadable_files, versions
from dhkd.pipeline.evaluation import EVALUATION_BATCH, Evaluator
from dhkd.pipeline.reference import recorded_classes
from dhkd.pipeline.results import CachedTeacher, LiveDifferences
from dhkd.stages.agreement import require_agreement
from dhkd.stages.cache.compare import compare_with_live
from dhkd.stages.cache.write import Computing, Written, write_blocks
from dhkd.stages.models.evaluate import top_classes
from dhkd.stages.models.network import Network
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.objectives import build_objective

LIVE_ROWS = 64  # rows to compare with a live forward pass when the cache is complete

REBUILD = "rebuild it with 'dhkd cache-teacher'"  # the remedy for a cache that differs from what this teacher computes


@dataclass(frozen=True)
class Caching:
    """What is cached, and where: all that a process must be told in order to take part.

    `teacher` is a run folder or a weights file, `out` a path or URL. `name` is the teacher's name in a cache of several
    teachers; None leaves the teacher without a name. `command` is recorded in the cache's provenance.
    """

    experiment: Experiment
    teacher: Path
    out: str
    data: DataOptions
    name: str | None = None
    command: str = ""
    cpu: bool = False


@dataclass(frozen=True)
class Prepared:
    """What every process that takes part has loaded: the teacher, its images, and what the cache must be for them.

    `wanted` describes the cache as it is when finished; its provenance is empty.
    """

    asked: Caching
    processes: Processes
    images: Images
    renderer: Renderer
    network: Network
    live: Teacher
    normalize: Normalization
    wanted: Manifest
    code: Code
    has_classifier: bool

    @property
    def signals(self) -> list[str]:
        """The names of this teacher's signals in the cache."""
        return list(self.wanted.signals)

    def computing(self, storage: Storage, manifest: Manifest) -> Computing:
        """Return what computes and writes blocks of the cache in this storage, which `begun` has begun."""
        settings, mixing = self.asked.experiment.cache, self.renderer.recipe.mixing
        return Computing(
            self.live,
            self.renderer,
            LogitWriter(storage, settings.store, manifest, self.signals),
            batch_size=settings.batch_size,
            views_at_once=1 if self.renderer.in_memory else settings.views_at_once,
            group=1 if self.renderer.in_memory or mixing is None else mixing.group,
        )

    def compare(self) -> LiveDifferences:
        """Compare random rows of the finished cache with a live forward pass; raises `CacheMismatch` as it does."""
        reader = open_cache(self.asked.out)
        return compare_signals(self.live, self.renderer, reader, self.signals, self.asked.experiment.seed, LIVE_ROWS)


def cache_teacher(
    experiment: Experiment,
    teacher: Path,
    out: str,
    *,
    data: DataOptions,
    name: str | None = None,
    part: tuple[int, int] = (0, 1),
    command: str = "",
    cpu: bool = False,
) -> CachedTeacher:
    """Write the teacher's signals (outputs such as logits) for every view, except what the cache already holds.

    `part` (I, N) is this call's share of the work: the I-th (from 0) of N. The other arguments are those of `Caching`.
    Once the cache is complete, random rows are compared with a live forward pass.
    """
    asked = Caching(experiment, teacher, out, data, name, command, cpu)
    require_known_store(asked)
    with processes_for(experiment.cache.precision, cpu=cpu) as processes:
        prepared = prepare(asked, processes)
        require_agreement(
            processes,
            lambda: {
                "cache": experiment.cache.model_dump(mode="json"),
                "identity": prepared.wanted.identity.model_dump(mode="json"),
                **code_facts(prepared.code),
                "options": {"out": out, "name": name, "part": part, "allow_bad": data.allow_bad},
            },
        )
        storage = storage_of(out)
        manifest = begun(prepared, storage)
        work = prepared.computing(storage, manifest)
        written = write_blocks(
            work.teacher,
            work.renderer,
            work.writer,
            batch_size=work.batch_size,
            processes=processes,
            views_at_once=work.views_at_once,
            group=work.group,
            part=part,
        )
        files = unreadable_files(prepared.renderer, processes)
        compared = None if written.remaining else prepared.compare()
        return result_of(asked, manifest, prepared.signals, written, files, compared, processes.world_size)


def require_known_store(asked: Caching) -> None:
    """Raise `ConfigError` for an unknown store, before any costly step."""
    one_of("store", asked.experiment.cache.store, LAYOUTS)


def prepare(asked: Caching, processes: Processes) -> Prepared:
    """Load images and teacher, and work out what the cache must be. Raises `DhkdError` if any of it doesn't fit."""
    experiment, data = asked.experiment, asked.data
    images = images_of(experiment, "train", data, lambda: teachers_classes(experiment, asked.teacher))
    recipe = recipe_of(experiment.views)
    trained = trained_teacher(experiment, images, asked.teacher, data)
    normalize = teacher_normalization(experiment, images, trained.mean_std)
    setting = setting_of(experiment, experiment.student, images, build_objective("ce", {}))
    identity = cache_identity(experiment, images, recipe, setting, trained, normalize, processes.precision, asked.name)
    plan = plan_of(experiment, images, recipe, setting)
    return Prepared(
        asked=asked,
        processes=processes,
        images=images,
        renderer=renderer_of(images, recipe, processes.device, data),
        network=trained.network,
        live=Teacher(trained.network, normalize, processes, recipe=teacher_recipe_of(experiment)),
        normalize=normalize,
        wanted=Manifest(identity=identity, provenance={}, num_views=plan.num_views, block_rows=plan.block_rows),
        code=code_of_teacher(experiment),
        has_classifier=gives_logits(setting.teacher),
    )


def begun(prepared: Prepared, storage: Storage) -> Manifest:
    """Begin the cache, or prepare the existing one for what is wanted; return its manifest, in every process.

    Raises `CacheMismatch` if the existing cache can't hold it, and `DataError` for a teacher that only guesses.
    """
    wanted, processes = prepared.wanted, prepared.processes
    if must_state_provenance(prepared, storage):
        provenance = code_facts(prepared.code) | _provenance(prepared)
        wanted = wanted.model_copy(update={"provenance": dict.fromkeys(wanted.signals, provenance)})
    store = prepared.asked.experiment.cache.store
    manifest: Manifest = processes.broadcast(begin(storage, store, wanted) if processes.is_first else None)
    return manifest


def compare_signals(
    live: Teacher, renderer: Renderer, reader: LogitReader, names: Sequence[str], seed: int, rows: int
) -> LiveDifferences:
    """Measure how far random rows of each signal are from a live forward pass.

    Raises `CacheMismatch` if a difference exceeds the tolerance.
    """
    largest = {
        name: compare_with_live(live, renderer, reader, name, seed=seed, num_rows=rows, repair=REBUILD)
        for name in names
    }
    return LiveDifferences(largest_difference_from_live=max(largest.values()), differences_from_live=largest)


def must_state_provenance(prepared: Prepared, storage: Storage) -> bool:
    """Return whether some of the wanted signals are new to the cache.

    Raises an error, before any costly step, if these signals can't be added to the cache.
    """
    wanted, location, processes = prepared.wanted, prepared.asked.out, prepared.processes
    existing = processes.broadcast(find(storage) if processes.is_first else None)
    if existing is None:
        return True
    require_code_of_cache(existing.manifest, location, existing.manifest.signals, prepared.code)
    require_small_blocks(existing.manifest.extended_by(wanted, location), list(wanted.signals), location)
    return not set(wanted.signals) <= set(existing.manifest.signals)


def _provenance(prepared: Prepared) -> dict[str, Any]:
    """Return the provenance of the teacher's signals, i.e. how they were computed, as JSON for the manifest.

    Raises `DataError` for a teacher that does no better than guessing.

    The provenance has no times, hosts or process counts, because the bytes of a cache must not depend on these.
    """
    asked, experiment = prepared.asked, prepared.asked.experiment
    test = teacher_test_renderer(experiment, prepared.processes.device, asked.data, prepared.images)
    accuracy_of = Evaluator(test, prepared.normalize, prepared.processes)
    reading, settings = reading_of(experiment, asked.data, prepared.images), settings_to_record(experiment)
    return {
        **({"data": reading} if reading else {}),
        **({SETTINGS: settings} if settings else {}),
        "command": asked.command,
        **_teacher_on_test(prepared, accuracy_of),
        "hardware": hardware_name(accuracy_of.processes.device),
        "versions": versions(),
    }


def _teacher_on_test(prepared: Prepared, accuracy_of: Evaluator) -> dict[str, Any]:
    """Return, as JSON for the manifest, the teacher's accuracy or, for test images without labels, its classes.

    Raises `DataError` for a teacher that does no better than guessing.
    """
    test, processes = accuracy_of.renderer, accuracy_of.processes
    network, part = prepared.network, test.images.split
    if not prepared.has_classifier:
        log_once(processes, "the teacher has no classifier, so its accuracy is not checked")
        return {}
    if test.images.labels_N is None:
        log_once(processes, f"the {part} images have no labels, so the teacher's accuracy is not known")
        classes_N = top_classes(network, test, accuracy_of.normalize, batch_size=EVALUATION_BATCH, processes=processes)
        return recorded_classes(classes_N, test.images)
    accuracy = accuracy_of(network)
    log_once(processes, f"the teacher's {part} accuracy is {accuracy.top1:.2f} %")
    require_better_than_chance(prepared.asked.experiment, accuracy, test.images)
    measured_on = {"teacher_measured_on": part} if part == VAL else {}
    return {"teacher_test_top1": accuracy.top1, "teacher_test_top5": accuracy.top5, **measured_on}


def result_of(
    asked: Caching,
    manifest: Manifest,
    signals: Sequence[str],
    written: Written,
    files: list[str] | None,
    compared: LiveDifferences | None,
    processes: int,
) -> CachedTeacher:
    """Return the command's result; `processes` is how many took part, `files` which they replaced by black images."""
    return CachedTeacher(
        cache=summary_of(asked.out, manifest),
        complete=not written.remaining,
        blocks_written=written.blocks,
        blocks_repaired=written.repaired,
        blocks_left_to_others=written.remaining,
        rows_written=written.rows,
        seconds=round(written.seconds, 2),
        rows_per_second=round(written.rows / written.seconds, 1) if written.rows else None,
        teacher_top1=manifest.provenance[signals[0]].get("teacher_test_top1"),
        unreadable_files=files,
        processes=processes,
        versions=versions(),
        live=compared,
    )
