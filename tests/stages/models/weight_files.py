"""Networks with weights, and files of them in every published layout."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from dhkd.stages.models import Network, build_network
from torch import Tensor, nn

CLASSES = 5


def trained(name: str = "resnet8", seed: int = 0, num_classes: int = CLASSES) -> Network:
    """A network after one forward in training mode: no buffer has its initial value."""
    torch.manual_seed(seed)
    network = build_network(name, num_classes)
    network.train()(torch.randn(4, 3, 8, 8))
    return network.eval()


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_state(network: nn.Module, expected: dict[str, Tensor]) -> None:
    state = network.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def channels_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in state.items()
    }


# The layouts of published files, as functions that write a state; all but the last two are torch files.
LAYOUTS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "bare": torch.save,
    "legacy": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "under model": lambda state, path: torch.save({"epoch": 240, "model": state, "best_acc": 72.3}, path),
    "under state_dict": lambda state, path: torch.save({"state_dict": state, "optimizer": {"lr": 0.1}}, path),
    "module. prefix": lambda state, path: torch.save(prefixed(state), path),
    "beside a Namespace": lambda state, path: torch.save(
        {"opt": argparse.Namespace(model="resnet8", lr=0.1), "model": prefixed(state), "accuracy": torch.tensor(72.3)},
        path,
    ),
    "without counters": lambda state, path: torch.save(without_counters(state), path),
    "channels last": lambda state, path: torch.save(channels_last(state), path),
    "other order": lambda state, path: torch.save(dict(reversed(state.items())), path),
    "safetensors": safetensors.torch.save_file,
    "module. prefix, safetensors": lambda state, path: safetensors.torch.save_file(prefixed(state), path),
}


class Holder(nn.Module):
    """A module with any tensors by name."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


class CreatesAFolder:
    """Loading a pickle of this creates the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)
