"""The demo: trains a teacher, caches it, trains students and compares them, on data that needs no download."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from dhkd.configs.load import load_experiment
from dhkd.data.errors import RunExists
from dhkd.data.runs.metrics import read_metrics
from dhkd.pipeline import training
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.results import CachedTeacher, Demo, DemoRun
from dhkd.stages.report.figures import Line, Panel
from dhkd.stages.report.pictures import draw_lines

log = logging.getLogger("dhkd")

OBJECTIVES = ("ce", "kd", "binary-kl", "dhkd")


def run_demo(out: Path | None, *, cpu: bool, smoke: bool) -> Demo:
    """Train a teacher, cache all views, train four students, and draw their accuracies; all files go into `out`.

    If `out` is None, a new folder is made under runs/. Raises `RunExists` if `out` is a file or not empty.
    """
    began = time.perf_counter()
    out = _new_folder(out)
    data = DataOptions()
    experiment = load_experiment("demo", smoke=smoke)
    log.info("teacher: %s", experiment.teacher.architecture)
    teacher = training.train_teacher(experiment, out / "teacher", data=data, cpu=cpu)
    log.info("cache: every view, once")
    cache = cache_teacher(
        experiment, out / "teacher", str(out / "teacher.zarr"), data=data, command="dhkd demo", cpu=cpu
    )
    assert cache.rows_per_second is not None  # the cache is new, so that all of its rows were written
    runs = [DemoRun(name="teacher", teacher_seconds_saved=None, run=teacher)]
    curves = {}
    for objective in OBJECTIVES:
        overrides = [f"objective={objective}"]
        log.info("student: %s with %s", experiment.student.architecture, objective)
        student = training.train_student(
            load_experiment("demo", overrides, smoke=smoke),
            str(out / "teacher.zarr"),
            out / objective,
            data=data,
            cpu=cpu,
        )
        rows_read = 0 if objective == "ce" else student.epochs * cache.cache.samples
        runs.append(DemoRun(name=objective, teacher_seconds_saved=rows_read / cache.rows_per_second, run=student))
        epochs = read_metrics(out / objective)
        curves[objective] = Line(range(1, len(epochs) + 1), [epoch.top1 for epoch in epochs])
    title = f"{experiment.teacher.architecture} → {experiment.student.architecture}, glyphs, one seed"
    panel = Panel(curves, "epoch", "test top-1 accuracy (%)", levels={"teacher": teacher.last_top1})
    picture = next(iter(draw_lines([panel], title, out / "accuracy")), None)
    return Demo(
        runs=runs,
        cache=cache,
        picture=picture,
        folder=str(out),
        seconds=round(time.perf_counter() - began, 1),
        reading=_reading(runs, cache, picture),
    )


def _reading(runs: Sequence[DemoRun], cache: CachedTeacher, picture: str | None) -> list[str]:
    """Describe in sentences what the figures show, and why they prove little."""
    saved = sum(run.teacher_seconds_saved or 0.0 for run in runs)
    distilled = sum(1 for run in runs if run.teacher_seconds_saved)
    balance = "more" if saved < cache.seconds else "less"
    pays_from = int(cache.seconds // (saved / distilled)) + 1
    return [
        f"Caching {cache.cache.views} views took {cache.seconds:.1f} s of the teacher; run live, it would have"
        f" cost the {distilled} students {saved:.1f} s. So the cache cost {balance} than it saved here; it pays from"
        f" student number {pays_from} on, and earlier the longer students train.",
        f"Short runs ({cache.cache.samples:,} images, {runs[0].run.epochs} epochs for the teacher,"
        f" {runs[-1].run.epochs} a student) and one seed: differences of a percent or two mean nothing.",
        *([f"Curves: {picture}"] if picture else []),
    ]


def _new_folder(out: Path | None) -> Path:
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunExists(f"output folder {out}: expected a new or an empty folder; choose another --out")
        return out
    number = 1
    while (folder := Path("runs") / (f"demo-{number}" if number > 1 else "demo")).exists():
        number += 1
    return folder
