"""`cache-teacher`: from an experiment and a teacher to a cache.

The way through the function is the way of the data.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Experiment
from dhkd.data.cache.codecs import row_bytes
from dhkd.data.cache.find import find
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.cache.storage.places import storage_of
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import one_of
from dhkd.data.render import Normalization, Renderer
from dhkd.pipeline.build.cache import cache_identity, plan_of
from dhkd.pipeline.build.checks import require_small_blocks
from dhkd.pipeline.build.data import images_of, normalization_of, recipe_of, renderer_of, test_renderer_of
from dhkd.pipeline.build.networks import trained_network
from dhkd.pipeline.build.training import setting_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.environment import hardware_name, versions
from dhkd.stages.cache.compare import compare_with_live
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models.evaluate import evaluate
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes, resolve_precision
from dhkd.stages.train.objectives import build_objective
from torch import nn

log = logging.getLogger("dhkd")


EVALUATION_BATCH = 500


LIVE_ROWS = 64  # rows recomputed at the end of stage one


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
) -> dict[str, Any]:
    """Write the teacher's signals of every view, or what is missing of them; what was done and how it compares.

    `teacher` is a run's folder or a file of weights, `out` a path or URL; `name` is what the teacher is called in a
    cache that holds several, `part` this call's number (from 0) of how many that share the work, `command` goes into
    the cache's provenance. Ends, when the cache is complete, by comparing random rows with a live forward.
    """
    one_of("store", experiment.cache.store, LAYOUTS)  # an unknown one is refused before anything expensive
    precision = resolve_precision(experiment.cache.precision, cpu)
    processes = Processes(precision, cpu)
    try:
        images, recipe = images_of(experiment, "train", data), recipe_of(experiment.views)
        trained = trained_network(experiment.teacher.architecture, images.num_classes, teacher, "teacher")
        normalize = normalization_of(experiment.teacher, images, trained.mean_std)
        renderer = renderer_of(images, recipe, processes.device, data)
        live = Teacher(trained.network, normalize, processes)
        setting = setting_of(experiment, experiment.student, images, build_objective("ce", {}))
        identity = cache_identity(experiment, images, recipe, setting, trained.network, normalize, precision, name)
        plan, signals = plan_of(experiment, images, recipe, setting), list(identity.signals)
        wanted = Manifest(identity=identity, provenance={}, num_views=plan.num_views, block_rows=plan.block_rows)
        storage = storage_of(out)
        found = processes.broadcast(find(storage) if processes.is_first else None)
        if found is not None:  # before anything expensive
            require_small_blocks(found.manifest.extended_by(wanted, out), signals, out)
        if found is None or not set(signals) <= set(found.manifest.signals):
            test = test_renderer_of(experiment, processes.device, data)
            provenance = _cache_provenance(trained.network, test, normalize, command, processes)
            wanted = wanted.model_copy(update={"provenance": dict.fromkeys(signals, provenance)})
        manifest = processes.broadcast(begin(storage, experiment.cache.store, wanted) if processes.is_first else None)
        written = write_blocks(
            live,
            renderer,
            LogitWriter(storage, experiment.cache.store, manifest, signals),
            batch_size=experiment.cache.batch_size,
            processes=processes,
            views_at_once=experiment.cache.views_at_once if not renderer.in_memory else 1,
            part=part,
        )
        result: dict[str, Any] = {
            "cache": describe(out, manifest),
            "complete": not written.remaining,
            "blocks_written": written.blocks,
            "blocks_repaired": written.repaired,
            "blocks_left_to_others": written.remaining,
            "rows_written": written.rows,
            "seconds": round(written.seconds, 2),
            "rows_per_second": round(written.rows / written.seconds, 1) if written.rows else None,
            "teacher_top1": manifest.provenance[signals[0]]["teacher_test_top1"],
            **unreadable(renderer, processes),
            "processes": processes.world_size,
            "versions": versions(),
        }
        if not written.remaining:
            result |= _compared(live, renderer, open_cache(out), signals, experiment.seed, LIVE_ROWS)
        return result
    finally:
        processes.end()


def _compared(
    live: Teacher, renderer: Renderer, reader: LogitReader, names: Sequence[str], seed: int, rows: int
) -> dict[str, Any]:
    """How far random rows of each signal lie from a live forward, at most; raises `CacheMismatch` beyond tolerance."""
    largest = {
        name: compare_with_live(live, renderer, reader, name, seed=seed, num_rows=rows, repair=_REBUILD)
        for name in names
    }
    return {"largest_difference_from_live": max(largest.values()), "differences_from_live": largest}


_REBUILD = "rebuild it with 'dhkd cache-teacher'"


def unreadable(renderer: Renderer, processes: Processes) -> dict[str, Any]:
    """The files that a black image stood in for in this call, of all processes; nothing where there are none."""
    if renderer.in_memory:
        return {}
    files = sorted(processes.gather(list(renderer.unreadable)))
    return {"unreadable_files": files} if files else {}


def _cache_provenance(
    network: nn.Module, test: Renderer, normalize: Normalization, command: str, processes: Processes
) -> dict[str, Any]:
    """No times, hosts or process counts: a cache must be the same whoever writes it."""
    accuracy = evaluate(network, test, normalize, batch_size=EVALUATION_BATCH, processes=processes)
    info(processes, f"the teacher's test accuracy is {accuracy.top1:.2f} %")
    return {
        "command": command,
        "teacher_test_top1": accuracy.top1,
        "teacher_test_top5": accuracy.top5,
        "hardware": hardware_name(processes.device),
        "versions": versions(),
    }


def describe(location: str, manifest: Manifest) -> dict[str, Any]:
    """A cache in a few words, as results hold it."""
    first = next(iter(manifest.signals.values()))
    return {
        "path": str(location),
        "digest": manifest.digest,
        "teacher": first.teacher.get("architecture"),
        "teacher_sha256": first.teacher.get("sha256"),
        "views": manifest.num_views,
        "samples": manifest.num_samples,
        "classes": manifest.num_classes,
        "signals": {name: signal.codec.kind for name, signal in manifest.signals.items()},
        "row_bytes": sum(row_bytes(signal.parts) for signal in manifest.signals.values()),
    }


def info(processes: Processes, line: str) -> None:
    """Log a line, once however many processes there are."""
    if processes.is_first:
        log.info(line)
