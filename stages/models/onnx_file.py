"""ONNX files with a network: written by torch's exporter, and run by onnxruntime on the CPU."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import WeightsError
from dhkd.data.extras import needing
from dhkd.data.shown import printable_line
from torch import Tensor, nn

INPUT, OUTPUT = "pixels", "logits"
OPSET = 18  # the oldest that torch's exporter writes without converting; onnxruntime 1.14 and newer run it
LONGEST_REASON = 300  # characters of a library's message
LARGEST = 2**31 - 2**20  # bytes of a file in the format's encoding, which ends at 2 GiB


def write_onnx(path: Path, network: nn.Module, example_BCHW: Tensor, metadata: Mapping[str, str]) -> None:
    """Write a network that takes tensors like `example_BCHW`, of any B, with `metadata` as the file's properties.

    Raises `ConfigError` if a package of the extra is missing, and `WeightsError` for a network that can't be written.
    """
    with needing("onnx", "ONNX"), needing("onnxscript", "ONNX"):
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > LARGEST:
        raise WeightsError(f"{path}: expected a network of at most 2 GiB, the format's limit, got {size:,} bytes")
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example_BCHW,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        assert program is not None, "that of the old exporter"
        model = program.model_proto
    except Exception as error:  # the exporter raises whatever it meets in a network
        raise WeightsError(
            f"{path}: torch can't write this network as ONNX ({reason_of(error)}); write .safetensors instead"
        ) from error
    onnx.helper.set_model_props(model, dict(metadata))
    content = model.SerializeToString()
    write_atomically(path, lambda stream: stream.write(content))


def open_onnx(path: Path) -> tuple[dict[str, str], Callable[[Tensor], Tensor]]:
    """Open a file that `write_onnx` wrote; return its properties and the function from pixels to logits.

    Raises `ConfigError` if onnxruntime is missing, and `WeightsError` for any other file.
    """
    with needing("onnxruntime", "ONNX"):
        import onnxruntime as runtime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors reach the user as exceptions
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs, outputs = ([one.name for one in ends] for ends in (session.get_inputs(), session.get_outputs()))
        properties = dict(session.get_modelmeta().custom_metadata_map)
    except Exception as error:  # the library's exceptions have no common class
        raise WeightsError(f"{path}: expected an ONNX file, got: {reason_of(error)}") from error
    if (inputs, outputs) != ([INPUT], [OUTPUT]):
        raise WeightsError(
            f"{path}: expected an ONNX file that dhkd wrote, with the input {INPUT} and the output {OUTPUT}, got"
            f" {', '.join(map(printable_line, inputs))} and {', '.join(map(printable_line, outputs))}"
        )

    def logits_of(pixels_BCHW: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(pixels_BCHW.cpu().numpy())
        try:
            (logits_BK,) = session.run([OUTPUT], {INPUT: pixels})
        except Exception as error:
            raise WeightsError(f"{path}: onnxruntime can't run the network ({reason_of(error)})") from error
        return torch.from_numpy(logits_BK)

    return properties, logits_of


def reason_of(error: BaseException) -> str:
    """Return the first line of what a library says about an error, and of what caused it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable_line(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__, LONGEST_REASON)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter prints and logs about its progress from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
