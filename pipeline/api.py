"""For your own training loop: a reader of a cache's logits, and a data set whose items are image, label and logits.

Left out on purpose: loaders and orders, for which torch has `DataLoader` and samplers.
"""

import dataclasses
import logging
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.cache.manifest import signal_name
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.draws.schedules import SCHEDULES
from dhkd.data.errors import CacheMismatch, ConfigError, unknown
from dhkd.data.sources import SPLITS
from dhkd.data.stream.labels import labels_of_keys
from dhkd.data.stream.signals import Signals
from dhkd.pipeline.build.cache import LOGITS, cached_names, of_views, reader_of, signals_of
from dhkd.pipeline.build.checks import labels_of, require_cache
from dhkd.pipeline.build.data import images_of, normalization_of, recipe_of, renderer_of
from dhkd.pipeline.build.recorded import recorded_settings
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.drift import check_pixels
from dhkd.pipeline.launch import processes_here
from dhkd.pipeline.python.objects import Views, views_of
from dhkd.pipeline.python.own_data import Dataset as Own
from dhkd.pipeline.python.own_data import Split, settings_of_data
from dhkd.pipeline.python.settings import Settings, built
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["DataOptions", "DistillationSet", "LogitReader", "open_cache"]

log = logging.getLogger("dhkd")

# Any: image, label and, in the training split, the teacher's logits or a dictionary of its signals.
Item = tuple[Any, ...]

_CPU = torch.device("cpu")

NO_LABEL = -1  # the label of images that have none


