"""Files of `torch.export` (.pt2) with a network.

torch opens such a file with `pickle`, which runs code that a stranger may have put into it. So a file is opened only if
the caller says that its code may run.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.stages.models.onnx_file import reason_of
from torch import Tensor, nn

METADATA = "dhkd.json"  # the file in the archive with the metadata


def write_program(path: Path, network: nn.Module, example_BCHW: Tensor, metadata: Mapping[str, str]) -> None:
    """Write a network that takes tensors like `example_BCHW`, of any B, with `metadata` as JSON beside it.

    Raises `WeightsError` for a network that can't be written.
    """
    content = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = torch.export.Dim("batch", min=1)
            program = torch.export.export(network, (example_BCHW,), dynamic_shapes=({0: batch},), strict=False)
            torch.export.save(program, content, extra_files={METADATA: json.dumps(dict(metadata), sort_keys=True)})
    except Exception as error:  # torch raises whatever it meets in a network
        raise WeightsError(
            f"{path}: torch.export can't write this network ({reason_of(error)}); write .safetensors instead"
        ) from error
    write_atomically(path, lambda stream: stream.write(content.getbuffer()))


def open_program(
    path: Path, device: torch.device, *, allow_code: bool
) -> tuple[dict[str, str], Callable[[Tensor], Tensor]]:
    """Open a file that `write_program` wrote; return its metadata and the function from pixels to logits.

    Raises `ConfigError` unless `allow_code` is set, and `WeightsError` for any other file.
    """
    if not allow_code:
        raise ConfigError(
            f"{path}: torch opens .pt2 files with pickle, which runs code that they may hold; expected --allow-code for"
            f" a file that you trust, or an .onnx or .safetensors file"
        )
    files = {METADATA: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.export.load(path, extra_files=files).module().to(device)
        metadata = json.loads(files[METADATA] or "{}")
        if not isinstance(metadata, dict):
            raise ValueError(f"metadata of the type {type(metadata).__name__}")
    except Exception as error:  # whatever the file holds
        raise WeightsError(f"{path}: expected a file of torch.export, got: {reason_of(error)}") from error

    def logits_of(pixels_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            logits_BK: Tensor = network(pixels_BCHW.to(device))
        return logits_BK

    return {str(key): str(value) for key, value in metadata.items()}, logits_of
