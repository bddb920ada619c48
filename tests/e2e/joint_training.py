"""A script for several processes: `joint_training.py CACHE OUT NAME:BATCH_SIZE[:PARTS] …` trains a student for each.

Batch norm is frozen, so that several processes compute what one does. Each process writes the weights it ends with.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from dhkd.data.cache.reader import open_cache
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.unaugmented import AsTheyAre
from dhkd.data.render import Normalization
from dhkd.data.runs.folder import RunFolder
from dhkd.data.sources import load_source
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import ResidentSignals
from dhkd.pipeline.build.training import student_of
from dhkd.stages.models import build_network
from dhkd.stages.models.evaluate import evaluate
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.loop import Task, train
from dhkd.stages.train.objectives import combined_objective
from dhkd.stages.train.objectives.contract import Setting
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

OPTIONS = {"dhkd": {"head": "linear"}, "crd": {"negatives": 50}}


def freeze(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        freeze(child)


def main(cache: Path, out: Path, cases: list[str]) -> None:
    processes = Processes("float32", cpu=True)
    images, test = load_source("digits", "train", limit=150), load_source("digits", "test")
    test_renderer = ResidentRenderer(test, AsTheyAre(), processes.device)
    normalize = Normalization(images.mean, images.std)
    renderer = ResidentRenderer(images, CropFlip(padding=1, flip=False, seed=0), processes.device)
    signals = ResidentSignals(open_cache(cache), {"logits": ["logits"]}, processes.device)
    torch.manual_seed(7)
    teacher = Teacher(build_network("resnet8", 10), normalize, processes)
    for case in cases:
        name, batch_size, *parts = case.split(":")
        objective = combined_objective(name, OPTIONS)
        shapes = Shapes("resnet8", 10, (8, 8))
        setting = Setting(shapes, shapes, images.labels_N, 0)
        live = [need for need in objective.needs(setting) if need != "logits"]
        # Five small steps where rows are related to one another: there the last digit, which may differ (it does
        # between one and two threads), grows fast from step to step.
        rate, epochs = (0.001, 1) if objective.couples_rows else (0.01, 2)
        student = student_of(objective, setting)
        freeze(student.backbone)
        stream = Stream(
            renderer,
            normalize,
            signals,
            schedule="independent",
            seed=3,
            batch_size=int(batch_size),
            live=partial(teacher.signals, names=live) if live else None,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        task = Task(
            student,
            torch.optim.SGD(student.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4),
            objective,
            stream,
            partial(evaluate, renderer=test_renderer, normalize=normalize, batch_size=50, processes=processes),
            learning_rate=LearningRate(rate, "constant", epochs=epochs),
            epochs=epochs,
            seed=0,
            clip_norm=None,
            run=RunFolder(out / case, {}, resume=True),
            accumulate=int(parts[0]) if parts else 1,
        )
        train(task, processes)
        torch.save(student.state_dict(), out / case / f"rank{processes.rank}.pt")
    processes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
