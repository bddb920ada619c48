"""Measures how many rows per second an experiment's teacher and student process on this machine.

The networks have random weights and see noise. Left out on purpose: rendering, decoding, and what an objective adds to
a step.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError
from dhkd.data.stream.labels import Labels
from dhkd.pipeline.build.networks import chosen_network
from dhkd.pipeline.build.training import optimizer_of, student_of
from dhkd.pipeline.environment import hardware
from dhkd.pipeline.sizes import pixels_of, setting_without_data
from dhkd.stages.models import build_network
from dhkd.stages.processes import Processes, resolve_precision
from dhkd.stages.train.gradients import backward
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.losses import cross_entropy

log = logging.getLogger("dhkd")

MEASURED_SECONDS = 4.0  # for each of teacher and student


@dataclass(frozen=True)
class Conditions:
    """The conditions under which a rate was measured."""

    batch_size: int
    precision: str
    hardware: str


@dataclass(frozen=True)
class Measured:
    """The conditions under which the rates of teacher and student were measured."""

    teacher: Conditions
    student: Conditions


@dataclass(frozen=True)
class Rates:
    """Rows per second of teacher forward passes and of student steps, and their ratio; an unknown number is None.

    `ratio` is student / teacher, the cost of a teacher forward pass as a fraction of a student step. `measured` is None
    if the rates were given instead of measured.
    """

    teacher: float | None = None
    student: float | None = None
    ratio: float | None = None
    measured: Measured | None = None

    def completed(self) -> "Rates":
        """Return these rates with the third number computed, if two are given.

        Raises `ConfigError` unless every given number is finite and above 0, and if all three are given.
        """
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


def measure_rates(experiment: Experiment, num_classes: int, cpu: bool) -> Rates:
    """Measure the rates of the experiment's networks on this machine, which takes some seconds.

    Raises `ConfigError` if the size of images is unknown until the data is read.
    """
    pixels = pixels_of(experiment)
    if pixels is None:
        raise ConfigError(
            f"--measure: {experiment.data.source} doesn't tell how large its images are before it is read;"
            f" use --teacher-rate and --student-rate"
        )
    teacher_rate, teacher_conditions = _teacher_rate(experiment, num_classes, experiment.teacher.size or pixels, cpu)
    student_rate, student_conditions = _student_rate(experiment, num_classes, pixels, cpu)
    return Rates(teacher_rate, student_rate, measured=Measured(teacher_conditions, student_conditions)).completed()


def _teacher_rate(experiment: Experiment, num_classes: int, pixels: int, cpu: bool) -> tuple[float, Conditions]:
    rows = experiment.cache.batch_size
    processes = Processes(resolve_precision(experiment.cache.precision, cpu)[0], cpu)
    try:
        channels = experiment.teacher.channels or experiment.data.channels or 3
        network = build_network(chosen_network(experiment.teacher), num_classes, channels).eval().requires_grad_(False)
        network.to(processes.device).to(memory_format=torch.channels_last)
        images_BCHW = _noise(rows, channels, pixels, processes.device)

        @torch.inference_mode()
        def forward() -> None:
            with processes.autocast():
                network(images_BCHW)

        log.info(f"measuring {experiment.teacher.architecture}, {rows} images of {pixels}×{pixels} at a time")
        return rows_per_second(forward, rows, processes.device), _conditions(rows, processes)
    finally:
        processes.end()


def _student_rate(experiment: Experiment, num_classes: int, pixels: int, cpu: bool) -> tuple[float, Conditions]:
    settings = experiment.student
    rows = settings.batch_size // (settings.accumulate or 1)  # as many as are computed at a time
    processes = Processes(resolve_precision(settings.precision, cpu)[0], cpu)
    try:
        setting = setting_without_data(experiment, num_classes)
        student = student_of(build_objective("ce", {}), setting)
        model, optimizer = processes.prepare(student, optimizer_of(settings, student))
        parameters = list(model.parameters())
        images_BCHW = _noise(rows, setting.student.channels, pixels, processes.device)
        labels = Labels(torch.arange(rows, device=processes.device) % num_classes)

        def step() -> None:
            terms = {"ce": cross_entropy(model(images_BCHW).task, labels)}
            backward(terms, {"ce": 1.0}, parameters, alignment=None, scale=processes.scale)
            optimizer.step()
            optimizer.zero_grad()

        log.info(f"measuring {settings.architecture}, a training step of {rows} images")
        return rows_per_second(step, rows, processes.device), _conditions(rows, processes)
    finally:
        processes.end()


def _noise(rows: int, channels: int, pixels: int, device: torch.device) -> torch.Tensor:
    images_BCHW = torch.rand(rows, channels, pixels, pixels, generator=torch.Generator().manual_seed(0))
    return images_BCHW.to(device).to(memory_format=torch.channels_last)


def _conditions(rows: int, processes: Processes) -> Conditions:
    return Conditions(rows, processes.precision, hardware(processes.device))


def rows_per_second(run: Callable[[], None], rows: int, device: torch.device) -> float:
    """Repeat `run` for `MEASURED_SECONDS` and return the rate of the median run.

    The first run includes set-up, so it counts only if it is the only run.
    """
    seconds: list[float] = []
    while not seconds or sum(seconds) < MEASURED_SECONDS:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return rows / median(seconds[1:] or seconds)
