"""From settings to networks, with or without weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dhkd.data.errors import WeightsError
from dhkd.data.images.base import Triple
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.foreign import packaged_weights
from dhkd.stages.models.weights import fit_weights, read_metadata, read_weights

MeanStd = tuple[Triple, Triple]


PACKAGED = "packaged"  # instead of a path: the weights that torchvision or timm offers, perhaps with a :TAG


@dataclass(frozen=True)
class Trained:
    """A network with weights, on the CPU, in eval mode; where they are from; the mean and std it was trained with."""

    network: Network
    origin: str
    mean_std: MeanStd | None


def weights_file(path: Path, role: str) -> Path:
    """The file of weights that `path` means: itself, or the network that a run's folder holds."""
    if not path.is_dir():
        return path
    found = [path / f"{name}.safetensors" for name in (role, "teacher", "student")]
    for file in found:
        if file.is_file():
            return file
    raise WeightsError(f"{path}: expected a finished run, found no {found[0].name}; finish it with --resume")


def architecture_of(path: Path, role: str, architecture: str) -> str:
    """The network that weights are of: the preset's, or one that was made of it, as the file says."""
    if str(path).partition(":")[0] == PACKAGED and not path.exists():
        return architecture
    file = weights_file(path, role)
    said = read_metadata(file).get("architecture", "") if file.suffix == ".safetensors" and file.is_file() else ""
    return said if said.startswith(f"simkd:{architecture}+") else architecture


def trained_network(architecture: str, num_classes: int, path: Path, role: str) -> Trained:
    """The network `architecture` with the weights at `path`: a run's folder, a file, or packaged[:TAG]."""
    network = build_network(architecture, num_classes)
    word, _, tag = str(path).partition(":")
    if word == PACKAGED and not path.exists():
        state, colours = packaged_weights(architecture, tag or None)
        mean_std = colours and (_triple(colours[0]), _triple(colours[1]))
        origin = f"{path} of {architecture}"
    else:
        file = weights_file(path, role)
        state, mean_std, origin = read_weights(file), _trained_with(file), str(file)
    fit_weights(network, state, origin)
    return Trained(network.eval(), origin, mean_std)


def _trained_with(file: Path) -> MeanStd | None:
    """What `save_weights` wrote of the normalisation; other files don't tell."""
    facts = read_metadata(file) if file.suffix == ".safetensors" else {}
    if "mean" not in facts or "std" not in facts:
        return None
    return _triple(json.loads(facts["mean"])), _triple(json.loads(facts["std"]))


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue
