"""Weights files as people save them, and as nobody should: loaded, or refused in one line that says what they are."""

import argparse
import collections
import datetime
import decimal
import io
import json
import logging
import pathlib
import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.pipeline.build.networks import split_key, trained_network
from dhkd.pipeline.export import export
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.weights import fit_weights, read_weights, save_weights
from torch import Tensor

from tests.stages.models.weight_files import CLASSES, CreatesAFolder, assert_state, copy_of, trained

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> Network:
    return trained()


@pytest.fixture(scope="module")
def other() -> Network:
    return trained(seed=1)


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def with_counters(state: State) -> State:
    count = torch.zeros(1, dtype=torch.float64)
    return {**state, "total_ops": count, "total_params": count, "layer1.0.conv1.total_ops": count}


def wrapped_inside(state: State) -> State:
    """A network of which a part was compiled or made parallel."""
    return {name.replace("layer1.", "layer1.module.").replace("fc.", "fc._orig_mod."): t for name, t in state.items()}


def in_itself(state: State) -> dict[str, Any]:
    content: dict[str, Any] = {"model": state}
    content["self"] = content
    return content


SETTINGS = {
    "best": np.float64(72.3), "epoch": np.int64(3), "curve": np.arange(3.0), "type": np.dtype("float32"),
    "path": pathlib.PurePosixPath("a/b"), "out": pathlib.Path("runs"), "args": argparse.Namespace(lr=0.1),
    "more": types.SimpleNamespace(a=1), "time": datetime.datetime(2026, 1, 2, 3), "took": datetime.timedelta(1),
    "day": datetime.date(2026, 1, 2), "history": collections.defaultdict(list, {"loss": [1.0]}),
    "last": collections.deque([1, 2], maxlen=3), "exact": decimal.Decimal("0.1"), "counts": collections.Counter("aab"),
    "set": {1, 2}, "device": torch.device("cpu"), "half": torch.float16, "size": torch.Size([1, 2]),
}  # fmt: skip

