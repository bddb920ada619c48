"""Builds networks from settings, and finds and loads their weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dhkd.configs.schema import Training
from dhkd.data.errors import WeightsError
from dhkd.data.images.base import Triple
from dhkd.data.runs.names import CONFIG
from dhkd.data.shown import some_of
from dhkd.pipeline.build.code import require_code_of_weights
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.architecture import PROJECTED, Architecture, as_architecture, from_record
from dhkd.stages.models.file_kinds import is_safetensors
from dhkd.stages.models.libraries import packaged_weights
from dhkd.stages.models.weights import fit_weights, read_metadata, read_weights

MeanStd = tuple[Triple, Triple]

NAMES_LISTED = 5
NETWORK = "network"  # the metadata that holds what is set of a network besides its name
PACKAGED = "packaged"  # in place of a path: the pretrained weights that torchvision or timm provides; a :TAG may follow


@dataclass(frozen=True)
class Trained:
    """A network with weights, on the CPU and in eval mode.

    `origin` says where the weights come from; `mean_std` is the normalisation that the network was trained with, or
    None if it is unknown.
    """

    network: Network
    origin: str
    mean_std: MeanStd | None


def weights_file(path: Path, role: str) -> Path:
    """Resolve `path` to a weights file.

    That is `path` itself if it is a file, or else the network in this run folder, preferably the one whose role is
    `role`. Raises `WeightsError` for a folder without a finished run.
    """
    if not path.is_dir():
        return path
    candidates = [path / f"{name}.safetensors" for name in (role, "teacher", "student")]
    for file in candidates:
        if file.is_file():
            return file
    held = sorted(entry.name for entry in path.iterdir())
    if (path / CONFIG).is_file() or not held:
        raise WeightsError(f"{path}: expected a finished run, found no {candidates[0].name}; finish it with --resume")
    raise WeightsError(
        f"{path}: expected a finished run with {candidates[0].name}, got a folder of {some_of(held, NAMES_LISTED)};"
        " name a run's folder or a weights file"
    )


def chosen_network(settings: Training) -> Architecture:
    """Return the network that a section of a preset describes."""
    maps = None if settings.maps is None else tuple(settings.maps)
    return Architecture(settings.architecture, dict(settings.options or {}), settings.head, maps)


def teacher_facts(architecture: Architecture) -> dict[str, str | None]:
    """Return what a cache records of its teacher's network besides its weights; None for what is not set."""
    options = json.dumps(dict(architecture.options), sort_keys=True) if architecture.options else None
    return {"architecture": architecture.name, "options": options, "head": architecture.head}


def architecture_of(path: Path, role: str, architecture: Architecture) -> Architecture:
    """Return the architecture of the weights.

    That is what the weights file records if it is the network that SimKD made of the preset's `architecture`, or the
    same network with other settings while the preset sets nothing; or else `architecture` itself.
    """
    if _is_packaged(path):
        return architecture
    file = weights_file(split_key(path)[0], role)
    recorded = recorded_architecture(file) if file.is_file() else None
    if recorded is None:
        return architecture
    made_by_simkd = recorded.name.startswith(f"{PROJECTED}{architecture.name}+")
    return (
        recorded
        if made_by_simkd or (recorded.name == architecture.name and not architecture.record())
        else architecture
    )


def recorded_architecture(file: Path) -> Architecture | None:
    """Return the architecture that is recorded in a file of weights that dhkd wrote; None for other files."""
    metadata = _metadata(file)
    if "architecture" not in metadata:
        return None
    try:
        record = json.loads(metadata.get(NETWORK, "{}"))
    except (ValueError, RecursionError):
        record = metadata[NETWORK]  # which is refused
    return from_record(metadata["architecture"], record, f"weights {file}")


def architecture_metadata(architecture: Architecture) -> dict[str, str]:
    """Return what `recorded_architecture` reads, for the metadata of a file of weights."""
    record = architecture.record()
    return {"architecture": architecture.name} | ({NETWORK: json.dumps(record, sort_keys=True)} if record else {})


def trained_network(architecture: str | Architecture, num_classes: int, path: Path, role: str) -> Trained:
    """Build the network `architecture` with the weights at `path`, a run folder or a weights file.

    The path packaged[:TAG] stands for the pretrained weights that torchvision or timm provides (TAG chooses among
    several). FILE::KEY stands for the weights below an address in the file, as `read_weights` defines it.
    """
    network = build_network(architecture, num_classes)
    if _is_packaged(path):
        tag = str(path).partition(":")[2]
        state, colours = packaged_weights(as_architecture(architecture).name, tag or None)
        mean_std = colours and (_triple(colours[0]), _triple(colours[1]))
        origin = f"{path} of {architecture}"
    else:
        path, key = split_key(path)
        file = weights_file(path, role)
        require_code_of_weights(file, _metadata(file), as_architecture(architecture).name)
        state, mean_std, origin = read_weights(file, key), _mean_std(file), f"{file}::{key}" if key else str(file)
    origin = fit_weights(network, state, origin)
    return Trained(network.eval(), origin, mean_std)


def split_key(path: Path) -> tuple[Path, str]:
    """Split FILE::KEY into the file and the key. The key is "" without ::, and if a file has the whole name."""
    file, separator, key = str(path).partition("::")
    return (Path(file), key) if separator and not path.exists() else (path, "")


def _is_packaged(path: Path) -> bool:
    """Return whether `path` stands for a library's weights; a file or folder with this name takes precedence."""
    return str(path).partition(":")[0] == PACKAGED and not path.exists()


def _mean_std(file: Path) -> MeanStd | None:
    """Return the normalisation that `save_weights` recorded, or None if the file records none."""
    metadata = _metadata(file)
    if "mean" not in metadata or "std" not in metadata:
        return None
    try:
        return _triple(json.loads(metadata["mean"])), _triple(json.loads(metadata["std"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"weights {file}: expected a mean and a std of three colours in its metadata") from error


def _metadata(file: Path) -> dict[str, str]:
    """Return the metadata that `save_weights` recorded in the file; it is empty for files in other formats."""
    return read_metadata(file) if is_safetensors(file) else {}


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue
