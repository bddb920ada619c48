"""What each command does, from an experiment to its result: plain values that the command line prints.

The way through each function is the way of the data; DESIGN's two stages can be read off `cache_teacher` and
`train_student`.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from dhkd.configs.schema import Codec, Experiment
from dhkd.data.cache.codecs import Bounds, row_bytes
from dhkd.data.cache.manifest import Manifest, require_identity, signal_name, teachers_own
from dhkd.data.cache.places import storage_of
from dhkd.data.cache.reader import Damage, LogitReader, missing_blocks, open_cache
from dhkd.data.cache.stores import find
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import CacheIncomplete, ConfigError, WeightsError
from dhkd.data.photographs import PhotoRenderer
from dhkd.data.render import Normalization, Renderer
from dhkd.pipeline import build
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.drift import WITNESS_BLOCKS, rerender
from dhkd.pipeline.environment import hardware_name, versions
from dhkd.stages.cache.compare import compare_with_live
from dhkd.stages.cache.convert import convert_blocks, converted
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import count_parameters
from dhkd.stages.models.evaluate import evaluate
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.models.weights import read_metadata, save_weights, weights_sha256
from dhkd.stages.processes import Processes, resolve_precision
from dhkd.stages.progress import progress_bar
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
    precision = resolve_precision(experiment.cache.precision, cpu)
    processes = Processes(precision, cpu)
    try:
        images, recipe = build.images_of(experiment, "train", data), build.recipe_of(experiment.views)
        trained = build.trained_network(experiment.teacher.architecture, images.num_classes, teacher, "teacher")
        normalize = build.normalization_of(experiment.teacher, images, trained.mean_std)
        renderer = build.renderer_of(images, recipe, processes.device, data)
        live = Teacher(trained.network, normalize, processes)
        setting = build.setting_of(experiment, experiment.student, images, build_objective("ce", {}))
        identity = build.cache_identity(
            experiment, images, recipe, setting, trained.network, normalize, precision, name
        )
        plan, signals = build.plan_of(experiment, images, recipe, setting), list(identity.signals)
        wanted = Manifest(identity=identity, provenance={}, num_views=plan.num_views, block_rows=plan.block_rows)
        storage = storage_of(out)
        found = processes.broadcast(find(storage) if processes.is_first else None)
        if found is not None:  # before anything expensive
            build.require_small_blocks(found.manifest.extended_by(wanted, out), signals, out)
        if found is None or not set(signals) <= set(found.manifest.signals):
            test = build.test_renderer_of(experiment, processes.device, data)
            provenance = _cache_provenance(trained.network, test, normalize, command, processes)
            wanted = wanted.model_copy(update={"provenance": dict.fromkeys(signals, provenance)})
        manifest = processes.broadcast(begin(storage, experiment.cache.store, wanted) if processes.is_first else None)
        written = write_blocks(
            live,
            renderer,
            LogitWriter(storage, experiment.cache.store, manifest, signals),
            batch_size=experiment.cache.batch_size,
            processes=processes,
            views_at_once=experiment.cache.views_at_once if isinstance(renderer, PhotoRenderer) else 1,
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


def evaluate_network(
    experiment: Experiment, weights: Path, role: str, *, data: DataOptions, cpu: bool = False
) -> dict[str, Any]:
    """Test accuracy of the weights at `weights` (a run's folder or a file) in the preset's teacher or student."""
    settings = experiment.teacher if role == "teacher" else experiment.student
    processes = Processes(resolve_precision(settings.precision, cpu), cpu)
    try:
        test = build.test_renderer_of(experiment, processes.device, data)
        architecture = build.architecture_of(weights, role, settings.architecture)
        trained = build.trained_network(architecture, test.images.num_classes, weights, role)
        trained.network.to(processes.device).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            accuracy = evaluate(
                trained.network,
                test,
                build.normalization_of(settings, test.images, trained.mean_std),
                batch_size=EVALUATION_BATCH,
                processes=processes,
            )
        return {
            "architecture": architecture,
            "weights": trained.origin,
            "sha256": weights_sha256(trained.network),
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "samples": len(test.images),
            **unreadable(test, processes),
            "precision": processes.precision,
            "versions": versions(),
        }
    finally:
        processes.end()


def verify(
    cache: str,
    experiment: Experiment | None,
    *,
    data: DataOptions,
    teacher: Path | None,
    rows: int,
    cpu: bool = False,
) -> dict[str, Any]:
    """Read all of a cache and check every byte; what is damaged, under that name.

    With `experiment`, random rows are re-rendered and compared with the witnesses; with `teacher` as well, random
    logits with a live forward. Raises the `CacheMismatch` or `CacheIncomplete` that says what is wrong.
    """
    reader = build.reader_of(cache, data)
    read, damages = _read_everything(reader)
    result: dict[str, Any] = {
        "cache": describe(cache, reader.manifest),
        **read,
        "damaged": [
            {"key": damage.key, "block": str(damage.block) if damage.block else None, "reason": damage.reason}
            for damage in damages
        ],
    }
    if damages or experiment is None:
        return result
    of_teacher = signal_name(experiment.student.teacher, "")
    names = [name for name in reader.manifest.signals if name.removesuffix(teachers_own(name)) == of_teacher]
    names = names or [next(iter(reader.manifest.signals))]
    precision = reader.manifest.signals[names[0]].precision
    processes = Processes(resolve_precision(precision, cpu), cpu)
    try:
        images, recipe = build.images_of(experiment, "train", data), build.recipe_of(experiment.views)
        build.require_cache(experiment, reader, images, recipe, names, None)
        trained = None
        if teacher is not None:
            trained = build.trained_network(experiment.teacher.architecture, images.num_classes, teacher, "teacher")
            sha256 = weights_sha256(trained.network)
            weights = {"signals": {name: {"teacher": {"sha256": sha256}} for name in names}}
            require_identity(weights, reader.manifest, f"{cache}: weights differ", _REBUILD)
        renderer = build.renderer_of(images, recipe, processes.device, data)
        per_block = max(1, -(-rows // WITNESS_BLOCKS))
        result["rows_rendered"] = rerender(renderer, reader, seed=experiment.seed, rows_per_block=per_block)
        if trained is not None:
            normalize = build.normalization_of(experiment.teacher, images, trained.mean_std)
            live = Teacher(trained.network, normalize, processes)
            result |= {"rows_recomputed": rows, **_compared(live, renderer, reader, names, experiment.seed, rows)}
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


def _read_everything(reader: LogitReader) -> tuple[dict[str, Any], list[Damage]]:
    """How much was read how fast, and what is damaged."""
    began, sizes, damages = time.perf_counter(), list[int](), list[Damage]()
    with progress_bar("reading", reader.num_objects, visible=True) as advance:
        for found in reader.damages():
            if isinstance(found, Damage):
                damages.append(found)
            else:
                sizes.append(found)
            advance(1)
    seconds = time.perf_counter() - began
    return {"objects": len(sizes) + len(damages), "bytes": sum(sizes), "seconds": round(seconds, 3)}, damages


def convert(cache: str, out: str, *, store: str | None, codec: Codec | None, allow_loss: bool) -> dict[str, Any]:
    """Write a cache anew at `out`, in another store or codec (None: as it is); what came of it.

    Interrupted, it goes on where it stopped. Raises `ConfigError` where that would lose information and `allow_loss`
    doesn't hold.
    """
    began, reader = time.perf_counter(), open_cache(cache)
    wanted = build.codec_of(codec, reader.manifest.num_classes) if codec else None
    manifest, storage, store = converted(reader, wanted, allow_loss=allow_loss), storage_of(out), store or reader.store
    manifest = begin(storage, store, manifest)
    blocks = convert_blocks(reader, LogitWriter(storage, store, manifest, manifest.signals))
    result = open_cache(out)
    return {
        "cache": describe(out, result.manifest),
        "store": result.store,
        "blocks_written": blocks,
        "bytes": result.stored_bytes(),
        "bounds": _bounds(result),
        "seconds": round(time.perf_counter() - began, 2),
    }


def export(run: Path, out: Path) -> dict[str, Any]:
    """Write a finished run's network, without its auxiliary head, as one safetensors file; what it holds."""
    if out.exists():
        raise ConfigError(f"--out {out}: expected a new file, it exists; choose another or remove it")
    file = build.weights_file(run, "student")
    facts = read_metadata(file)
    lacking = [key for key in ("architecture", "num_classes") if key not in facts]
    if lacking:
        raise WeightsError(f"{file}: expected weights written by dhkd, it does not say its {' and '.join(lacking)}")
    network = build.trained_network(facts["architecture"], int(facts["num_classes"]), file, "student").network
    save_weights(out, network, facts)
    return {
        "file": str(out),
        **facts,
        "parameters": count_parameters(network),
        "sha256": weights_sha256(network),
    }


_REBUILD = "rebuild it with 'dhkd cache-teacher'"


def inspect(cache: str) -> dict[str, Any]:
    """What a cache is, how complete and how large, and how far what it holds may lie from what the teacher said."""
    storage = storage_of(cache)
    found = find(storage)
    if found is None:
        raise CacheIncomplete(f"cache at {cache}: expected a dhkd cache, found none; make it with 'dhkd cache-teacher'")
    manifest, plan = found.manifest, found.manifest.plan
    listable = storage.sizes() is not None
    missing = missing_blocks(storage, found.store, manifest, manifest.names) if listable else []
    total = plan.num_views * plan.blocks_per_view
    reader = LogitReader(storage, found.index) if found.index else None
    return {
        **describe(cache, manifest),
        "format": found.index.version if found.index else manifest.format,
        "store": found.store,
        "complete": reader is not None and reader.manifest == manifest and not missing,
        "complete_views": reader.plan.num_views if reader else 0,
        "complete_signals": list(reader.manifest.signals) if reader else [],
        "blocks": total,
        "blocks_done": total - len(missing),
        "rows_per_block": plan.block_rows,
        "bytes": reader.stored_bytes() if reader else None,
        "bounds": _bounds(reader) if reader else {},
        "digests": {
            name: manifest.digest_of([name]) for name in manifest.signals if teachers_own(name) == build.LOGITS
        },
        "identity": manifest.identity.model_dump(mode="json"),
        "provenance": manifest.provenance,
    }


def _bounds(reader: LogitReader) -> dict[str, dict[str, float | None]]:
    """For each signal what its stored values allow to be said of losses computed from them."""
    bounds: dict[str, dict[str, float | None]] = {}
    for name in reader.manifest.signals:
        bound = reader.bound(name)
        if bound is None or teachers_own(name) != build.LOGITS:
            continue
        losses = Bounds(bound.error, reader.manifest.num_classes)
        bounds[name] = {
            "error": bound.error,
            "tail_mass": bound.tail_mass,
            "kl_at_4": losses.kl(4),
            "binary_kl_at_2": losses.binary_kl(2),
            "margin": losses.margin,
        }
    return bounds


def unreadable(renderer: Renderer, processes: Processes) -> dict[str, Any]:
    """The files that a black image stood in for in this call, of all processes; nothing where there are none."""
    if not isinstance(renderer, PhotoRenderer):
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
