"""What becomes of a trained network: its test accuracy, its export."""

from pathlib import Path
from typing import Any

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.pipeline.build.data import normalization_of, test_renderer_of
from dhkd.pipeline.build.networks import architecture_of, trained_network, weights_file
from dhkd.pipeline.caching import EVALUATION_BATCH, unreadable
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.environment import versions
from dhkd.stages.models import count_parameters
from dhkd.stages.models.evaluate import evaluate
from dhkd.stages.models.weights import read_metadata, save_weights, weights_sha256
from dhkd.stages.processes import Processes, resolve_precision


def evaluate_network(
    experiment: Experiment, weights: Path, role: str, *, data: DataOptions, cpu: bool = False
) -> dict[str, Any]:
    """Test accuracy of the weights at `weights` (a run's folder or a file) in the preset's teacher or student."""
    settings = experiment.teacher if role == "teacher" else experiment.student
    processes = Processes(resolve_precision(settings.precision, cpu), cpu)
    try:
        test = test_renderer_of(experiment, processes.device, data)
        architecture = architecture_of(weights, role, settings.architecture)
        trained = trained_network(architecture, test.images.num_classes, weights, role)
        trained.network.to(processes.device).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            accuracy = evaluate(
                trained.network,
                test,
                normalization_of(settings, test.images, trained.mean_std),
                batch_size=EVALUATION_BATCH,
                processes=processes,
            )
        return {
            "architecture": architecture,
            "weights": trained.origin,
            "sha256": weights_sha256(trained.network),
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "samples": len(test.images),
            **unreadable(test, processes),
            "precision": processes.precision,
            "versions": versions(),
        }
    finally:
        processes.end()


def export(run: Path, out: Path) -> dict[str, Any]:
    """Write a finished run's network, without its auxiliary head, as one safetensors file; what it holds."""
    if out.exists():
        raise ConfigError(f"--out {out}: expected a new file, it exists; choose another or remove it")
    file = weights_file(run, "student")
    facts = read_metadata(file)
    lacking = [key for key in ("architecture", "num_classes") if key not in facts]
    if lacking:
        raise WeightsError(f"{file}: expected weights written by dhkd, it does not say its {' and '.join(lacking)}")
    network = trained_network(facts["architecture"], int(facts["num_classes"]), file, "student").network
    save_weights(out, network, facts)
    return {
        "file": str(out),
        **facts,
        "parameters": count_parameters(network),
        "sha256": weights_sha256(network),
    }
