"""What the networks of runs say: run over images again, with the weights at the end or those kept over training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.data.render import Normalization, Renderer
from dhkd.data.runs.folder import kept_weights
from dhkd.data.runs.read import Run
from dhkd.pipeline.build.cache import LOGITS, digest_for, reader_of
from dhkd.pipeline.build.checks import require_cache
from dhkd.pipeline.build.data import images_of, normalization_of, recipe_of, renderer_of, test_renderer_of
from dhkd.pipeline.build.networks import trained_network
from dhkd.pipeline.build.training import objective_of, setting_of, student_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models import Network
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import read_weights
from dhkd.stages.processes import Processes
from dhkd.stages.report import conflict as forces
from dhkd.stages.train.objectives.losses import binary_kl, binary_kl_norm
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 500


@dataclass(frozen=True)
class Outputs:
    """What a network says of test images, and the rows of its classifier."""

    logits_NK: np.ndarray[Any, np.dtype[np.float64]]
    features_ND: np.ndarray[Any, np.dtype[np.float64]]
    labels_N: np.ndarray[Any, np.dtype[np.int64]]
    classifier_KD: np.ndarray[Any, np.dtype[np.float64]]


def outputs_of_runs(
    finished: Sequence[Run], teacher: Path | None, samples: int | None, data: DataOptions, cpu: bool
) -> Iterator[tuple[Run | None, Outputs]]:
    """The teacher's, as None's, then each run's, on the test set or its first `samples` images."""
    processes = Processes("float32", cpu)
    try:
        first = load_experiment(str(finished[0].path))
        test = test_renderer_of(first, processes.device, data)
        classes = test.images.num_classes
        if teacher is not None:
            trained = trained_network(first.teacher.architecture, classes, teacher, "teacher")
            normalize = normalization_of(first.teacher, test.images, trained.mean_std)
            yield None, _outputs_of(trained.network.to(processes.device), normalize, test, samples)
        for run in finished:
            experiment = load_experiment(str(run.path))
            assert run.result is not None  # its architecture is the student's own, or what an objective made of it
            network = trained_network(str(run.result["architecture"]), classes, run.path, "student").network
            normalize = normalization_of(experiment.student, test.images)
            yield run, _outputs_of(network.to(processes.device), normalize, test, samples)
    finally:
        processes.end()


@torch.no_grad()
def _outputs_of(network: Network, normalize: Normalization, test: Renderer, samples: int | None) -> Outputs:
    index_N = torch.arange(min(samples or len(test.images), len(test.images)))
    found = [network.eval().outputs(normalize(pixels)) for pixels in test.render(_keys(index_N))]
    logits = torch.cat([outputs.logits for outputs in found]).double().cpu().numpy()
    features = torch.cat([outputs.embedding for outputs in found]).double().cpu().numpy()
    labels = test.images.labels_N[index_N].numpy()
    return Outputs(logits, features, labels, _classifier_of(network.head).double().cpu().numpy())


def forces_over_training(
    kept: Sequence[Run], cache: str, samples: int, temperature: float, data: DataOptions, cpu: bool
) -> Iterator[tuple[Run, int, dict[str, Any]]]:
    """Each run, number of epochs, and what the two losses do to classifier and features with the weights kept then.

    Of the first `samples` training samples in view 0, in evaluation mode. Raises `CacheMismatch` where a run was
    trained from another cache, or one without a cache on other data.
    """
    processes = Processes("float32", cpu)
    try:
        reader = reader_of(cache, data)
        index_N = torch.arange(min(samples, reader.plan.num_samples))
        teacher_NK = torch.from_numpy(reader.read(0, index_N.numpy())).to(processes.device)
        for run in kept:
            subject = _subject(run, reader, data, processes)
            for epochs, file in kept_weights(run.path).items():
                subject.student.load_state_dict(read_weights(file))
                subject.student.eval()
                for row in _forces(subject, index_N, teacher_NK, temperature):
                    yield run, epochs, row
    finally:
        processes.end()


