"""What each command does, from an experiment to its result: plain values that the command line prints.

The way through each function is the way of the data; DESIGN's two stages can be read off `cache_teacher` and
`train_student`.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dhkd.configs.schema import Experiment, Training
from dhkd.data.cache.manifest import Manifest, require_identity
from dhkd.data.cache.zarr_store import ZarrReader, ZarrWriter, read_manifest
from dhkd.data.errors import CacheMismatch, ConfigError, WeightsError
from dhkd.data.photographs import PhotoRenderer
from dhkd.data.render import DataSet, Normalization, Renderer
from dhkd.data.stream import NoSignals, Signals, Stream, check_witnesses
from dhkd.pipeline import build
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.environment import hardware, hardware_name, versions
from dhkd.stages.cache.write import Teacher, compare_with_live, write_blocks
from dhkd.stages.models import count_parameters
from dhkd.stages.models.evaluate import Accuracy, evaluate
from dhkd.stages.models.weights import read_metadata, save_weights, weights_sha256
from dhkd.stages.processes import Processes, resolve_precision
from dhkd.stages.train.loop import train
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Objective
from dhkd.stages.train.run_folder import RunFolder
from torch import nn

log = logging.getLogger("dhkd")

EVALUATION_BATCH = 500
LIVE_ROWS = 64  # rows recomputed at the end of stage one
WITNESS_BLOCKS, WITNESS_ROWS = 16, 64  # re-rendered before stage two


def train_teacher(
    experiment: Experiment, out: Path, *, data: DataOptions, cpu: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Train the preset's teacher with cross-entropy on freshly drawn views; the run's result, also in `out`."""
    settings = experiment.teacher
    processes = Processes(resolve_precision(settings.precision, cpu), cpu, track_into=out)
    try:
        run = _claim(out, experiment, {"command": "train-teacher"}, processes, resume)
        if run.result is not None:
            return run.result
        images, recipe = build.images_of(experiment, "train", data), build.recipe_of(experiment.views)
        renderer = build.renderer_of(images, recipe, processes.device, data)
        normalize = build.normalization_of(settings, images)
        signals, block_rows = NoSignals(recipe.num_views), build.block_rows_of(experiment, images)
        stream = _stream(experiment, settings, renderer, normalize, signals, "independent", block_rows, processes)
        test = build.test_renderer_of(experiment, processes.device, data)
        objective = build_objective("ce", {})
        return _train("teacher", experiment, settings, objective, stream, normalize, test, run, processes, {})
    finally:
        processes.end()


def cache_teacher(
    experiment: Experiment,
    teacher: Path,
    out: Path,
    *,
    data: DataOptions,
    command: str = "",
    cpu: bool = False,
) -> dict[str, Any]:
    """Write the teacher's logits of every view, or what is missing of them; what was done and how it compares.

    `teacher` is a run's folder or a file of weights; `command` goes into the cache's provenance. Ends by comparing
    random rows with a live forward.
    """
    precision = resolve_precision(experiment.cache.precision, cpu)
    processes = Processes(precision, cpu)
    try:
        images, recipe = build.images_of(experiment, "train", data), build.recipe_of(experiment.views)
        trained = build.trained_network(experiment.teacher.architecture, images.num_classes, teacher, "teacher")
        normalize = build.normalization_of(experiment.teacher, images, trained.mean_std)
        renderer = build.renderer_of(images, recipe, processes.device, data)
        live = Teacher(trained.network, normalize, renderer, processes)
        identity = build.cache_identity(experiment, images, recipe, trained.network, normalize, precision)
        plan = build.plan_of(experiment, images, recipe)
        begun = processes.broadcast(read_manifest(out) if processes.is_first else None)
        if begun is None:
            test = build.test_renderer_of(experiment, processes.device, data)
            provenance = _cache_provenance(trained.network, test, normalize, command, processes)
            begun = Manifest(identity, provenance, plan.num_views, plan.block_rows)
            if processes.is_first:
                ZarrWriter.create(out, begun)
            processes.wait()
        require_identity(identity, begun, str(out), "write this one to another --out")
        if (begun.num_views, begun.block_rows) != (plan.num_views, plan.block_rows):
            raise CacheMismatch(
                f"cache at {out}: views and rows in a block expected {begun.num_views} and {begun.block_rows}, as it"
                f" was begun with, got {plan.num_views} and {plan.block_rows}; write this one to another --out"
            )
        writer = ZarrWriter.create(out, begun)
        written = write_blocks(
            live,
            writer,
            batch_size=experiment.cache.batch_size,
            processes=processes,
            views_at_once=experiment.cache.views_at_once if isinstance(renderer, PhotoRenderer) else 1,
        )
        reader = ZarrReader(out)
        largest = compare_with_live(
            live, reader, precision=precision, seed=experiment.seed, num_rows=LIVE_ROWS, repair=_REBUILD
        )
        return {
            "cache": _describe(reader),
            "blocks_written": written.blocks,
            "rows_written": written.rows,
            "seconds": round(written.seconds, 2),
            "rows_per_second": round(written.rows / written.seconds, 1) if written.rows else None,
            "teacher_top1": begun.provenance["teacher_test_top1"],
            "largest_difference_from_live": largest,
            **_unreadable(renderer, processes),
            "processes": processes.world_size,
            "versions": versions(),
        }
    finally:
        processes.end()


