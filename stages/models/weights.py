"""Weights files: read every published layout without executing code, load into a network, hash and write."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import WeightsError
from dhkd.data.shown import printable_line, some_of
from dhkd.stages.models.addresses import IGNORED, Address, Misfit, choose, placed
from dhkd.stages.models.file_kinds import is_safetensors, other_kind
from dhkd.stages.models.network import Network
from dhkd.stages.models.sharded import joined, weight_map_of
from dhkd.stages.models.unpickling import load_torch_file
from torch import Tensor, nn

log = logging.getLogger("dhkd")

METADATA = "dhkd"  # the entry of a .safetensors file's metadata that `save_weights` writes
NAMES_LISTED = 3  # how many differing names an error lists
KEYS_LISTED = 8


def read_weights(path: Path, key: str = "") -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or torch file to the CPU, by their address in the file.

    A tensor's address is its name, after the keys under which it is nested, joined by dots. With `key`, only tensors
    below this address are returned, named by the rest of their address. No code in the file is executed. Raises
    `WeightsError` for a file that is missing or damaged, needs code, or holds no weights (below `key`).
    """
    content = _content(path)
    tensors: dict[str, Tensor] = {}
    for address, tensor in _tensors_in(content):
        if tensors.setdefault(address, tensor) is not tensor:
            raise WeightsError(
                f"weights {path}: expected one tensor named {printable_line(address, 100)}, found several"
            )
    if not tensors:
        raise WeightsError(f"weights {path}: expected tensors by name, found none; the file holds {_held(content)}")
    below = {name.removeprefix(f"{key}."): tensor for name, tensor in tensors.items() if name.startswith(f"{key}.")}
    if key and not below:
        raise WeightsError(
            f"weights {path}: expected tensors below {printable_line(key)}, found none; the file holds {_held(content)}"
        )
    return below if key else tensors


def fit_weights(network: nn.Module, state: Mapping[str, Tensor], origin: str, *, head: bool = True) -> str:
    """Load into `network` the weights in `state`, completely or not at all; return where they come from.

    `origin` names the file in errors. The weights are all tensors below one address: a prefix, such as `state_dict.` or
    `module.`, which every name of the network may have in `state`. If several addresses fit, the averaged weights of a
    pair are taken, and the log and the returned origin say so. If `network` is a `Network`, its `published_names` are
    first used to translate the names. Unless `head` is set, the weights may lack the classifier of a `Network`, which
    then stays as it is. Raises `WeightsError` if no address or more than one fits, if a tensor is complex
    or not dense, or if a value is not finite.
    """
    expected = network.state_dict()
    published = network.published_names if isinstance(network, Network) else {}
    try:
        address = choose(placed(state, expected, published), expected, origin)
    except Misfit as misfit:
        if head or not isinstance(network, Network) or not misfit.lacks_only(network.head_name):
            raise WeightsError(_misfit(network, misfit, state, origin)) from None
        address = Address(origin, misfit.tensors)
    origin = address.origin
    if address.instead_of:
        others = " or ".join(address.instead_of)
        log.warning("weights %s are used, which are averaged; for those that are not, name %s", origin, others)
    for name in expected.keys() & address.tensors.keys():
        # Replace entries of the network's state dict: a new dict would lack layer versions, which some networks need.
        expected[name] = _usable(address.tensors[name], expected[name], f"weights {origin}: {printable_line(name)}")
    network.load_state_dict(expected)
    return origin


def classes_of_weights(network: Network, state: Mapping[str, Tensor], origin: str) -> int | None:
    """Return the number of classes of the weights in `state`, which need not be that of `network`.

    The number is 0 if the weights lack the classifier, and None if they fit `network` or belong to another network.
    """
    expected = network.state_dict()
    try:
        choose(placed(state, expected, network.published_names), expected, origin)
    except Misfit as misfit:
        if misfit.lacks_only(network.head_name):
            return 0
        classes = misfit.other_classes(network.head_name)
        return classes[1] if classes is not None else None
    return None


def save_weights(path: Path, network: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the network's state as .safetensors; the bytes don't depend on the network's memory format or device."""
    tensors: dict[str, Tensor] = {}
    kept: set[int] = set()  # the file's format refuses tensors that share memory, as tied weights do
    for name, tensor in network.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        tensors[name] = plain.clone() if plain.untyped_storage().data_ptr() in kept else plain
        kept.add(plain.untyped_storage().data_ptr())
    # All metadata goes into one entry, because safetensors writes several entries in an order that varies between runs.
    content = safetensors.torch.save(tensors, metadata={METADATA: json.dumps(dict(metadata), sort_keys=True)})
    write_atomically(path, lambda stream: stream.write(content))


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata that `save_weights` wrote; a file without metadata gives an empty dict.

    Raises `WeightsError` if this is not a .safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            plain = dict(json.loads((file.metadata() or {}).get(METADATA, "{}")))
            return {str(name): str(value) for name, value in plain.items()}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"weights {path}: expected a .safetensors file ({_line(error)})") from error


