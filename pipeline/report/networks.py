"""Forward passes of finished runs' networks, with their last weights or with weights that were kept over training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dhkd.configs.load import experiment_of_run
from dhkd.configs.schema import Experiment
from dhkd.data.cache.manifest import signal_name
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.data.images.base import Images
from dhkd.data.render import Normalization, Renderer
from dhkd.data.runs.names import CACHE_KEY
from dhkd.data.runs.read import Run, kept_weights
from dhkd.pipeline.build.cache import LOGITS, cached_names, digest_for, reader_of
from dhkd.pipeline.build.checks import labels_of, require_cache
from dhkd.pipeline.build.code import code_of_data, require_code_of_run
from dhkd.pipeline.build.data import channels_of, images_of, normalization_of, recipe_of, renderer_of
from dhkd.pipeline.build.networks import architecture_of, chosen_network, trained_network
from dhkd.pipeline.build.training import objective_of, setting_of, student_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.report.alike import teacher_of, test_sets_of
from dhkd.pipeline.report.rows import ConflictRow
from dhkd.stages.models import Network
from dhkd.stages.models.signals import signals_of_outputs
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import read_weights
from dhkd.stages.processes import Processes
from dhkd.stages.report import conflict as forces
from dhkd.stages.report.figures import Float
from dhkd.stages.train.objectives.losses import binary_kl, binary_kl_norm
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 500


@dataclass(frozen=True)
class Outputs:
    """A network's outputs for test images, the images' labels, and the rows of the network's classifier.

    If the images have no labels, `labels_N` raises `ConfigError`. Shapes are given for N images, K classes and features
    of width D.
    """

    logits_NK: Float
    features_ND: Float
    images: Images
    index_N: Tensor
    classifier_KD: Float

    @property
    def labels_N(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """The labels of the images, int64 (N,). Raises `ConfigError` if they have none."""
        labels_N: NDArray[np.int64] = labels_of(self.images)[self.index_N].numpy()
        return labels_N


def outputs_of_runs(
    finished: Sequence[Run], teacher: Path | None, samples: int | None, data: DataOptions, cpu: bool
) -> Iterator[tuple[Run | None, Outputs]]:
    """Yield (None, the teacher's outputs) if there is a `teacher`, then (run, the run's outputs) for each run.

    Outputs are for the first `samples` test images, or for the whole test set if `samples` is None. Raises
    `RunMismatch` if the runs have different test images, or other teachers than this one.
    """
    processes = Processes("float32", cpu)
    try:
        experiments = {run.name: experiment_of_run(run.path) for run in finished}
        for run in finished:
            require_code_of_run(run.path, code_of_data(experiments[run.name]))
        tests = test_sets_of(experiments, processes.device, data, {run.name: run.path for run in finished})
        if teacher is not None:
            network, normalize, test = teacher_of(finished, experiments, tests, teacher, data)
            yield None, _outputs_of(network.to(processes.device), normalize, test, samples)
        for run in finished:
            experiment, test = experiments[run.name], tests[run.name]
            # An objective may have built another network than the settings name; the weights record which.
            architecture = architecture_of(run.path, "student", chosen_network(experiment.student))
            channels = channels_of(experiment.student, test.images)
            network = trained_network(architecture, test.images.num_classes, run.path, "student", channels).network
            normalize = normalization_of(experiment.student, test.images)
            yield run, _outputs_of(network.to(processes.device), normalize, test, samples)
    finally:
        processes.end()


@torch.no_grad()
def _outputs_of(network: Network, normalize: Normalization, test: Renderer, samples: int | None) -> Outputs:
    index_N = torch.arange(min(samples or len(test.images), len(test.images)))
    batches = [network.eval().outputs(normalize(pixels)) for pixels in test.render(_keys(index_N))]
    signals = [signals_of_outputs(network, outputs, ("logits", "embedding")) for outputs in batches]
    logits, features = (
        torch.cat([signal[name] for signal in signals]).double().cpu().numpy() for name in ("logits", "embedding")
    )
    return Outputs(logits, features, test.images, index_N, _classifier_of(network.head).double().cpu().numpy())


def forces_over_training(
    kept: Sequence[Run],
    kind_of: Mapping[str, str],
    cache: str,
    samples: int,
    temperature: float,
    data: DataOptions,
    cpu: bool,
) -> Iterator[ConflictRow]:
    """Measure how two losses act on the classifier and the features of runs that kept weights over training.

    The losses are cross-entropy and BinaryKL. `kind_of` maps a run's name to the name of its kind, i.e. all runs that
    differ only in their seed. The forces, i.e. negative gradients, are computed for the first `samples` training
    samples in view 0, in evaluation mode. Raises `CacheMismatch` if a run was trained from another cache, if it was
    trained without a cache and its data differ from the cache's data, or if the cache lacks raw logits.
    """
    processes = Processes("float32", cpu)
    try:
        reader = reader_of(cache, data)
        index_N = torch.arange(min(samples, reader.plan.num_samples))
        for run in kept:
            subject = _subject(run, reader, data, processes)
            values = [torch.from_numpy(reader.read(0, index_N.numpy(), name)) for name in subject.logits]
            teacher_NK = torch.stack(values).mean(dim=0).to(processes.device)
            for epochs, file in kept_weights(run.path).items():
                subject.student.load_state_dict(read_weights(file))
                subject.student.eval()
                for on, acting in _forces(subject, index_N, teacher_NK, temperature):
                    yield _row(kind_of[run.name], run.seed, epochs, on, acting)
    finally:
        processes.end()


@dataclass(frozen=True)
class _Subject:
    """A run's experiment, a student to load the run's weights into, and the run's training images.

    `logits` names the cached logits of the run's teacher, or of all teachers if it learned from their mean.
    """

    experiment: Experiment
    logits: Sequence[str]
    student: Student
    renderer: Renderer
    normalize: Normalization


def _subject(run: Run, reader: LogitReader, data: DataOptions, processes: Processes) -> _Subject:
    experiment = experiment_of_run(run.path)
    require_code_of_run(run.path)
    trained_from, digest = run.settings.get(CACHE_KEY), digest_for(reader, experiment.student.teacher)
    if trained_from not in (None, digest):
        raise CacheMismatch(
            f"cache at {reader.location}: expected {trained_from[:12]}, from which {run.name} was trained, got"
            f" {digest[:12]}; give that one"
        )
    recipe = recipe_of(experiment.views)
    if recipe.mixing is not None:
        raise ConfigError(
            f"report conflict: expected runs on images of one class each, got {run.name}, whose views.mix mixes images;"
            f" choose other runs"
        )
    images = images_of(experiment, "train", data, lambda: reader.manifest.num_classes)
    names, lacking = cached_names({LOGITS: None}, reader, experiment.student.teacher, "give another cache")
    if lacking:
        raise CacheMismatch(
            f"cache at {reader.location}: expected the signal {signal_name(experiment.student.teacher, LOGITS)}, of the"
            f" teacher that {run.name} names, it holds {', '.join(reader.manifest.signals)}; give a cache of that one"
        )
    require_cache(experiment, reader, images, recipe, names[LOGITS], None, data)
    objective = objective_of(experiment)
    setting = setting_of(experiment, experiment.student, images, objective)
    student = student_of(objective, setting).to(processes.device)
    renderer = renderer_of(images, recipe, processes.device, data)
    return _Subject(experiment, names[LOGITS], student, renderer, normalization_of(experiment.student, images))


@dataclass(frozen=True)
class _Acting:
    """Both losses' forces on the same rows and how they agree.

    `binary_kl` is None if the pull and push of BinaryKL's force are unknown.
    """

    agreement: forces.Agreement
    ce: forces.Forces
    binary_kl: forces.Forces | None


def _forces(
    subject: _Subject, index_N: Tensor, teacher_NK: Tensor, temperature: float
) -> Iterator[tuple[str, _Acting]]:
    """Yield the forces on the classifier, if the losses share a classifier, and the forces on the features.

    If BinaryKL has a separate head, BinaryKL does not act on the classifier. If that head is not linear, BinaryKL's
    force on the features is known from autograd, but the pull and push of this force are unknown.
    """
    student = subject.student
    labels_N = labels_of(subject.renderer.images)[index_N].to(teacher_NK.device)
    features_ND = _features(subject, index_N).requires_grad_()
    head, auxiliary = student.backbone.head, student.auxiliary
    logits_NK = head(features_ND)
    distill_NK = logits_NK if auxiliary is None else auxiliary(features_ND)
    plain = subject.experiment.objective == "binary-kl"
    losses = (
        cross_entropy(logits_NK, labels_N),
        (binary_kl if plain else binary_kl_norm)(distill_NK, teacher_NK, temperature),
    )
    ce_sum, kl_sum = (_total(-torch.autograd.grad(loss, features_ND, retain_graph=True)[0]) for loss in losses)
    residual_of = forces.binary_kl_residual if plain else forces.binary_kl_norm_residual
    with torch.no_grad():
        ce_NK = forces.cross_entropy_residual(logits_NK, labels_N)
        kl_NK = residual_of(distill_NK, teacher_NK, temperature)
        if auxiliary is None:
            ce, kl = (forces.on_classifier(residual_NK, features_ND, labels_N) for residual_NK in (ce_NK, kl_NK))
            yield "classifier", _Acting(forces.conflict(ce, kl), ce, kl)
        distilling = auxiliary or head
        ce = forces.on_features(ce_NK, _classifier_of(head), labels_N)
        linear = isinstance(distilling, nn.Linear)
        parts = forces.on_features(kl_NK, _classifier_of(distilling), labels_N) if linear else None
        yield "features", _Acting(forces.conflict(ce_sum, kl_sum), ce, parts)


@torch.no_grad()
def _features(subject: _Subject, index_N: Tensor) -> Tensor:
    """Compute the features of these samples, (N, D)."""
    batches = subject.renderer.render(_keys(index_N))
    backbone = subject.student.backbone
    outputs = [backbone.outputs(subject.normalize(pixels)) for pixels in batches]
    return torch.cat([signals_of_outputs(backbone, one, ["embedding"])["embedding"].float() for one in outputs])


def _total(force_ND: Tensor) -> forces.Forces:
    """Wrap a total force whose pull and push are unknown; the result's `pull` holds all of the force."""
    return forces.Forces(force_ND, 0 * force_ND)


def _row(kind: str, seed: int, epochs: int, on: str, acting: _Acting) -> ConflictRow:
    ce, kl = acting.ce, acting.binary_kl
    return ConflictRow(
        kind,
        seed,
        epochs,
        on,
        acting.agreement.cosine,
        acting.agreement.conflicting,
        ce_pull=_mean_norm(ce.pull),
        ce_push=_mean_norm(ce.push),
        binary_kl_pull=None if kl is None else _mean_norm(kl.pull),
        binary_kl_push=None if kl is None else _mean_norm(kl.push),
    )


def _mean_norm(part: Tensor) -> float:
    return float(part.norm(dim=1).mean())


def _keys(index_N: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the keys (view, index) of these samples in view 0, in batches."""
    return [(torch.zeros_like(index_B), index_B) for index_B in torch.split(index_N, BATCH)]


def _classifier_of(head: nn.Module) -> Tensor:
    """Return the rows of a linear classifier, (K, D); raise `ConfigError` if `head` is not linear."""
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"expected networks whose classifier is linear, got {type(head).__name__}")
    return head.weight.detach()
