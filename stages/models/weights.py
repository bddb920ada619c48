"""Weights files: read every published layout without executing code, load into a network, hash and write."""

import argparse
import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import WeightsError
from dhkd.stages.models.network import Network
from torch import Tensor, nn

# Batch norm's step counter: no output depends on it, and published files may lack it.
IGNORED = "num_batches_tracked"
METADATA = "dhkd"  # the entry of a .safetensors file's metadata that `save_weights` writes
NAMES_LISTED = 3  # how many differing names an error lists


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or torch file to the CPU, by name.

    Weights may be nested under `model` or `state_dict`, and names may have the prefix `module.`, which is
    removed. No code in the file is executed: the file may hold only tensors, plain values and `argparse.Namespace`.
    Raises `WeightsError` for a file that is missing or damaged, contains anything else, or holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            return _without_prefix(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"weights {path}: expected a file, found none") from error
    except IsADirectoryError as error:
        raise WeightsError(f"weights {path}: expected a file, got a folder") from error
    except pickle.UnpicklingError as error:
        # torch's message also explains how to load the file anyway, which is unsafe.
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"weights {path}: expected tensors and plain values only,"
            f" got {code[1] if code else 'no pickle of tensors'}; the file was not loaded"
        ) from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise WeightsError(f"weights {path}: the file is damaged or no file of weights ({_line(error)})") from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {
            name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
        }
    if not tensors:
        raise WeightsError(f"weights {path}: expected tensors by name, bare or under model or state_dict, found none")
    return _without_prefix(tensors)


def fit_weights(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load `state` into `network`, completely or not at all; `origin` names the file in errors.

    If `network` is a `Network`, its `published_names` are first used to translate the names. Raises `WeightsError` if
    names or shapes differ, if a tensor is complex or not dense, or if a value is not finite.
    """
    if isinstance(network, Network):
        state = _in_our_names(state, network.published_names)
    expected = network.state_dict()
    differing = [
        f"{name} expected {_shape(expected.get(name))}, got {_shape(state.get(name))}"
        for name in [*expected, *(name for name in state if name not in expected)]
        if _shape(expected.get(name)) != _shape(state.get(name))
        and not (name.endswith(IGNORED) and (name not in state or name not in expected))
    ]
    if differing:
        more = f" and {len(differing) - NAMES_LISTED} more" if len(differing) > NAMES_LISTED else ""
        listed = "; ".join(differing[:NAMES_LISTED])
        raise WeightsError(
            f"weights {origin} are of another architecture: {listed}{more}; check the architecture's name"
        )
    for name in expected.keys() & state.keys():
        if state[name].is_complex() or state[name].layout != torch.strided:
            raise WeightsError(
                f"weights {origin}: {name} expected dense real numbers, got {state[name].dtype}, {state[name].layout}"
            )
        # Replace entries of the network's state dict: a new dict would lack layer versions, which some networks need.
        expected[name] = state[name].to(expected[name].dtype)
        if not bool(torch.isfinite(expected[name]).all()):
            raise WeightsError(
                f"weights {origin}: {name} has values that are not finite; the file is of a failed training"
            )
    network.load_state_dict(expected)


def save_weights(path: Path, network: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the network's state as .safetensors; the bytes don't depend on the network's memory format or device."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    # All metadata goes into one entry, because safetensors writes several entries in an order that varies between runs.
    content = safetensors.torch.save(tensors, metadata={METADATA: json.dumps(dict(metadata), sort_keys=True)})
    write_atomically(path, lambda stream: stream.write(content))


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata that `save_weights` wrote; a file without metadata gives an empty dict.

    Raises `WeightsError` if this is not a .safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(METADATA, "{}")))
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise WeightsError(f"weights {path}: expected a .safetensors file ({_line(error)})") from error


def weights_sha256(network: nn.Module) -> str:
    """Compute the hexadecimal SHA-256 of the names, dtypes, shapes and bytes of a network's parameters and buffers.

    Parameters and buffers are hashed in order of name, without batch norm's step counters (`num_batches_tracked`). The
    result doesn't depend on memory format, device or the layout of the weights file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith(IGNORED):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix `module.`, which data-parallel training puts before every name."""
    if not all(name.startswith("module.") for name in tensors):
        return tensors
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _in_our_names(state: Mapping[str, Tensor], published_names: Mapping[str, str | None]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        published = next((start for start in published_names if name.startswith(start)), "")
        replacement = published_names.get(published, "")
        if replacement is not None:
            renamed[replacement + name.removeprefix(published)] = tensor
    return renamed


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else "×".join(map(str, tensor.shape)) or "a scalar"


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
