"""For your own training loop: a reader of a cache's logits, and a data set whose items are image, label and logits.

Left out on purpose: loaders and orders, for which torch has `DataLoader` and samplers.
"""

import dataclasses
import logging
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from dhkd.configs.load import load_experiment
from dhkd.data.cache.manifest import signal_name
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.draws.schedules import SCHEDULES
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.pipeline.build.cache import LOGITS, cached_names, of_views, reader_of, signals_of
from dhkd.pipeline.build.checks import labels_of, require_cache
from dhkd.pipeline.build.data import images_of, normalization_of, recipe_of, renderer_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.drift import check_pixels
from dhkd.pipeline.launch import processes_here
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["DataOptions", "DistillationSet", "LogitReader", "open_cache"]

log = logging.getLogger("dhkd")

Item = tuple[Tensor, int, Tensor]

_CPU = torch.device("cpu")


class DistillationSet(Dataset[Item]):
    """A preset's training set with a teacher's cached logits, all on the CPU.

    An item is (image, label, logits): the image is float32 (C, H, W), normalised as the student sees it, and the logits
    are float32 (K,). The item equals what `train-student` gives its student for the same view and index. After
    `set_epoch`, each sample shows the view that the preset's `student.view_schedule` and `seed` choose for this epoch.
    The schedule `cycle` keeps one view of the cache in memory; the other schedules keep all views. `student.window`
    only affects the order, so it is ignored.

    `preset` and `overrides` are as on the command line; `cache` is a path or URL. If your loop uses only the softmax of
    the logits at one temperature, pass this `temperature`; a cache with the codec top-k is then sufficient. If
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
        settings = experiment.student.model_copy(update={"window": None})
        self.reader = of_views(reader_of(str(cache), data), settings)
        images = images_of(experiment, "train", data, lambda: self.reader.manifest.num_classes)
        recipe, self._labels_N = recipe_of(experiment.views), labels_of(images)
        needs = {LOGITS: temperature}
        names, lacking = cached_names(needs, self.reader, settings.teacher, "pass its temperature")
        if lacking:
            wanted = signal_name(settings.teacher, LOGITS)
            raise CacheMismatch(
                f"cache at {self.reader.location}: expected the signal {wanted}, it holds"
                f" {', '.join(self.reader.manifest.signals)}; choose with --set student.teacher=NAME"
            )
        require_cache(experiment, self.reader, images, recipe, names["logits"], None, data)
        self.reader.require_present()
        self._renderer = renderer_of(images, recipe, _CPU, dataclasses.replace(data, workers=0))
        log.info(check_pixels(self._renderer, self.reader, seed=experiment.seed, allow_drift=allow_drift))
        self._normalize = normalization_of(settings, images)
        copies = processes_here()
        self._signals = signals_of(names, self.reader, settings, _CPU, copies)
        self._schedule, self._seed = SCHEDULES[settings.view_schedule], experiment.seed
        self._made_by = os.getpid()
        self._epoch = multiprocessing.RawValue("q", 0)  # shared with workers, which may outlive an epoch
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
        labels_B = self._labels_N[index_B]
        logits_BK = self._signals.gather(view_B, index_B)["logits"]
        return list(zip(self._normalize(pixels_BCHW), labels_B.tolist(), logits_BK, strict=True))

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "DistillationSet: expected to be forked, but it is about to be pickled; fork the workers with"
            " DataLoader(…, multiprocessing_context='fork'), and make a set in each process of a distributed run"
        )

    def _prepare(self, epoch: int) -> None:
        if not self._signals.in_memory and os.getpid() != self._made_by:
            raise ConfigError(
                f"DistillationSet: epoch {epoch} needs another view than the one that this worker was forked with; use"
                f" persistent_workers=False, or student.view_schedule=independent, which keeps all views in memory"
            )
        num_views, block_rows = self._signals.num_views, self.reader.plan.block_rows
        self._view_N = self._schedule(self._seed, epoch, len(self), num_views, block_rows)
        self._signals.prepare(epoch, self._view_N, torch.arange(len(self)))
        self._prepared = epoch
