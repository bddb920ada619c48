"""The facts of a finished run that its model card states, read from the run's folder and the places that it names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhkd.configs.load import experiment_of_run
from dhkd.configs.schema import Experiment, Training
from dhkd.data.cache.find import find
from dhkd.data.cache.manifest import signal_name
from dhkd.data.errors import DhkdError, RunMismatch, WeightsError
from dhkd.data.runs.config import read_config
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.measured import USUAL
from dhkd.data.runs.names import CLASSES, CODE, COMMAND_KEY, CONFIG, RESULT, SEED_KEY, SWEEP
from dhkd.data.runs.read import finished_of, read_runs
from dhkd.data.sources import SOURCES
from dhkd.data.storage.places import storage_of
from dhkd.pipeline.build.cache import LOGITS
from dhkd.pipeline.results import CacheSummary, TrainedRun
from dhkd.stages.report.statistics import Spread, spread


@dataclass(frozen=True)
class CardFacts:
    """What is known about a run, or about the average of its weights if `ema` is true.

    `imports` are the files and modules of users' code that it used. `seeds` is the accuracy over the runs of its sweep
    that differ in their seed alone; it is None if there are none. `teacher_top1` is in percent; it is None unless the
    cache is still at hand.
    """

    result: TrainedRun
    experiment: Experiment
    ema: bool
    classes: Sequence[str]
    imports: Sequence[str]
    seeds: Spread | None
    teacher_top1: float | None

    @property
    def training(self) -> Training:
        """The settings with which this network was trained."""
        return self.experiment.teacher if self.result.role == "teacher" else self.experiment.student

    @property
    def cache(self) -> CacheSummary | None:
        """The cache that the student was trained from."""
        return self.result.distillation.cache if self.result.distillation else None

    @property
    def top1(self) -> float:
        """Accuracy, or agreement with the teacher, in percent."""
        return self.result.last_top1 if not self.ema else _of_average(self.result.last_ema_top1)

    @property
    def top5(self) -> float:
        """The same for the five most probable classes."""
        return self.result.last_top5 if not self.ema else _of_average(self.result.last_ema_top5)

    @property
    def num_classes(self) -> int | None:
        """The number of classes, if it is recorded."""
        return len(self.classes) or (self.cache.classes if self.cache else None) or self.experiment.data.num_classes

    @property
    def tested_on(self) -> int | None:
        """The number of images on which accuracy was measured; None if it is unknown."""
        data = self.experiment.data
        if self.result.test_samples is not None or self.result.measured not in (None, USUAL, "test agreement"):
            return self.result.test_samples
        source = SOURCES.get(data.source)
        return data.test_limit or (source.size.tested if source and source.size else None)


def facts_of_run(run: Path, *, ema: bool) -> CardFacts:
    """Read the facts from the folder of a finished run, of its weights or, if `ema` is true, of their average.

    Raises `WeightsError` for a folder without a finished run, and `RunMismatch` for a damaged one.
    """
    result, config = _result_of(run), read_config(run) or {}
    recorded = config.get("run")
    origins = recorded.get(CODE) if isinstance(recorded, dict) else None
    if ema and result.last_ema_top1 is None:
        raise WeightsError(f"{run}: expected an average of the weights, the run kept none; leave out --ema")
    experiment = experiment_of_run(run)
    return CardFacts(
        result=result,
        experiment=experiment,
        ema=ema,
        classes=_lines(run / CLASSES),
        imports=sorted({name.rpartition(":")[0] for name in origins or ()}),
        seeds=_over_seeds(run, ema),
        teacher_top1=_teacher_top1(result, experiment),
    )


def _result_of(run: Path) -> TrainedRun:
    config = read_config(run)
    plain = RunFolder(run, config, resume=True).result if config is not None else None
    if plain is None:
        raise WeightsError(f"{run}: expected a finished run with {CONFIG} and {RESULT}, found none; finish it first")
    return TrainedRun.from_json(plain, str(run / RESULT))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunMismatch(f"{file}: expected the names of classes, one in each line, got something else") from error


def _over_seeds(run: Path, ema: bool) -> Spread | None:
    """Return the accuracy over the runs of a sweep that have the settings of this one but for the seed."""
    sweep = run.absolute().parent
    if not (sweep / SWEEP).is_file():
        return None
    finished = finished_of(read_runs(sweep))
    mine = next((other for other in finished if other.path.absolute() == run.absolute()), None)
    if mine is None or mine.settings.get(COMMAND_KEY) not in (None, "train-student"):
        return None

    # Any: settings are YAML.
    def without_seed(settings: Any) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if key != SEED_KEY}

    alike = [one.finished_result for one in finished if without_seed(one.settings) == without_seed(mine.settings)]
    figures = [one.last_ema_top1 if ema else one.last_top1 for one in alike]
    values = [figure for figure in figures if figure is not None]
    return spread(values) if len(values) > 1 else None


def _teacher_top1(result: TrainedRun, experiment: Experiment) -> float | None:
    """Return the teacher's accuracy that the run's cache records, if the cache is still where the run read it."""
    cache = result.distillation.cache if result.distillation else None
    if cache is None:
        return None
    try:
        stored = find(storage_of(cache.path))
    except DhkdError:
        return None
    logits = signal_name(experiment.student.teacher, LOGITS)
    if stored is None or logits not in stored.manifest.signals:
        return None
    if stored.manifest.digest_of([logits]) != cache.digest:
        return None
    recorded = stored.manifest.provenance.get(logits)
    top1 = recorded.get("teacher_test_top1") if isinstance(recorded, dict) else None
    return float(top1) if isinstance(top1, int | float) else None


def _of_average(figure: float | None) -> float:
    assert figure is not None, "checked before"
    return figure
