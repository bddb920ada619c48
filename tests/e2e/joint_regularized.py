"""A script for several processes: `joint_regularized.py OUT EPOCHS` trains a small student with all that regularizes.

Each process writes the hashes of its weights and of their average, and whether dropout drew what another process drew.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from dhkd.configs.load import load_experiment
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.unaugmented import AsTheyAre
from dhkd.data.render import Normalization
from dhkd.data.runs.folder import RunFolder
from dhkd.data.sources import load_source
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import NoSignals
from dhkd.pipeline.build.training import student_of
from dhkd.stages.models.evaluate import evaluate
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.processes import Processes
from dhkd.stages.train.ema import Ema
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.loop import Task, train
from dhkd.stages.train.objectives import combined_objective
from dhkd.stages.train.objectives.contract import Setting
from torch import Tensor, nn

SETTINGS = ("student=timm:resnet10t", "student.dropout=0.2", "student.drop_path=0.2", "student.checkpointing=true")


def main(out: Path, epochs: int) -> None:
    processes = Processes("float32", cpu=True)
    images, test = load_source("digits", "train", limit=60), load_source("digits", "test", limit=20)
    normalize = Normalization(images.mean, images.std)
    renderer = ResidentRenderer(images, CropFlip(padding=1, flip=False, seed=0), processes.device)
    objective, shapes = combined_objective("ce", {}), Shapes("timm:resnet10t", 10, (8, 8))
    training = load_experiment("digits", SETTINGS).student
    student = student_of(objective, Setting(shapes, shapes, images.labels_N, 0), training=training)
    stream = Stream(
        renderer,
        normalize,
        NoSignals(8),
        schedule="independent",
        seed=3,
        batch_size=20,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    dropped: list[int] = []
    head = student.backbone.head

    def remember(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if student.training:
            dropped.append(hash(tuple((given[0] == 0).flatten().tolist())))

    head.register_forward_pre_hook(remember)
    task = Task(
        student,
        torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9),
        objective,
        stream,
        partial(
            evaluate,
            renderer=ResidentRenderer(test, AsTheyAre(), processes.device),
            normalize=normalize,
            batch_size=20,
            processes=processes,
        ),
        learning_rate=LearningRate(0.01, "constant", epochs=4),
        epochs=epochs,
        seed=0,
        clip_norm=None,
        run=RunFolder(out, {}, resume=True),
        label_smoothing=0.1,
        ema=(ema := Ema(0.8, every=2)),
    )
    figures = train(task, processes)
    with ema.in_place_of_weights(student.backbone):
        average = weights_sha256(student.backbone)
    result = {"weights": weights_sha256(student), "average": average, "top1": figures.last_ema_top1, "drops": dropped}
    (out / f"rank{processes.rank}.json").write_text(json.dumps(result))
    processes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