class DistillationSet(Dataset[Item]):
    """A training set with a teacher's cached signals, or the test set that goes with it, all on the CPU.

    An item is (image, label, logits): the image is float32 (C, H, W), normalised as the student sees it, and the logits
    are float32 (K,). If the recipe mixes images, the label is the share of each class, float32 (K,), such as
    `torch.nn.functional.cross_entropy` takes. The item equals what `train-student` gives its student for the same view
    and index. After `set_epoch`, each sample shows the view that the schedule `student.view_schedule` and the `seed`
    choose for this epoch. The schedule `cycle` keeps one view of the cache in memory; the other schedules keep all
    views. `student.window` only affects the order, so it is ignored.

    The constructor takes the settings of a preset: `preset` and `overrides` are as on the command line. `from_cache`
    takes the settings that the cache records. `cache` is a path or URL. If your loop uses only the softmax of the
    logits at one temperature, pass this `temperature`; a cache with the codec top-k is then sufficient. If
    `temperature` is None, the cache must hold all logits. The cache is checked as in `train-student`, with the same
    errors; pixels must match unless `allow_drift` is set.

    The workers of a `DataLoader` must be forked. They share the set's memory and decode its photographs; `data.workers`
    is used only while the set is created. With `cycle`, workers must not outlive an epoch, so `persistent_workers` must
    be off. Each process of a distributed run creates its own set. Up to `data.allow_bad` files may be unreadable in
    each process and in each worker.
    """

    def __init__(
        self,
        preset: str | Path,
        cache: str | Path,
        *,
        overrides: Sequence[str] = (),
        data: DataOptions | None = None,
        temperature: float | None = None,
        allow_drift: bool = False,
    ) -> None:
        experiment, data = load_experiment(str(preset), overrides), data or DataOptions()
        reader = reader_of(str(cache), data)
        self._begin(experiment, data, reader)
        self._read(reader, {LOGITS: temperature}, allow_drift)
        self._only_logits = True

    @classmethod
    def from_cache(
        cls,
        cache: str | Path,
        *,
        split: Literal["train", "test"] = "train",
        signals: Sequence[str] | None = None,
        dataset: Own | None = None,
        test: Split | None = None,
        recipe: Views | None = None,
        settings: Settings | None = None,
        data: DataOptions | None = None,
        temperature: float | None = None,
        allow_drift: bool = False,
    ) -> "DistillationSet":
        """Build the set from the data set, recipe and teacher that the cache records.

        If `signals` is given, such as ["logits", "embedding"], the third part of an item is a dictionary from each
        signal's name to its values, float32. If it is None, the third part is the logits themselves. Items of the
        `split` "test" are (image, label), where the image is not augmented. An image without a label has the label -1.
        `dataset`, `test` and `recipe` are as in `cache_teacher`; they are needed if another process made the cache from
        objects, such as arrays or a function. `settings` has further settings by dotted key: {"student.view_schedule":
        "cycle", "student.teacher": "big", "seed": 1}.

        Raises `CacheMismatch` if the cache doesn't record its data set, and if the data set is not the one that was
        cached.
        """
        if split not in SPLITS:
            raise ConfigError(unknown("split", split, SPLITS))
        chosen, data = settings_of_data(dataset, test, data)
        given: dict[str, object] = {"data": chosen} if chosen else {}
        given |= {} if recipe is None else {"views": views_of(recipe)}
        reader, settings = reader_of(str(cache), data), settings or {}
        teacher = settings.get("student.teacher")
        tree = recorded_settings(
            reader.manifest, reader.location, teacher if isinstance(teacher, str) else None, known=given.keys()
        )
        tree |= {"description": "of a cache", "student": {"architecture": "none", "epochs": 1, "lr": 0.05}}
        made = cls.__new__(cls)
        made._begin(built(tree, {**given, **settings}), data, reader, split, labelled=False)
        if split == "train":
            made._read(
                reader, {name: temperature if name == LOGITS else None for name in signals or [LOGITS]}, allow_drift
            )
        made._only_logits = signals is None
        return made

    def _begin(
        self,
        experiment: Experiment,
        data: DataOptions,
        reader: LogitReader,
        split: str = "train",
        *,
        labelled: bool = True,
    ) -> None:
        """Load the images of a split and prepare to render them.

        If `labelled` is set, raises `ConfigError` for images without labels; otherwise such images have the label -1.
        """
        self._data = data
        self._experiment = experiment.model_copy(
            update={"student": experiment.student.model_copy(update={"window": None})}
        )
        images = images_of(experiment, split, data, lambda: reader.manifest.num_classes)
        recipe = recipe_of(experiment.views)
        has_labels = labelled or images.labels_N is not None
        self._labels_N = labels_of(images) if has_labels else torch.full((len(images),), NO_LABEL)
        recipe = recipe if split == "train" else recipe.at_test()
        self._recipe = recipe
        self._renderer = renderer_of(images, recipe, _CPU, dataclasses.replace(data, workers=0))
        self._normalize = normalization_of(experiment.student, images)
        self._signals: Signals | None = None
        self._made_by = os.getpid()
        self._epoch = multiprocessing.RawValue("q", 0)  # shared with workers, which may outlive an epoch
        self._prepared = 0
        self._view_N = torch.zeros(len(images), dtype=torch.int64)

    def _read(self, reader: LogitReader, needs: Mapping[str, float | None], allow_drift: bool) -> None:
        """Check that the cache fits the images, and prepare to read from it the signals in `needs`."""
        experiment, settings = self._experiment, self._experiment.student
        self.reader = of_views(reader, settings)
        names, lacking = cached_names(needs, self.reader, settings.teacher, "pass its temperature")
        if lacking:
            wanted = ", ".join(signal_name(settings.teacher, signal) for signal in lacking)
            raise CacheMismatch(
                f"cache at {self.reader.location}: expected the signal {wanted}, it holds"
                f" {', '.join(self.reader.manifest.signals)}; choose with --set student.teacher=NAME"
            )
        stored = [name for signals in names.values() for name in signals]
        require_cache(experiment, self.reader, self._renderer.images, self._recipe, stored, None, self._data)
        self.reader.require_present()
        log.info(check_pixels(self._renderer, self.reader, seed=experiment.seed, allow_drift=allow_drift))
        self._signals = signals_of(names, self.reader, settings, _CPU, processes_here())
        self._schedule, self._seed = SCHEDULES[settings.view_schedule], experiment.seed
        self._prepare(0)

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return self._renderer.images.num_classes

    def __len__(self) -> int:
        return len(self._renderer.images)

    def set_epoch(self, epoch: int) -> None:
        """Let all further items show their views of this epoch, counted from 0. Call this method before every epoch."""
        self._prepare(epoch)
        self._epoch.value = epoch

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return many items, rendered and gathered at once; a `DataLoader` calls this method."""
        index_B = torch.as_tensor(indices, dtype=torch.int64)
        if not 0 <= int(index_B.min()) <= int(index_B.max()) < len(self):
            raise IndexError(f"indices {int(index_B.min())} to {int(index_B.max())}: expected 0 to {len(self) - 1}")
        if self._prepared != self._epoch.value:  # in a worker that was forked in an earlier epoch
            self._prepare(self._epoch.value)
        view_B = self._view_N[index_B]
        (pixels_BCHW,) = self._renderer.render([(view_B, index_B)])
        parts: list[Iterable[Any]] = [
            self._normalize(pixels_BCHW),
            self._labels(view_B, index_B),
        ]
        if self._signals is not None:
            signals = self._signals.gather(view_B, index_B)
            if self._only_logits:
                parts.append(signals[LOGITS])
            else:
                parts.append([dict(zip(signals, row, strict=True)) for row in zip(*signals.values(), strict=True)])
        return list(zip(*parts, strict=True))

    def _labels(self, view_B: Tensor, index_B: Tensor) -> Iterable[Any]:
        """Return each item's label: a class or, if pictures are mixed, the share of each class."""
        if self._recipe.mixing is None or self._renderer.images.labels_N is None:
            return self._labels_N[index_B].tolist()
        return labels_of_keys(self._labels_N, self._renderer, view_B, index_B).shares(self.num_classes)

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "DistillationSet: expected to be forked, but it is about to be pickled; fork the workers with"
            " DataLoader(…, multiprocessing_context='fork'), and make a set in each process of a distributed run"
        )

    def _prepare(self, epoch: int) -> None:
        self._prepared = epoch
        if self._signals is None:
            return
        if not self._signals.in_memory and os.getpid() != self._made_by:
            raise ConfigError(
                f"DistillationSet: epoch {epoch} needs another view than the one that this worker was forked with; use"
                f" persistent_workers=False, or student.view_schedule=independent, which keeps all views in memory"
            )
        num_views, block_rows = self._signals.num_views, self.reader.plan.block_rows
        self._view_N = self._schedule(self._seed, epoch, len(self), num_views, block_rows)
        self._signals.prepare(epoch, self._view_N, torch.arange(len(self)))
