"""Builds networks from settings, and finds and loads their weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from dhkd.configs.schema import Training
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.data.images.base import Images, PerChannel
from dhkd.data.render import Normalization
from dhkd.data.runs.names import CONFIG
from dhkd.data.shown import some_of
from dhkd.pipeline.build.code import require_code_of_weights
from dhkd.stages.models import Network, build_network, own_networks
from dhkd.stages.models.architecture import PROJECTED, Architecture, Named, from_record, name_of
from dhkd.stages.models.class_names import names_of_packaged_weights
from dhkd.stages.models.file_kinds import is_safetensors
from dhkd.stages.models.foreign import INNER
from dhkd.stages.models.libraries import packaged_weights
from dhkd.stages.models.network import input_channels
from dhkd.stages.models.weights import classes_of_weights, fit_weights, read_metadata, read_weights, weights_sha256
from torch import Tensor

MeanStd = tuple[PerChannel, PerChannel]

NAMES_LISTED = 5
NETWORK = "network"  # the metadata key for a network's settings besides its name
CLASSES = "classes"  # the metadata key for the names of a network's outputs
OF_AVERAGE = "-ema"  # ends the name of the file with the average of a network's weights
PACKAGED = "packaged"  # in place of a path: the pretrained weights that torchvision or timm provides; a :TAG may follow


@dataclass(frozen=True)
class Trained:
    """A network with weights, on the CPU and in eval mode.

    `origin` says where the weights come from; `mean_std` is the normalisation that the network was trained with, or
    None if it is unknown. If a teacher's outputs are mapped to the classes of the data set, `classes` holds the number
    of the output for each class, `network` has only these outputs, and `whole` is the network as it was trained.
    """

    network: Network
    origin: str
    mean_std: MeanStd | None
    classes: tuple[int, ...] | None = None
    whole: Network | None = None

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the weights, as `weights_sha256` computes it; outputs that `network` lacks are included."""
        return weights_sha256(self.whole or self.network)


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


def file_of_average(path: Path) -> Path:
    """Return the file with the average of the weights in the run folder `path`. Raises `WeightsError` without one."""
    if not path.is_dir():
        raise WeightsError(f"--ema {path}: expected a run's folder, got a file; name the run, or leave out --ema")
    for role in ("student", "teacher"):
        if (path / f"{role}{OF_AVERAGE}.safetensors").is_file():
            return path / f"{role}{OF_AVERAGE}.safetensors"
    weights_file(path, "student")  # raises for folders without a finished run
    raise WeightsError(
        f"{path}: expected an average of the weights beside them, found none; train with the setting ema, such as"
        f" --set student.ema=0.999"
    )


def chosen_network(settings: Training) -> Architecture:
    """Return the architecture that a preset's section `teacher` or `student` describes."""
    maps = None if settings.maps is None else tuple(settings.maps)
    return Architecture(settings.architecture, dict(settings.options or {}), settings.head, maps)


def teacher_facts(architecture: Architecture) -> dict[str, str | None]:
    """Return what a cache records about its teacher's network besides the weights; unset facts are None."""
    options = json.dumps(dict(architecture.options), sort_keys=True) if architecture.options else None
    return {"architecture": architecture.name, "options": options, "head": architecture.head}


def architecture_of(path: Path, role: str, architecture: Architecture) -> Architecture:
    """Return the architecture of the weights at `path`.

    The recorded architecture is returned in two cases: if SimKD built it from the preset's `architecture`, or if it has
    the same name and the preset sets nothing besides the name. In all other cases, `architecture` itself is returned.
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
    """Return the architecture that a weights file records; None if it records none, as files of other programs."""
    return architecture_in(_metadata(file), f"weights {file}")


def architecture_in(metadata: Mapping[str, str], where: str) -> Architecture | None:
    """Return the architecture in a weights file's metadata; None if there is none. Messages begin with `where`."""
    if "architecture" not in metadata:
        return None
    try:
        record = json.loads(metadata.get(NETWORK, "{}"))
    except (ValueError, RecursionError):
        record = metadata[NETWORK]  # a text, which `from_record` refuses
    return from_record(metadata["architecture"], record, where)