# What must load as the same network: a function from its state to what torch.save gets.
LAYOUTS: dict[str, Callable[[State], object]] = {
    "compiled": lambda state: {"state_dict": under("_orig_mod.", state)},
    "compiled in DDP": lambda state: {"model": under("module._orig_mod.", state)},
    "DDP compiled, bare": lambda state: under("_orig_mod.module.", state),
    "PyTorch's tutorial": lambda state: {"epoch": 5, "model_state_dict": state, "loss": 0.1},
    "Lightning": lambda state: {"state_dict": under("model.", state), "hyper_parameters": {"lr": 0.1}, "loops": {}},
    "Lightning with a loss of its own": lambda state: {
        "state_dict": {**under("net.", state), "criterion.weight": torch.ones(3)}
    },
    "distiller": lambda state: {
        "epoch": 240,
        "model": under("module.student.", state),
        "optimizer": {"state": {0: {"m": torch.ones(2)}}},
    },
    "student beside another teacher": lambda state: {**under("student.", state), "teacher.conv1.weight": torch.ones(2)},
    "backbone": lambda state: under("backbone.", state),
    "any word": lambda state: under("a.b.whatever.", state),
    "nested three times": lambda state: {"state": {"net": {"weights": state}}, "epoch": 3},
    "nested and prefixed": lambda state: {"checkpoint": {"ema": under("module.", state)}},
    "in a tuple": lambda state: (state, {"epoch": 3}),
    "in a list": lambda state: [{"epoch": 3}, {"net": state}],
    "averaged": lambda state: {"n_averaged": torch.tensor(5), **under("module.", state)},
    "with an operation counter": with_counters,
    "counter and prefix": lambda state: {"net": under("module.", with_counters(state))},
    "wrapped inside": wrapped_inside,
    "among settings": lambda state: {"state_dict": state, **SETTINGS},
    "in an OrderedDict": lambda state: OrderedDict(model=OrderedDict(state)),
    "in a defaultdict": lambda state: collections.defaultdict(dict, {"model": state}),
    "parameters": lambda state: {
        name: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
    "twice": lambda state: {"model": state, "best": dict(state)},
    "in itself": in_itself,
    "with a strange key": lambda state: {"\x1b[31m\n|=1": state},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_loads(layout: str, network: Network, other: Network, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](copy_of(network)), tmp_path / "w.pth")
    loaded = trained(seed=1)
    assert fit_weights(loaded, read_weights(tmp_path / "w.pth"), "w") == "w"
    assert_state(loaded, copy_of(network))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w", "w.bin"])
def test_the_name_of_a_file_does_not_matter(name: str, network: Network, tmp_path: Path) -> None:
    for write in (torch.save, safetensors.torch.save_file):
        write(under("model.", copy_of(network)), tmp_path / name)
        loaded = trained_network("resnet8", CLASSES, tmp_path / name, "teacher").network
        assert_state(loaded, copy_of(network))


# Two networks in a file: which is taken without a key (None: refused), and the keys that choose the second one.
PAIRS: dict[str, tuple[Callable[[State, State], object], str | None, tuple[str, ...]]] = {
    "state_dict_ema": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "second", ("state_dict_ema",)),
    "model_ema": (lambda a, b: {"model": a, "model_ema": under("module.", b)}, "second", ("model_ema",)),
    "ema_model in Lightning": (
        lambda a, b: {"state_dict": {**under("model.", a), **under("ema_model.module.", b)}},
        "second",
        ("state_dict.ema_model", "state_dict.ema_model.module"),
    ),
    "swa": (lambda a, b: {"swa": b, "net": a}, "second", ("swa",)),
    "teacher and student": (lambda a, b: {**under("student.", a), **under("teacher.", b)}, None, ("teacher",)),
    "last and best": (lambda a, b: {"model": a, "best": b}, None, ("best",)),
    "two averages": (lambda a, b: {"ema": a, "ema2": {"ema": b}}, None, ("ema2", "ema2.ema")),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_of_two_networks_one_is_chosen(
    pair: str, network: Network, other: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, taken, keys = PAIRS[pair]
    file = tmp_path / "w.pth"
    torch.save(make(copy_of(network), copy_of(other)), file)
    if taken is None:
        with pytest.raises(WeightsError, match=r"expected weights of one network, got 2 that fit; .*::.*w.pth::"):
            trained_network("resnet8", CLASSES, file, "teacher")
    else:
        with caplog.at_level(logging.WARNING, "dhkd"):
            both = trained_network("resnet8", CLASSES, file, "teacher")
        assert_state(both.network, copy_of(other))
        assert both.origin.startswith(f"{file}::")
        assert "which are averaged; for those that are not, name" in caplog.text
        not_averaged = caplog.text.split()[-1]
        assert_state(trained_network("resnet8", CLASSES, Path(not_averaged), "teacher").network, copy_of(network))
    for key in keys:
        chosen = trained_network("resnet8", CLASSES, Path(f"{file}::{key}"), "teacher")
        assert_state(chosen.network, copy_of(other))
        assert chosen.origin == f"{file}::{key}"


def test_a_key_that_is_not_there(network: Network, tmp_path: Path) -> None:
    torch.save({"model": copy_of(network), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"expected tensors below ema, found none; .* the keys model, epoch$"):
        trained_network("resnet8", CLASSES, tmp_path / "w.pth::ema", "teacher")


def test_a_file_with_colons_in_its_name_is_that_file(network: Network, tmp_path: Path) -> None:
    torch.save(copy_of(network), tmp_path / "w.pth::ema")
    assert split_key(tmp_path / "w.pth::ema") == (tmp_path / "w.pth::ema", "")
    assert_state(trained_network("resnet8", CLASSES, tmp_path / "w.pth::ema", "student").network, copy_of(network))


def one_line(error: pytest.ExceptionInfo[WeightsError]) -> str:
    text = str(error.value)
    assert text.isprintable(), text
    assert "weights_only" not in text
    assert "safe_globals" not in text
    return text


def archive_of(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as zipped:
            zipped.writestr("teachers/resnet.pth", b"x")
    else:
        with tarfile.open(fileobj=stream, mode=kind) as archive:
            member = tarfile.TarInfo("teachers/resnet\n\x1b.pth")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    return stream.getvalue()


def program() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for name in ("program/data.pkl", "program/code/__torch__.py", "program/constants.pkl", "program/version"):
            zipped.writestr(name, b"3")
    return stream.getvalue()


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, kernel=np.ones(2), bias=np.ones(1))
    return stream.getvalue()


INDEX = {"weight_map": {"conv1.weight": "model-00001-of-00002.safetensors", "fc.bias": "model-00002-of-00002.bin"}}
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
    "a page": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "a page of HTML or XML"),
    "an answer in XML": (b'\xef\xbb\xbf<?xml version="1.0"?><Error/>', "a page of HTML or XML"),
    "a tar archive": (archive_of("w"), "a tar archive of teachers/resnet\\n\\x1b.pth; unpack it"),
    "a tar.gz archive": (archive_of("w:gz"), "a tar archive of teachers/resnet"),
    "a zip archive": (archive_of("zip"), "a zip archive of teachers/resnet.pth; unpack it"),
    "a compiled program": (program(), "a compiled program (TorchScript)"),
    "an ONNX file": (b"\x08\x07\x12\x07pytorch\x1a\x051.0.0:\x10", "in the ONNX format"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "an npz file": (arrays(), "NumPy's arrays kernel, bias"),
    "an index of shards": (json.dumps(INDEX).encode(), "2 are missing (model-00001-of-00002.safetensors, model-0"),
    "other JSON": (b'{"lr": 0.1}', "a JSON file"),
    "YAML": (b"student:\n  lr: 0.1\n", "a text that begins with 'student:'"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "compressed with gzip"),
    "a pickle of no tensors": (pickle.dumps({"a": 1}), "damaged or of another kind"),
    "bytes": (bytes(range(128, 256)), "damaged or of another kind"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_another_file_is_refused_with_what_it_is(kind: str, name: str, tmp_path: Path) -> None:
    content, says = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as error:
        read_weights(tmp_path / name)
    assert says in one_line(error)


# What is in a file of tensors, and what the one line says.
UNFIT: dict[str, tuple[Callable[[State], object], str]] = {
    "1,000 classes": (
        lambda state: {**state, "fc.weight": torch.ones(1000, 64), "fc.bias": torch.ones(1000)},
        "expected 5 classes, got 1,000 (fc.weight expected 5×64, got 1000×64",
    ),
    "half of the layers": (
        lambda state: {"model": dict(list(state.items())[: len(state) // 2])},
        "tensors are missing, the file holds",
    ),
    "another width": (
        lambda state: {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) if tensor.ndim else tensor
                       for name, tensor in state.items()},
        "are of another architecture: conv1.weight expected 16×3×3×3, got 32×3×3×3",
    ),
    "nothing of it": (
        lambda state: {"model": {"encoder.blocks.0.attn": torch.ones(2)}, "optimizer": {"state": {0: {}}}},
        "the file holds 1 tensors (model.encoder.blocks.0.attn) under model",
    ),
    "not finite": (lambda state: {**state, "fc.bias": state["fc.bias"] * torch.nan}, "values that are not finite"),
    "integers": (lambda state: {**state, "fc.bias": torch.ones(5, dtype=torch.int8)}, "got torch.int8"),
    "settings only": (lambda state: {"epoch": 3, "lr": 0.1}, "a mapping with the keys epoch, lr"),
    "a list": (lambda state: [1, 2], "a list without names"),
    "hostile names": (lambda state: {"\x1b]0;x\x07\nerror: fine": torch.ones(1)}, "\\x1b]0;x\\x07\\nerror: fine"),
    "one name twice": (lambda state: {"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.ones(2)}}, "named a.b.c, found"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_that_do_not_fit_are_refused_with_what_the_file_holds(
    kind: str, network: Network, other: Network, tmp_path: Path
) -> None:
    make, says = UNFIT[kind]
    torch.save(make(copy_of(network)), tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        trained_network("resnet8", CLASSES, tmp_path / "w.pth", "teacher")
    assert says in one_line(error)


class Calls:
    """A pickle that calls something when it is loaded, or puts a state into it."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a call": CreatesAFolder,
    "an allowed type's own code": lambda trace: Calls(eval, (f"__import__('os').mkdir({str(trace)!r})",)),
    "an attribute of a module": lambda trace: Calls(getattr, (CreatesAFolder(trace), "x")),
    "a factory": lambda trace: collections.defaultdict(CreatesAFolder(trace).__reduce__()[0]),
    "a setting's state": lambda trace: Calls(argparse.Namespace, (), {"x": CreatesAFolder(trace)}),
    "an array of objects": lambda trace: np.array([CreatesAFolder(trace)], dtype=object),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_code_of_a_file_runs(kind: str, legacy: bool, network: Network, tmp_path: Path) -> None:
    trace = tmp_path / "created"
    content = {"model": copy_of(network), "x": HOSTILE[kind](trace)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="the file was not loaded, since that would run code") as error:
        read_weights(tmp_path / "w.pth")
    assert not trace.exists()
    one_line(error)


def test_settings_are_placeholders_that_hold_nothing(network: Network, tmp_path: Path) -> None:
    """A dtype's or an array's own code trusts its state, which a file could forge; so none of it is called."""
    forged = Calls(np.dtype, ("V8", False, True), (4, "|", None, ("a",), {"a": (1, 2, 3)}, 8, 1, 63))
    torch.save({"model": copy_of(network), "x": forged}, tmp_path / "w.pth")
    assert_state(trained_network("resnet8", CLASSES, tmp_path / "w.pth", "student").network, copy_of(network))


def test_a_folder_is_told_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pth").touch()
    with pytest.raises(WeightsError, match=r"got a folder of ckpt.pth; name a run's folder or a weights file"):
        trained_network("resnet8", CLASSES, tmp_path, "teacher")


def test_forged_metadata_is_refused(tmp_path: Path) -> None:
    for metadata in ({"mean": "[1, 2]", "std": "[1, 2]"}, {"mean": "x", "std": "y"}, {"mean": "[[[", "std": "{}"}):
        save_weights(tmp_path / "w.safetensors", build_network("resnet8", CLASSES), metadata)
        with pytest.raises(WeightsError, match="expected a mean and a std of each channel"):
            trained_network("resnet8", CLASSES, tmp_path / "w.safetensors", "teacher")


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x", "x.safetensors.gz", "."])
def test_export_writes_three_formats_and_refuses_other_endings(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a file that ends in .safetensors, .onnx or .pt2, the formats"):
        export(tmp_path, tmp_path / name if name != "." else Path("."))
    assert list(tmp_path.iterdir()) == []
