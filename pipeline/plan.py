"""What caching and training will cost, before anything runs: arithmetic on plain numbers, then on an experiment's.

Nothing of a data set is read. Costs of many students are in units of one student's training. Left out on purpose:
rendering and decoding, which both stages pay, reading the cache, which costs next to nothing, and evaluation.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from dhkd.configs.schema import Codec as CodecSettings
from dhkd.configs.schema import Experiment
from dhkd.data.cache.blocks import Plan
from dhkd.data.cache.codecs import Codec, Float, Int8, TopK, row_bytes
from dhkd.data.errors import ConfigError, one_of
from dhkd.data.sources import SOURCES
from dhkd.data.stream.labels import Labels
from dhkd.pipeline.build.cache import LOGITS, asked_signals, codec_of, codec_of_signal
from dhkd.pipeline.build.data import num_views_of, recipe_of
from dhkd.pipeline.build.training import objective_of, optimizer_of, student_of
from dhkd.pipeline.environment import hardware
from dhkd.stages.models import build_network
from dhkd.stages.models.signals import Shapes, parse
from dhkd.stages.processes import Processes, resolve_precision
from dhkd.stages.train.gradients import backward
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Setting
from dhkd.stages.train.objectives.losses import cross_entropy

log = logging.getLogger("dhkd")

WITNESS_BYTES = 4
USUAL_STUDENTS = (1, 2, 4, 8, 16)
USUAL_K = 20  # of top-k, where the preset names none
INT8_FROM_CLASSES = 1000
USUAL_PIXELS = 32
MEASURED_SECONDS = 4.0  # for each of teacher and student


# The cost of S students, in units of one student's training. r: a teacher's forward, of a row, as a fraction of a
# student's step. V: cached views, E: epochs of a student.


def online_cost(students: int, ratio: float) -> float:
    """S(1 + r): the teacher runs in every step of every student."""
    return students * (1 + ratio)


def cached_cost(students: int, ratio: float, views: int, epochs: int) -> float:
    """r·V/E + S: the teacher runs once over every view."""
    return ratio * views / epochs + students


def pays_from(views: int, epochs: int) -> int:
    """The smallest number of students for which the cache costs less than running the teacher live, S > V/E.

    It depends neither on the networks nor on the hardware.
    """
    return views // epochs + 1


@dataclass(frozen=True)
class Rates:
    """Rows a second of the teacher's forward and of a student's step, and r; None: not known."""

    teacher: float | None = None
    student: float | None = None
    ratio: float | None = None

    def completed(self) -> "Rates":
        """With the third of them, where two are given. Raises `ConfigError` for impossible numbers, and for three."""
        options = {"--teacher-rate": self.teacher, "--student-rate": self.student, "--ratio": self.ratio}
        for name, value in options.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a finite number above 0, got {value:g}")
        if None not in options.values():
            raise ConfigError("--ratio: it follows from --teacher-rate and --student-rate; leave one of the three out")
        if self.teacher is not None and self.student is not None:
            return replace(self, ratio=self.student / self.teacher)
        if self.teacher is not None and self.ratio is not None:
            return replace(self, student=self.teacher * self.ratio)
        if self.student is not None and self.ratio is not None:
            return replace(self, teacher=self.student / self.ratio)
        return self


def storage(codec: Codec, size: Plan, num_classes: int, window: int | None) -> dict[str, Any]:
    """Bytes, objects and memory of a cache of logits with this codec, cut into blocks as `size` says.

    Bytes are the values' own: checksums, tar headers and the metadata's few objects come on top. Without `window`, the
    smallest one is meant: one block.
    """
    parts = codec.parts((num_classes,))
    row = row_bytes(parts)
    view, blocks = size.num_samples * row, size.num_views * size.blocks_per_view
    in_windows = min(2 * max(1, (window or 1) // size.block_rows), blocks)
    return {
        "codec": codec.kind,
        "k": codec.k if isinstance(codec, TopK) else None,
        "row_bytes": row,
        "view_bytes": view,
        "bytes": size.num_views * view,
        "block_rows": size.block_rows,
        "block_bytes": size.block_rows * row,
        "blocks": blocks,
        # zarr has an array for each part, and a chunk of each for a block; a shard holds all parts. One is the witness.
        "objects": {"zarr": blocks * (len(parts) + 1), "webdataset": blocks * 2},
        "memory": {
            "resident": size.num_views * view,
            "views": min(2, size.num_views) * view,
            "windows": in_windows * size.block_rows * row,
        },
    }


def samples_of(experiment: Experiment, samples: int | None, classes: int | None) -> tuple[int, int, bool]:
    """How many training samples and classes there are, and whether the preset's record is what says so.

    Else it is the source's name, or `samples` and `classes`. Raises `ConfigError` where nobody says it.
    """
    data = experiment.data
    size = one_of("data source", data.source, SOURCES).size
    if size is not None:
        for option, given in (("--samples", samples), ("--classes", classes)):
            if given is not None:
                raise ConfigError(f"{option}: {data.source} has its own; leave it out, or use --set data.limit=N")
        return _limited(data.limit, size.samples, data.source), size.classes, False
    recorded = _recorded(experiment, "samples")
    found, known = samples or recorded or data.limit, classes or data.num_classes or _recorded(experiment, "classes")
    if found is None:
        raise ConfigError(f"--samples: {data.source} doesn't tell how many samples it has before it is read; give N")
    if known is None:
        raise ConfigError(f"--classes: {data.source} doesn't tell how many classes it has before it is read; give K")
    number = _limited(data.limit, found, data.source)
    return number, known, samples is None and number == recorded


def _limited(limit: int | None, total: int, source: str) -> int:
    if limit is not None and limit > total:
        raise ConfigError(f"data.limit: expected 1 to {total}, the size of {source}, got {limit}")
    return limit or total


def _recorded(experiment: Experiment, key: str) -> int | None:
    """What the preset's record, which is free, says of the data."""
    said = experiment.record.get(key)
    said = said.get("train") if isinstance(said, Mapping) else said
    return said if isinstance(said, int) and said > 1 else None