def train_student(
    experiment: Experiment,
    cache: Path,
    out: Path,
    *,
    data: DataOptions,
    teacher: Path | None = None,
    allow_drift: bool = False,
    cpu: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the preset's student from the cache; the run's result, also in `out`.

    The cache must be complete and of this data set, recipe and (where the experiment or `teacher` names one) teacher.
    Pixels that differ from those that the teacher saw are an error, with `allow_drift` a warning.
    """
    settings = experiment.student
    processes = Processes(resolve_precision(settings.precision, cpu), cpu, track_into=out)
    try:
        objective = build.objective_of(experiment)
        images, recipe = build.images_of(experiment, "train", data), build.recipe_of(experiment.views)
        reader = ZarrReader(cache)
        named = None
        if teacher is not None:
            of_file = build.trained_network(experiment.teacher.architecture, images.num_classes, teacher, "teacher")
            named = of_file.network
        _require_cache(experiment, reader, images, recipe, named)
        identity = {
            "command": "train-student",
            "cache": reader.manifest.digest,
            "views": reader.plan.num_views,
        }
        run = _claim(out, experiment, identity, processes, resume)
        if run.result is not None:
            return run.result
        renderer = build.renderer_of(images, recipe, processes.device, data)
        test = build.test_renderer_of(experiment, processes.device, data)
        _check_pixels(renderer, reader, experiment, processes, allow_drift=allow_drift)
        copies = processes.world_size if processes.device.type == "cpu" else 1
        normalize = build.normalization_of(settings, images)
        signals = build.signals_of(objective, reader, settings, processes.device, copies)
        schedule, block_rows = settings.view_schedule, reader.plan.block_rows
        stream = _stream(experiment, settings, renderer, normalize, signals, schedule, block_rows, processes)
        facts = {"objective": experiment.objective, "cache": _describe(reader)}
        return _train("student", experiment, settings, objective, stream, normalize, test, run, processes, facts)
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
        trained = build.trained_network(settings.architecture, test.images.num_classes, weights, role)
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
            "architecture": settings.architecture,
            "weights": trained.origin,
            "sha256": weights_sha256(trained.network),
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "samples": len(test.images),
            **_unreadable(test, processes),
            "precision": processes.precision,
            "versions": versions(),
        }
    finally:
        processes.end()


def verify(
    experiment: Experiment,
    cache: Path,
    *,
    data: DataOptions,
    teacher: Path | None,
    rows: int,
    cpu: bool = False,
) -> dict[str, Any]:
    """Check a cache against the data set, by its witnesses, and with `teacher` against a live forward.

    Raises the `CacheMismatch`, `CacheDamaged` or `CacheIncomplete` that says what is wrong.
    """
    reader = ZarrReader(cache)
    precision = reader.manifest.identity["precision"]
    processes = Processes(resolve_precision(precision, cpu), cpu)
    try:
        images, recipe = build.images_of(experiment, "train", data), build.recipe_of(experiment.views)
        _require_cache(experiment, reader, images, recipe, None)
        trained = None
        if teacher is not None:
            trained = build.trained_network(experiment.teacher.architecture, images.num_classes, teacher, "teacher")
            weights = {"teacher": {"sha256": weights_sha256(trained.network)}}
            require_identity(weights, reader.manifest, f"{cache}: weights differ", _REBUILD)
        renderer = build.renderer_of(images, recipe, processes.device, data)
        per_block = max(1, -(-rows // WITNESS_BLOCKS))
        result: dict[str, Any] = {
            "cache": _describe(reader),
            "rows_rendered": _rerender(renderer, reader, experiment, per_block),
        }
        if trained is not None:
            normalize = build.normalization_of(experiment.teacher, images, trained.mean_std)
            live = Teacher(trained.network, normalize, renderer, processes)
            result["rows_recomputed"] = rows
            result["largest_difference_from_live"] = compare_with_live(
                live, reader, precision=precision, seed=experiment.seed, num_rows=rows, repair=_REBUILD
            )
        return result
    finally:
        processes.end()


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


def inspect(cache: Path) -> dict[str, Any]:
    """What a cache is, how complete and how large."""
    reader = ZarrReader(cache)
    missing, plan = reader.missing(), reader.plan
    total = plan.num_views * plan.blocks_per_view
    return {
        **_describe(reader),
        "complete": reader.complete and not missing,
        "blocks": total,
        "blocks_done": total - len(missing),
        "rows_per_block": plan.block_rows,
        "bytes": reader.stored_bytes(),
        "identity": reader.manifest.identity,
        "provenance": reader.manifest.provenance,
    }


def _claim(
    out: Path, experiment: Experiment, facts: Mapping[str, Any], processes: Processes, resume: bool
) -> RunFolder:
    settings = experiment.model_dump(mode="json", exclude={"smoke", "record"})
    run = RunFolder(out, {"run": {**facts, "precision": processes.precision}, "experiment": settings}, resume=resume)
    processes.wait()  # before the first process writes into the folder that the others look at
    if run.result is not None:
        _info(processes, f"run at {out}: already finished")
    return run


def _stream(
    experiment: Experiment,
    settings: Training,
    renderer: Renderer,
    normalize: Normalization,
    signals: Signals,
    schedule: str,
    block_rows: int,
    processes: Processes,
) -> Stream:
    stream = Stream(
        renderer,
        normalize,
        signals,
        schedule=schedule,
        seed=experiment.seed,
        batch_size=settings.batch_size,
        block_rows=block_rows,
        window=experiment.student.window,  # what the data's size asks of the student's order, it asks of the teacher's
        rank=processes.rank,
        world_size=processes.world_size,
    )
    dropped = stream.num_samples - stream.samples_per_epoch
    if dropped:
        _info(processes, f"the last {dropped} samples of each epoch are left out: too few rows for every process")
    return stream


def _check_pixels(
    renderer: Renderer, reader: ZarrReader, experiment: Experiment, processes: Processes, *, allow_drift: bool
) -> None:
    """Compare random rows with what the teacher saw."""
    try:
        checked = _rerender(renderer, reader, experiment, WITNESS_ROWS)
    except CacheMismatch as error:
        if not allow_drift:
            if isinstance(renderer, PhotoRenderer):  # decoders differ by a grey level from version to version
                raise CacheMismatch(f"{error}; where that is a matter of a grey level, use --allow-drift") from error
            raise
        _info(processes, f"cache {reader.path}: {error}; --allow-drift: the student trains all the same")
        return
    _info(processes, f"cache {reader.path}: {checked} random rows re-rendered, all as the teacher saw them")


def _rerender(renderer: Renderer, reader: ZarrReader, experiment: Experiment, rows_per_block: int) -> int:
    """Compare random rows of random blocks with what the teacher saw; how many."""
    return check_witnesses(
        renderer,
        reader,
        seed=experiment.seed,
        rows_per_block=rows_per_block,
        max_blocks=WITNESS_BLOCKS,
        versions=_versions_on_both_sides(reader),
    )


def _versions_on_both_sides(reader: ZarrReader) -> str:
    written, here = reader.manifest.provenance.get("versions", {}), versions()
    differ = [
        f"{name} {written[name]} then, {here[name]} now" for name in here if written.get(name, here[name]) != here[name]
    ]
    return f" ({', '.join(differ)})" if differ else " (with the same versions of all libraries)"


def _unreadable(renderer: Renderer, processes: Processes) -> dict[str, Any]:
    """The files that a black image stood in for in this call, of all processes; nothing where there are none."""
    if not isinstance(renderer, PhotoRenderer):
        return {}
    files = sorted(processes.gather(list(renderer.unreadable)))
    return {"unreadable_files": files} if files else {}


def _train(
    role: str,
    experiment: Experiment,
    settings: Training,
    objective: Objective,
    stream: Stream,
    normalize: Normalization,
    test: Renderer,
    run: RunFolder,
    processes: Processes,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    num_classes = test.images.num_classes
    student = build.student_of(settings, num_classes, objective.auxiliary, experiment.seed)

    def accuracy_of(network: nn.Module) -> Accuracy:
        return evaluate(network, test, normalize, batch_size=EVALUATION_BATCH, processes=processes)

    figures = train(
        student,
        build.optimizer_of(settings, student),
        objective,
        stream,
        accuracy_of,
        learning_rate=build.learning_rate_of(settings),
        epochs=settings.epochs,
        seed=experiment.seed,
        clip_norm=settings.clip_norm,
        run=run,
        processes=processes,
    )
    result = {
        "role": role,
        "architecture": settings.architecture,
        "parameters": count_parameters(student.backbone),
        **figures,
        "seed": experiment.seed,
        **facts,
        **_unreadable(stream.renderer, processes),
        "sha256": weights_sha256(student.backbone),
        "precision": processes.precision,
        "hardware": hardware(processes.device),
        "processes": processes.world_size,
        "versions": versions(),
    }
    if processes.is_first:
        about = {
            "architecture": settings.architecture,
            "num_classes": str(num_classes),
            "mean": json.dumps(normalize.mean),
            "std": json.dumps(normalize.std),
        }
        save_weights(run.path / f"{role}.safetensors", student.backbone, about)
        run.write_result(result)
    return result


def _require_cache(
    experiment: Experiment, reader: ZarrReader, images: DataSet, recipe: build.Recipe, teacher: nn.Module | None
) -> None:
    expected = build.expected_identity(experiment, images, recipe, teacher)
    remedy = "use the preset and settings that it was made with, or make another with 'dhkd cache-teacher'"
    require_identity(expected, reader.manifest, str(reader.path), remedy)
    reader.require_complete()


def _cache_provenance(
    network: nn.Module, test: Renderer, normalize: Normalization, command: str, processes: Processes
) -> dict[str, Any]:
    """No times, hosts or process counts: a cache must be the same whoever writes it."""
    accuracy = evaluate(network, test, normalize, batch_size=EVALUATION_BATCH, processes=processes)
    _info(processes, f"the teacher's test accuracy is {accuracy.top1:.2f} %")
    return {
        "command": command,
        "teacher_test_top1": accuracy.top1,
        "teacher_test_top5": accuracy.top5,
        "hardware": hardware_name(processes.device),
        "versions": versions(),
    }


def _describe(reader: ZarrReader) -> dict[str, Any]:
    manifest = reader.manifest
    return {
        "path": str(reader.path),
        "digest": manifest.digest,
        "teacher": manifest.identity["teacher"]["architecture"],
        "teacher_sha256": manifest.identity["teacher"]["sha256"],
        "views": manifest.num_views,
        "samples": manifest.num_samples,
        "classes": manifest.num_classes,
        "signals": {name: signal["dtype"] for name, signal in manifest.signals.items()},
    }


def _info(processes: Processes, line: str) -> None:
    if processes.is_first:
        log.info(line)
