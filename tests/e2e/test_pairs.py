"""Every method takes a step on published pairs, whose networks have all kinds of shapes."""

from dataclasses import replace

import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.data.render import Normalization
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.pipeline.build.training import student_of
from dhkd.pipeline.sizes import setting_without_data
from dhkd.stages.models import build_network
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.gradients import backward
from dhkd.stages.train.objectives import OBJECTIVES, combined_objective

from tests.few import few

# Networks of all families, with equal and different resolutions, widths and tails.
PAIRS = few(
    [
        "cifar100/vgg13-MobileNetV2",
        "cifar100/wrn_40_2-ShuffleV1",
        "cifar100/resnet32x4-ShuffleV2",
        "cifar100/ResNet50-MobileNetV2",
        "imagenet/resnet34-resnet18",
    ],
    ["cifar100/wrn_40_2-ShuffleV1"],
)
CLASSES = 7


@pytest.mark.slow
@pytest.mark.parametrize("preset", PAIRS)
def test_every_method_takes_a_step_on_a_pair(preset: str, processes: Processes) -> None:
    """With the preset's options. ImageNet's networks get 64 pixels, since they shrink images 32 times."""
    pixels = 64 if preset.startswith("imagenet/") else 32
    experiment = load_experiment(preset, [f"views.size={pixels}"] if pixels == 64 else [])
    torch.manual_seed(0)
    network = build_network(experiment.teacher.architecture, CLASSES).eval()
    teacher = Teacher(network, Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), processes)
    images_BCHW = torch.randint(256, (4, 3, pixels, pixels), dtype=torch.uint8)
    index_B, labels_B = torch.arange(4), torch.arange(4) % 3
    for name in (*sorted(set(OBJECTIVES) - {"ce", "label-smoothing", "mse", "binary-kl"}), "dhkd + reviewkd"):
        options = {**experiment.objectives, "crd": {"negatives": 8}}
        objective = combined_objective(name, options)
        plain = setting_without_data(experiment, CLASSES)
        plain = replace(plain, teacher_network=network, labels_N=labels_B)
        setting = replace(plain, student=plain.student.of(objective.architecture(plain)))
        signals = teacher.signals(images_BCHW, objective.needs(setting))
        for need, signal in signals.items():
            assert signal.shape[1:] == setting.teacher.row(need), f"{name}: {need}"
        student = student_of(objective, setting)
        batch = Batch(0, torch.zeros(4, dtype=torch.int64), index_B, images_BCHW / 255, Labels(labels_B), signals, 4)
        terms = objective.terms(student(batch.images_BCHW, batch), batch.labels, signals)
        assert all(bool(torch.isfinite(term)) for term in terms.values()), f"{name}: {terms}"
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        backward(terms, objective.weights(0), trained, alignment=objective.alignment)
        unreached = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
        assert unreached == [], f"{name}: DDP would wait for them"
        assert all(bool(torch.isfinite(p.grad).all()) for p in trained if p.grad is not None), name