def make_plan(
    experiment: Experiment,
    *,
    samples: int | None = None,
    classes: int | None = None,
    rates: Rates | None = None,
    measure: bool = False,
    students: int | None = None,
    cpu: bool = False,
) -> dict[str, Any]:
    """Disk, memory, forwards, hours and the break-even of the experiment's cache, as plain values.

    `samples` and `classes` are for sources that don't tell. With `measure` the rates are those of this machine.
    """
    rates, measured = (rates or Rates()).completed(), None
    num_samples, num_classes, from_record = samples_of(experiment, samples, classes)
    settings, epochs = experiment.student, experiment.student.epochs
    views = num_views_of(experiment, recipe_of(experiment.views))
    asked = codec_of(experiment.cache.codec, num_classes)
    setting = usual_setting(experiment, num_classes)
    others = _other_signals(experiment, setting, num_samples, views)
    largest = max((other["row_bytes"] for other in others if other["cached"]), default=0)
    codecs = []
    for codec in _codecs(asked, num_classes):
        row = max(row_bytes(codec.parts((num_classes,))), largest)
        size = Plan.balanced(views, num_samples, row, int(experiment.cache.block_mb * 2**20))
        codecs.append({**storage(codec, size, num_classes, settings.window), "preset": codec == asked})
    if measure:
        rates, measured = _measure(experiment, num_classes, cpu)
    forwards, row = num_samples * views, row_bytes(asked.parts((num_classes,))) + WITNESS_BYTES
    return {
        "data": {
            "source": experiment.data.source,
            "samples": num_samples,
            "classes": num_classes,
            "from_record": from_record,
        },
        "views": views,
        "view_kind": experiment.views.kind,
        "all_views": experiment.cache.views == "all",
        "teacher": experiment.teacher.architecture,
        "student": settings.architecture,
        "epochs": epochs,
        "window": settings.window,
        "in_memory": _in_memory(settings.view_schedule, settings.window),
        "store": experiment.cache.store,
        "block_mb": experiment.cache.block_mb,
        "codecs": codecs,
        "signals": others,
        "witness_bytes": forwards * WITNESS_BYTES,
        "suggestion": _suggestion(asked, num_classes),
        "forwards": forwards,
        "rates": {"teacher": rates.teacher, "student": rates.student, "ratio": rates.ratio, "measured": measured},
        "stage_one_hours": forwards / rates.teacher / 3600 if rates.teacher else None,
        "bytes_per_second": rates.teacher * row if rates.teacher else None,
        "student_hours": num_samples * epochs / rates.student / 3600 if rates.student else None,
        "pays_from": pays_from(views, epochs),
        "students": [
            {
                "students": number,
                "online_forwards": number * epochs * num_samples,
                "cached_forwards": forwards,
                **_costs(number, rates.ratio, views, epochs),
            }
            for number in sorted({*USUAL_STUDENTS, *([students] if students else [])})
        ],
        "asked_students": students,
    }


def usual_setting(experiment: Experiment, num_classes: int) -> Setting:
    """Both networks' shapes, of a usual size where nobody says how large images are: logits are the same of any."""
    pixels = _pixels(experiment) or USUAL_PIXELS
    shapes_of = partial(Shapes, num_classes=num_classes, image=(pixels, pixels))
    student, teacher = shapes_of(experiment.student.architecture), shapes_of(experiment.teacher.architecture)
    return Setting(student, teacher, torch.arange(num_classes), experiment.seed)


def _pixels(experiment: Experiment) -> int | None:
    data = experiment.data
    size = SOURCES[data.source].size
    return size.pixels if size is not None else experiment.views.size


def _other_signals(experiment: Experiment, setting: Setting, num_samples: int, views: int) -> list[dict[str, Any]]:
    """Beside logits, what the preset wants cached, and what its objective needs."""
    cached = asked_signals(experiment, setting)
    objective = objective_of(experiment)
    needed = objective.needs(setting)
    found = []
    for own in dict.fromkeys([*cached, *needed]):
        if own == LOGITS:
            continue
        codec = codec_of_signal(experiment.cache.codec, own, setting.teacher.num_classes)
        row = row_bytes(codec.parts(setting.teacher.row(own)))
        found.append(
            {
                "signal": own,
                "shape": list(setting.teacher.row(own)),
                "row_bytes": row,
                "view_bytes": num_samples * row,
                "bytes": num_samples * row * views,
                "cached": own in cached,
                "needed": own in needed,
                "cacheable": not parse(own).batch,
            }
        )
    return found


