"""Test accuracy of networks during training and caching, and of the weights given to `dhkd evaluate`."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.render import Normalization, Renderer
from dhkd.pipeline.build.code import code_facts, code_of_data, code_of_network, require_code_of_run
from dhkd.pipeline.build.data import normalization_of, plain_identity, test_renderer_of
from dhkd.pipeline.build.networks import architecture_of, chosen_network, trained_network
from dhkd.pipeline.chance import chance_fault, order_fault
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.environment import processes_for, unreadable_files, versions
from dhkd.pipeline.results import Evaluated
from dhkd.stages.agreement import require_agreement
from dhkd.stages.models.evaluate import Accuracy, evaluate
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.processes import Processes
from torch import nn

log = logging.getLogger("dhkd")

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Evaluator:
    """A test set, and the normalisation of the networks that are evaluated on it."""

    renderer: Renderer
    normalize: Normalization
    processes: Processes

    def __call__(self, network: nn.Module) -> Accuracy:
        """Return the accuracy of a network, which must be in eval mode and on the device."""
        return evaluate(network, self.renderer, self.normalize, batch_size=EVALUATION_BATCH, processes=self.processes)


def evaluate_network(
    experiment: Experiment, weights: Path, role: str, *, data: DataOptions, cpu: bool = False
) -> Evaluated:
    """Measure the test accuracy of the preset's teacher or student; `weights` is a run folder or a weights file."""
    settings = experiment.teacher if role == "teacher" else experiment.student
    with processes_for(settings.precision, cpu=cpu) as processes:
        test = test_renderer_of(experiment, processes.device, data)
        architecture = architecture_of(weights, role, chosen_network(settings))
        code = {**code_of_network(architecture.name), **code_of_data(experiment)}
        if weights.is_dir():
            require_code_of_run(weights, code)
        trained = trained_network(architecture, test.images.num_classes, weights, role)
        network = trained.network.to(processes.device).to(memory_format=torch.channels_last)
        told = {"weights": weights_sha256(network), **code_facts(code)}
        require_agreement(processes, lambda: {"data": plain_identity(test.images), **told})
        accuracy_of = Evaluator(test, normalization_of(settings, test.images, trained.mean_std), processes)
        with torch.inference_mode():
            accuracy = accuracy_of(network)
        fault = order_fault(accuracy, test.images) or chance_fault(accuracy, test.images)
        if fault and processes.is_first:
            log.warning("%s: %s", role, fault)
        return Evaluated(
            architecture=architecture.name,
            weights=trained.origin,
            sha256=weights_sha256(network),
            top1=accuracy.top1,
            top5=accuracy.top5,
            samples=len(test.images),
            unreadable_files=unreadable_files(test, processes),
            precision=processes.precision,
            versions=versions(),
        )