def architecture_metadata(architecture: Architecture) -> dict[str, str]:
    """Return the metadata with which a weights file records its architecture; see `recorded_architecture`."""
    record = architecture.record()
    return {"architecture": architecture.name} | ({NETWORK: json.dumps(record, sort_keys=True)} if record else {})


def trained_network(
    architecture: Named, num_classes: int, path: Path, role: str, channels: int | None = None
) -> Trained:
    """Build the network `architecture` with the weights at `path`, a run folder or a weights file.

    The path packaged[:TAG] stands for the pretrained weights that torchvision or timm provides (TAG chooses among
    several). FILE::KEY stands for the weights below an address in the file, as `read_weights` defines it. `channels` is
    the number of channels of the network's input; if it is None, it is that of the normalisation recorded in the file,
    or else 3.
    """
    return fitted(architecture, num_classes, weights_at(architecture, path, role), channels)


@dataclass(frozen=True)
class Weights:
    """Weights read from a file or a library: the tensors by name, and what is known about them.

    `origin` and `mean_std` are as in `Trained`. `class_names` are the names of the outputs, in order; it is empty if
    none are recorded. `role` is the section of the preset whose network gets the weights.
    """

    state: Mapping[str, Tensor]
    origin: str
    mean_std: MeanStd | None
    class_names: tuple[str, ...]
    role: str

    @property
    def channels(self) -> int:
        """The number of input channels for which the weights were trained; 3 if it is unknown."""
        return len(self.mean_std[0]) if self.mean_std else 3


def weights_at(architecture: Named, path: Path, role: str) -> Weights:
    """Read the weights at `path` for the network `architecture`; `path` is as in `trained_network`."""
    if _is_packaged(path):
        tag = str(path).partition(":")[2] or None
        state, colours = packaged_weights(name_of(architecture), tag)
        mean_std = colours and (_per_channel(colours[0]), _per_channel(colours[1]))
        names = names_of_packaged_weights(name_of(architecture), tag)
        return Weights(state, f"{path} of {architecture}", mean_std, names, role)
    path, key = split_key(path)
    file = weights_file(path, role)
    require_code_of_weights(file, _metadata(file), name_of(architecture))
    state, mean_std = read_weights(file, key), _mean_std(file)
    return Weights(state, f"{file}::{key}" if key else str(file), mean_std, _class_names(file), role)


def fitted(
    architecture: Named, num_classes: int, weights: Weights, channels: int | None = None, *, head: bool = True
) -> Trained:
    """Build the network `architecture` with these weights, which may lack the classifier unless `head` is set.

    `channels` is as in `trained_network`. Raises `WeightsError` if the weights don't fit.
    """
    network = build_network(architecture, num_classes, channels or weights.channels)
    try:
        origin = fit_weights(network, weights.state, weights.origin, head=head)
    except WeightsError as error:
        _require_channels(architecture, num_classes, weights, input_channels(network), error)
        raise
    return Trained(network.eval(), origin, weights.mean_std)


def num_outputs(architecture: Named, num_classes: int, weights: Weights, channels: int | None = None) -> int:
    """Return the number of classes for which these weights were trained; 0 if they lack the classifier.

    The result is `num_classes` if the weights fit the network `architecture` with that many classes, and also if they
    belong to another network altogether.
    """
    network = build_network(architecture, num_classes, channels or weights.channels)
    found = classes_of_weights(network, weights.state, weights.origin)
    return num_classes if found is None else found


def _require_channels(
    architecture: Named, num_classes: int, weights: Weights, channels: int | None, misfit: WeightsError
) -> None:
    """Raise `WeightsError` if the weights would fit a network with another number of input channels."""
    other = 1 if channels == 3 else 3
    try:
        fit_weights(build_network(architecture, num_classes, other), weights.state, weights.origin)
    except (WeightsError, ConfigError):
        return
    raise WeightsError(
        f"weights {weights.origin}: expected a network whose input has {channels} channels, got one of {other}; set"
        f" {weights.role}.channels={other}, and images of {channels} are converted for it"
    ) from misfit