@dataclass(frozen=True)
class _Subject:
    """A run's experiment, its student to load weights into, and what that was trained on."""

    experiment: Experiment
    student: Student
    renderer: Renderer
    normalize: Normalization


def _subject(run: Run, reader: LogitReader, data: DataOptions, processes: Processes) -> _Subject:
    experiment = load_experiment(str(run.path))
    trained_from, digest = run.settings.get("run.cache"), digest_for(reader, experiment.student.teacher)
    if trained_from not in (None, digest):
        raise CacheMismatch(
            f"cache at {reader.location}: expected {trained_from[:12]}, from which {run.name} was trained, got"
            f" {digest[:12]}; give that one"
        )
    images, recipe = images_of(experiment, "train", data), recipe_of(experiment.views)
    require_cache(experiment, reader, images, recipe, [LOGITS], None)
    objective = objective_of(experiment)
    setting = setting_of(experiment, experiment.student, images, objective)
    student = student_of(objective, setting).to(processes.device)
    renderer = renderer_of(images, recipe, processes.device, data)
    return _Subject(experiment, student, renderer, normalization_of(experiment.student, images))


def _forces(subject: _Subject, index_N: Tensor, teacher_NK: Tensor, temperature: float) -> Iterator[dict[str, Any]]:
    """On classifier and on features: cosine, share of conflicting rows, mean norms of each loss's pull and push.

    Where BinaryKL has a head of its own that is not linear, its parts are not told apart, and none of its forces are on
    the classifier.
    """
    student = subject.student
    labels_N = subject.renderer.images.labels_N[index_N].to(teacher_NK.device)
    with torch.no_grad():
        found = [
            student.backbone.outputs(subject.normalize(pixels)) for pixels in subject.renderer.render(_keys(index_N))
        ]
    features_ND = torch.cat([outputs.embedding.float() for outputs in found]).requires_grad_()
    head, auxiliary = student.backbone.head, student.auxiliary
    logits_NK = head(features_ND)
    distill_NK = logits_NK if auxiliary is None else auxiliary(features_ND)
    plain = subject.experiment.objective == "binary-kl"
    loss = (binary_kl if plain else binary_kl_norm)(distill_NK, teacher_NK, temperature)
    of_ce, of_kl = (
        torch.autograd.grad(each, features_ND, retain_graph=True)[0]
        for each in (cross_entropy(logits_NK, labels_N), loss)
    )
    residual_of = forces.binary_kl_residual if plain else forces.binary_kl_norm_residual
    with torch.no_grad():
        ce_NK = forces.cross_entropy_residual(logits_NK, labels_N)
        kl_NK = residual_of(distill_NK, teacher_NK, temperature)
        if auxiliary is None:
            ce, kl = (forces.on_classifier(each, features_ND, labels_N) for each in (ce_NK, kl_NK))
            yield {"on": "classifier", **forces.conflict(ce, kl), **_norms("ce", ce), **_norms("binary_kl", kl)}
        distilling = auxiliary or head
        ce = forces.on_features(ce_NK, _classifier_of(head), labels_N)
        known = (
            forces.on_features(kl_NK, _classifier_of(distilling), labels_N)
            if isinstance(distilling, nn.Linear)
            else None
        )
        agreement = forces.conflict(forces.Forces(-of_ce, 0 * of_ce), forces.Forces(-of_kl, 0 * of_kl))
        yield {"on": "features", **agreement, **_norms("ce", ce), **_norms("binary_kl", known)}


def _norms(loss: str, found: forces.Forces | None) -> dict[str, float | None]:
    parts = (None, None) if found is None else (found.pull, found.push)
    norms = [None if part is None else float(part.norm(dim=1).mean()) for part in parts]
    return dict(zip((f"{loss}_pull", f"{loss}_push"), norms, strict=True))


def _keys(index_N: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches of these samples in view 0."""
    return [(torch.zeros_like(index_B), index_B) for index_B in torch.split(index_N, BATCH)]


def _classifier_of(head: nn.Module) -> Tensor:
    """The classifier's rows, (K, D)."""
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"expected networks whose classifier is linear, got {type(head).__name__}")
    return head.weight.detach()