def with_metadata(path: Path, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a weights file that `save_weights` wrote, with `metadata` instead of its own."""
    if read_metadata(path) == metadata:
        return path.read_bytes()
    written = {METADATA: json.dumps(dict(metadata), sort_keys=True)}
    return bytes(safetensors.torch.save(safetensors.torch.load_file(path), metadata=written))


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


def _content(path: Path, *, is_part: bool = False) -> object:
    """Read a file of weights, or the files that an index names: a mapping of tensors, or what `torch.save` wrote."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file" if path.exists() else "none"
        if found == "a folder":
            held = sorted(entry.name for entry in path.iterdir())
            found += f" of {some_of(held, NAMES_LISTED)}" if held else ", which is empty"
        raise WeightsError(f"weights {path}: expected a file, {'found' if found == 'none' else 'got'} {found}")
    try:
        if is_safetensors(path):
            return safetensors.torch.load_file(path)
        weight_map = None if is_part else weight_map_of(path)  # an index may name itself
        kind = None if weight_map is not None else other_kind(path)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"weights {path}: expected a readable file, got an error ({error.strerror})") from error
    except Exception as error:  # a damaged header can make the library raise anything
        raise WeightsError(f"weights {path}: the file is damaged or no file of weights ({_line(error)})") from error
    if weight_map is not None:
        return joined(path, weight_map, partial(_content, is_part=True))
    if kind is not None:
        raise WeightsError(f"weights {path}: expected a file of weights, got {kind}")
    return load_torch_file(path)


def _tensors_in(content: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the address and the tensor of every named tensor in nested mappings and lists; each of these once."""
    seen: set[int] = set()
    pending = [("", content)]
    while pending:
        address, value = pending.pop()
        if id(value) in seen:
            continue  # a file can hold a mapping twice, or in itself
        seen.add(id(value))
        entries: list[tuple[object, object]] = []
        if isinstance(value, dict):
            entries = list(dict.items(value))
        elif isinstance(value, list | tuple):
            entries = list(enumerate(value))
        for key, entry in reversed(entries):
            if isinstance(entry, dict | list | tuple):
                pending.append((f"{address}{key}.", entry))
        for key, entry in entries:
            if isinstance(entry, Tensor) and isinstance(key, str):
                yield f"{address}{key}", entry


def _held(content: object) -> str:
    """Describe what a file holds by its top-level keys, or by its type."""
    if isinstance(content, dict):
        keys = some_of([str(key) for key in dict.keys(content)], KEYS_LISTED)
        return f"a mapping with the keys {keys}" if keys else "an empty mapping"
    return f"a {type(content).__name__.lstrip('_').lower()} without names"


def _usable(tensor: Tensor, like: Tensor, what: str) -> Tensor:
    """Convert a tensor to the type of the network's own, `like`; `what` names it in errors."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    if not dense or tensor.is_complex() or (like.is_floating_point() and not tensor.is_floating_point()):
        raise WeightsError(f"{what} expected dense real numbers, got {tensor.dtype}, {tensor.layout}")
    converted = tensor.detach().to(like.dtype)
    if not bool(torch.isfinite(converted).all()):
        raise WeightsError(f"{what} has values that are not finite; the file is of a failed training")
    return converted


def _misfit(network: nn.Module, misfit: Misfit, state: Mapping[str, Tensor], origin: str) -> str:
    """Say how the weights that come closest differ from the network's, and what the file holds."""
    listed = "; ".join(
        f"{printable_line(name, 100)} expected {_shape(expected)}, got {_shape(found)}"
        for name, expected, found in misfit.differing[:NAMES_LISTED]
    )
    number = len(misfit.differing)
    more = f" and {number - NAMES_LISTED} more" if number > NAMES_LISTED else ""
    top = list(dict.fromkeys(name.partition(".")[0] for name in state))
    holds = f"the file holds {len(state)} tensors ({some_of(list(state), NAMES_LISTED)})"
    holds += f" under {some_of(top, KEYS_LISTED)}" if any("." in name for name in state) else ""
    head = network.head_name if isinstance(network, Network) else None
    classes = misfit.other_classes(head)
    if classes is not None:
        expected_classes, found_classes = classes
        return (
            f"weights {origin}: expected {expected_classes:,} classes, got {found_classes:,} ({listed}); name weights"
            f" that were trained on this data set's classes"
        )
    missing = sum(found is None for _, _, found in misfit.differing)
    lacks = f"{missing} of {misfit.number} tensors are missing, " if missing else ""
    return (
        f"weights {origin} are of another architecture: {listed}{more}; check the architecture's name ({lacks}{holds})"
    )


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else "×".join(map(str, tensor.shape)) or "a scalar"


def _line(error: BaseException) -> str:
    return printable_line((str(error).splitlines() or [type(error).__name__])[0], 200)