def _in_memory(schedule: str, window: int | None) -> str:
    """What of the cache training holds, as `signals_of` decides it."""
    if window is not None and schedule != "independent":
        return "windows"
    return "views" if schedule == "cycle" else "resident"


def _codecs(asked: Codec, num_classes: int) -> Iterable[Codec]:
    """All of them, top-k as the preset has it, or a usual one where a row has so many classes."""
    yield from (Float("float32"), Float("float16"), Int8())
    if isinstance(asked, TopK):
        yield asked
    elif num_classes > USUAL_K:
        yield codec_of(CodecSettings(kind="top-k", k=USUAL_K, temperature=4), num_classes)


def _suggestion(asked: Codec, num_classes: int) -> str | None:
    if num_classes < INT8_FROM_CLASSES or not isinstance(asked, Float):
        return None
    share = row_bytes(Int8().parts((num_classes,))) / row_bytes(asked.parts((num_classes,)))
    return (
        f"with {num_classes:,} classes, int8 is worth a thought: {share:.0%} of {asked.kind}'s bytes, and it serves"
        f" every objective; --set cache.codec=int8"
    )


def _costs(students: int, ratio: float | None, views: int, epochs: int) -> dict[str, float | None]:
    if ratio is None:
        return {"online": None, "cached": None, "online_over_cached": None}
    online, cached = online_cost(students, ratio), cached_cost(students, ratio, views, epochs)
    return {"online": online, "cached": cached, "online_over_cached": online / cached}


def _measure(experiment: Experiment, num_classes: int, cpu: bool) -> tuple[Rates, dict[str, Any]]:
    """Rates of the preset's networks, with random weights and noise for images, and what they were measured with."""
    pixels = _pixels(experiment)
    if pixels is None:
        raise ConfigError(
            f"--measure: {experiment.data.source} doesn't tell how large its images are before it is read;"
            f" use --teacher-rate and --student-rate"
        )
    teacher, of_teacher = _teacher_rate(experiment, num_classes, pixels, cpu)
    student, of_student = _student_rate(experiment, num_classes, pixels, cpu)
    return Rates(teacher, student).completed(), {"teacher": of_teacher, "student": of_student}


def _teacher_rate(experiment: Experiment, num_classes: int, pixels: int, cpu: bool) -> tuple[float, dict[str, Any]]:
    rows = experiment.cache.batch_size
    processes = Processes(resolve_precision(experiment.cache.precision, cpu), cpu)
    try:
        network = build_network(experiment.teacher.architecture, num_classes).eval().requires_grad_(False)
        network.to(processes.device).to(memory_format=torch.channels_last)
        images_BCHW = _noise(rows, pixels, processes.device)

        @torch.inference_mode()
        def forward() -> None:
            with processes.autocast():
                network(images_BCHW)

        log.info(f"measuring {experiment.teacher.architecture}, {rows} images of {pixels}×{pixels} at a time")
        return _rate(forward, rows, processes.device), _circumstances(rows, processes)
    finally:
        processes.end()


def _student_rate(experiment: Experiment, num_classes: int, pixels: int, cpu: bool) -> tuple[float, dict[str, Any]]:
    settings = experiment.student
    rows = settings.batch_size
    processes = Processes(resolve_precision(settings.precision, cpu), cpu)
    try:
        student = student_of(build_objective("ce", {}), usual_setting(experiment, num_classes))
        model, optimizer = processes.prepare(student, optimizer_of(settings, student))
        parameters = list(model.parameters())
        images_BCHW = _noise(rows, pixels, processes.device)
        labels = Labels(torch.arange(rows, device=processes.device) % num_classes)

        def step() -> None:
            terms = {"ce": cross_entropy(model(images_BCHW).task, labels)}
            backward(terms, {"ce": 1.0}, parameters, alignment=None, scale=processes.scale)
            optimizer.step()
            optimizer.zero_grad()

        log.info(f"measuring {settings.architecture}, a training step of {rows} images")
        return _rate(step, rows, processes.device), _circumstances(rows, processes)
    finally:
        processes.end()


def _noise(rows: int, pixels: int, device: torch.device) -> torch.Tensor:
    images_BCHW = torch.rand(rows, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    return images_BCHW.to(device).to(memory_format=torch.channels_last)


def _circumstances(rows: int, processes: Processes) -> dict[str, Any]:
    return {"batch_size": rows, "precision": processes.precision, "hardware": hardware(processes.device)}


def _rate(run: Callable[[], None], rows: int, device: torch.device) -> float:
    """Rows a second by the median run; the first, which sets things up, counts only where there is no other."""
    seconds: list[float] = []
    while not seconds or sum(seconds) < MEASURED_SECONDS:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return rows / median(seconds[1:] or seconds)