def classes_in(architecture: Named, path: Path, role: str) -> int | None:
    """Return the number of classes of the weights at `path`; None if it is unknown.

    `path` is as in `trained_network`. The number is read from the metadata or, in files without this metadata, from the
    size of the classifier.
    """
    if _is_packaged(path):
        state, _ = packaged_weights(name_of(architecture), str(path).partition(":")[2] or None)
    else:
        path, key = split_key(path)
        file = weights_file(path, role)
        recorded = _metadata(file).get("num_classes", "") if file.is_file() else ""
        if recorded.isdecimal():
            return int(recorded)
        state = read_weights(file, key)
    device = "cpu" if "timm:" in name_of(architecture) or own_networks(name_of(architecture)) else "meta"
    with torch.random.fork_rng(devices=()), torch.device(device):
        head = (build_network(architecture, 2).head_name or "").removeprefix(INNER)
    outputs = {len(tensor) for name, tensor in state.items() if f".{name}".endswith(f".{head}.weight") and tensor.ndim}
    return outputs.pop() if len(outputs) == 1 else None


def split_key(path: Path) -> tuple[Path, str]:
    """Split FILE::KEY into the file and the key. The key is "" without ::, and if a file has the whole name."""
    file, separator, key = str(path).partition("::")
    return (Path(file), key) if separator and not path.exists() else (path, "")


def _is_packaged(path: Path) -> bool:
    """Return whether `path` stands for a library's weights; a file or folder with this name takes precedence."""
    return str(path).partition(":")[0] == PACKAGED and not path.exists()


def _mean_std(file: Path) -> MeanStd | None:
    """Return the normalisation that `save_weights` recorded, or None if the file records none."""
    return mean_std_in(_metadata(file), f"weights {file}")


def mean_std_in(metadata: Mapping[str, str], where: str) -> MeanStd | None:
    """Return the normalisation in a file's metadata; None if there is none. Messages begin with `where`."""
    if "mean" not in metadata or "std" not in metadata:
        return None
    try:
        return _per_channel(json.loads(metadata["mean"])), _per_channel(json.loads(metadata["std"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{where}: expected a mean and a std of each channel in its metadata") from error


def recorded_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that `save_weights` recorded in a run folder or a weights file; empty if there is none."""
    file = weights_file(split_key(path)[0], "student")
    return _metadata(file) if file.is_file() else {}


def metadata_of(architecture: Architecture, images: Images, normalize: Normalization) -> dict[str, str]:
    """Return the metadata for a weights file: the network, its classes, and the normalisation in its training."""
    return {
        **architecture_metadata(architecture),
        "num_classes": str(images.num_classes),
        **({CLASSES: json.dumps(images.class_names)} if images.class_names else {}),
        "mean": json.dumps(normalize.mean),
        "std": json.dumps(normalize.std),
    }


def _class_names(file: Path) -> tuple[str, ...]:
    """Return the names of the outputs that a weights file records; empty if it records none."""
    return class_names_in(_metadata(file), f"weights {file}")


def class_names_in(metadata: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Return the names of the outputs in a file's metadata; empty if there are none. Messages begin with `where`."""
    recorded = metadata.get(CLASSES)
    if recorded is None:
        return ()
    try:
        names = json.loads(recorded)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{where}: expected a list of names of its classes in its metadata, got something else")
    return tuple(names)


def _metadata(file: Path) -> dict[str, str]:
    """Return the metadata that `save_weights` recorded in the file; it is empty for files in other formats."""
    return read_metadata(file) if is_safetensors(file) else {}


def _per_channel(values: Sequence[float]) -> PerChannel:
    numbers = tuple(map(float, values))
    if len(numbers) not in (1, 3):
        raise ValueError(f"expected 1 or 3 numbers, got {len(numbers)}")
    return numbers
