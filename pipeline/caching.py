"""`cache-teacher`: computes a teacher's signals for an experiment, and writes them into a cache.

The steps of `cache_teacher` are in the order in which the data passes through them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.cache.find import find
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import one_of
from dhkd.data.images.held_out import VAL
from dhkd.data.render import Renderer
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
from dhkd.stages.cache.write import Written, write_blocks
from dhkd.stages.models.evaluate import top_classes
from dhkd.stages.models.network import Network
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.objectives import build_objective

LIVE_ROWS = 64  # rows to compare with a live forward pass when the cache is complete

REBUILD = "rebuild it with 'dhkd cache-teacher'"  # the remedy for a cache that differs from what this teacher computes


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

    `teacher` is a run folder or a weights file, `out` a path or URL. `name` is the teacher's name in a cache of several
    teachers; None leaves the teacher without a name. `part` (I, N) is this call's share of the work: the I-th (from 0)
    of N. `command` is recorded in the cache's provenance. Once the cache is complete, random rows are compared with a
    live forward pass.
    """
    one_of("store", experiment.cache.store, LAYOUTS)  # refuses an unknown store before any costly step
    with processes_for(experiment.cache.precision, cpu=cpu) as processes:
        images = images_of(experiment, "train", data, lambda: teachers_classes(experiment, teacher))
        recipe = recipe_of(experiment.views)
        trained = trained_teacher(experiment, images, teacher, data)
        normalize = teacher_normalization(experiment, images, trained.mean_std)
        renderer = renderer_of(images, recipe, processes.device, data)
        live = Teacher(trained.network, normalize, processes, recipe=teacher_recipe_of(experiment))
        setting = setting_of(experiment, experiment.student, images, build_objective("ce", {}))
        identity = cache_identity(experiment, images, recipe, setting, trained, normalize, processes.precision, name)
        plan, code = plan_of(experiment, images, recipe, setting), code_of_teacher(experiment)
        require_agreement(
            processes,
            lambda: {
                "cache": experiment.cache.model_dump(mode="json"),
                "identity": identity.model_dump(mode="json"),
                **code_facts(code),
                "options": {"out": out, "name": name, "part": part, "allow_bad": data.allow_bad},
            },
        )
        wanted = Manifest(identity=identity, provenance={}, num_views=plan.num_views, block_rows=plan.block_rows)
        storage = storage_of(out)
        if _must_state_provenance(storage, wanted, out, processes, code):
            test = teacher_test_renderer(experiment, processes.device, data, images)
            accuracy_of, reading = Evaluator(test, normalize, processes), reading_of(experiment, data, images)
            provenance = code_facts(code) | _provenance(
                experiment, trained.network, accuracy_of, reading, command, has_classifier=gives_logits(setting.teacher)
            )
            wanted = wanted.model_copy(update={"provenance": dict.fromkeys(wanted.signals, provenance)})
        manifest = processes.broadcast(begin(storage, experiment.cache.store, wanted) if processes.is_first else None)
        signals = list(wanted.signals)
        written = write_blocks(
            live,
            renderer,
            LogitWriter(storage, experiment.cache.store, manifest, signals),
            batch_size=experiment.cache.batch_size,
            processes=processes,
            views_at_once=1 if renderer.in_memory else experiment.cache.views_at_once,
            group=1 if renderer.in_memory or recipe.mixing is None else recipe.mixing.group,
            part=part,
        )
        files = unreadable_files(renderer, processes)
        compared = None
        if not written.remaining:
            compared = compare_signals(live, renderer, open_cache(out), signals, experiment.seed, LIVE_ROWS)
        return _result(out, manifest, signals, written, files, compared, processes)


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


def _must_state_provenance(storage: Storage, wanted: Manifest, location: str, processes: Processes, code: Code) -> bool:
    """Return whether some of the `wanted` signals are new to the cache.

    Raises an error, before any costly step, if these signals can't be added to the cache.
    """
    existing = processes.broadcast(find(storage) if processes.is_first else None)
    if existing is None:
        return True
    require_code_of_cache(existing.manifest, location, existing.manifest.signals, code)
    require_small_blocks(existing.manifest.extended_by(wanted, location), list(wanted.signals), location)
    return not set(wanted.signals) <= set(existing.manifest.signals)


def _provenance(
    experiment: Experiment,
    network: Network,
    accuracy_of: Evaluator,
    reading: Mapping[str, object],
    command: str,
    *,
    has_classifier: bool,
) -> dict[str, Any]:
    """Return the provenance of the teacher's signals, i.e. how they were computed, as JSON for the manifest.

    Raises `DataError` for a teacher that does no better than guessing.

    The provenance has no times, hosts or process counts, because the bytes of a cache must not depend on these.
    """
    settings = settings_to_record(experiment)
    return {
        **({"data": reading} if reading else {}),
        **({SETTINGS: settings} if settings else {}),
        "command": command,
        **_teacher_on_test(experiment, network, accuracy_of, has_classifier=has_classifier),
        "hardware": hardware_name(accuracy_of.processes.device),
        "versions": versions(),
    }


def _teacher_on_test(
    experiment: Experiment, network: Network, accuracy_of: Evaluator, *, has_classifier: bool
) -> dict[str, Any]:
    """Return, as JSON for the manifest, the teacher's accuracy or, for test images without labels, its classes.

    Raises `DataError` for a teacher that does no better than guessing.
    """
    test, processes = accuracy_of.renderer, accuracy_of.processes
    part = test.images.split
    if not has_classifier:
        log_once(processes, "the teacher has no classifier, so its accuracy is not checked")
        return {}
    if test.images.labels_N is None:
        log_once(processes, f"the {part} images have no labels, so the teacher's accuracy is not known")
        classes_N = top_classes(network, test, accuracy_of.normalize, batch_size=EVALUATION_BATCH, processes=processes)
        return recorded_classes(classes_N, test.images)
    accuracy = accuracy_of(network)
    log_once(processes, f"the teacher's {part} accuracy is {accuracy.top1:.2f} %")
    require_better_than_chance(experiment, accuracy, test.images)
    measured_on = {"teacher_measured_on": part} if part == VAL else {}
    return {"teacher_test_top1": accuracy.top1, "teacher_test_top5": accuracy.top5, **measured_on}


def _result(
    out: str,
    manifest: Manifest,
    signals: Sequence[str],
    written: Written,
    files: list[str] | None,
    compared: LiveDifferences | None,
    processes: Processes,
) -> CachedTeacher:
    return CachedTeacher(
        cache=summary_of(out, manifest),
        complete=not written.remaining,
        blocks_written=written.blocks,
        blocks_repaired=written.repaired,
        blocks_left_to_others=written.remaining,
        rows_written=written.rows,
        seconds=round(written.seconds, 2),
        rows_per_second=round(written.rows / written.seconds, 1) if written.rows else None,
        teacher_top1=manifest.provenance[signals[0]].get("teacher_test_top1"),
        unreadable_files=files,
        processes=processes.world_size,
        versions=versions(),
        live=compared,
    )
