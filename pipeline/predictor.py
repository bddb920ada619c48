"""Opens a trained network, in a run's folder or in a file of any format that `export` writes, for prediction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.pipeline.build.code import code_of_network, require_code_of_run
from dhkd.pipeline.build.described import (
    Described,
    described,
    experiment_of,
    num_classes_in,
    preparation_by_settings,
    require_described,
    role_of,
)
from dhkd.pipeline.build.networks import file_of_average, recorded_architecture, trained_network, weights_file
from dhkd.stages.models.network import Network
from dhkd.stages.models.onnx_file import open_onnx
from dhkd.stages.models.program_file import open_program
from dhkd.stages.models.weights import read_metadata
from dhkd.stages.processes import Processes
from torch import Tensor

WEIGHTS, ONNX, PROGRAM = ".safetensors", ".onnx", ".pt2"
FORMATS = (WEIGHTS, ONNX, PROGRAM)  # of files, by ending


@dataclass(frozen=True)
class Predictor:
    """A trained network and what its file says about it.

    `logits_of` computes the logits (B, K), float32, of pixels, uint8 (B, C, H, W), which it normalises. `experiment`
    has the settings of the run, or is None for a file.
    """

    origin: Path
    facts: Described
    logits_of: Callable[[Tensor], Tensor]
    role: str
    experiment: Experiment | None


@dataclass(frozen=True)
class Loaded:
    """The network of a weights file, on the CPU and in eval mode, with what the file and its run say about it."""

    file: Path
    metadata: Mapping[str, str]
    network: Network
    role: str
    experiment: Experiment | None

    @property
    def facts(self) -> Described:
        """The network as the file describes it. Raises `WeightsError` if it doesn't say how images are normalised.

        The preparation is that of the run's settings if the file, of an earlier version, doesn't record it.
        """
        facts = described(self.metadata, str(self.file))
        by_settings = self.experiment and preparation_by_settings(self.experiment, self.role)
        return facts.prepared(by_settings) if by_settings and facts.preparation is None else facts


def loaded(path: Path, *, ema: bool = False) -> Loaded:
    """Load the network of a finished run or of a weights file; if `ema` is true, with the average of its weights.

    Raises `WeightsError` for a file that doesn't say which network it is of, and `RunMismatch` if the user's code of a
    run has changed.
    """
    file = file_of_average(path) if ema else weights_file(path, "student")
    if file.suffix in (ONNX, PROGRAM):
        raise ConfigError(f"{file}: expected a run's folder or a {WEIGHTS} file, got a file that export wrote")
    experiment, metadata = experiment_of(path), read_metadata(file)
    require_described(metadata, str(file))
    architecture = recorded_architecture(file)
    assert architecture is not None, "described requires it"
    if experiment is not None:
        require_code_of_run(path, code_of_network(architecture.name))
    network = trained_network(architecture, num_classes_in(metadata, str(file)), file, "student").network
    return Loaded(file, metadata, network, role_of(file), experiment)


def predictor_of(path: Path, processes: Processes, *, ema: bool = False, allow_code: bool = False) -> Predictor:
    """Open a run's folder or a file; `ema` is as in `loaded`, and `allow_code` as in `open_program`.

    An ONNX file runs on the CPU. Raises `WeightsError` for a file of another kind, or without what prediction needs.
    """
    if path.suffix in (ONNX, PROGRAM) and not path.is_dir():
        if not path.is_file():
            raise WeightsError(f"{path}: expected a file, found none")
        if ema:
            file_of_average(path)  # raises
        if path.suffix == ONNX:
            metadata, logits_of = open_onnx(path)
        else:
            metadata, logits_of = open_program(path, processes.device, allow_code=allow_code)
        return Predictor(path, described(metadata, str(path)), logits_of, "student", None)
    whole = loaded(path, ema=ema)
    facts = whole.facts
    network = whole.network.to(processes.device).to(memory_format=torch.channels_last)
    normalize = facts.normalize

    def logits(pixels_BCHW: Tensor) -> Tensor:
        with processes.autocast():
            logits_BK: Tensor = network(normalize(pixels_BCHW)).float()
        return logits_BK

    return Predictor(whole.file, facts, logits, whole.role, whole.experiment)
