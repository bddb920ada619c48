"""Gradient checkpointing: activations within a block are computed again in the backward pass instead of being kept.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv 1604.06174. The second computation draws the
same random numbers, because `torch.utils.checkpoint` restores torch's generators, and it must not count twice in the
running statistics of batch norm.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# What transformers calls it, from version 5 and before.
TRANSFORMERS = ("activation_checkpointing", "gradient_checkpointing")


def checkpoint_method(module: nn.Module, name: str = "forward") -> None:
    """Make a method of the module compute again, in the backward pass, what it computed in the forward pass."""
    setattr(module, name, partial(_run, getattr(module, name)))


def _run(function: Callable[..., Any], *values: Any) -> Any:
    return checkpoint(function, *values, use_reentrant=False) if torch.is_grad_enabled() else function(*values)


def blocks_of(network: nn.Module) -> Iterable[nn.Module]:
    """Yield the outermost modules that are called as a whole: lists, and sequences of blocks, are looked into."""
    for child in network.children():
        parts = list(child.children())
        if isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and any(_has_parts(p) for p in parts)):
            yield from blocks_of(child)
        elif parts:
            yield child


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def enable_in_library(module: nn.Module) -> bool:
    """Call the method by which timm or transformers enable checkpointing, and return whether there is one that can.

    If the module has no such method, the outermost modules within it that have one are asked.
    """
    try:
        if callable(timm := getattr(module, "set_grad_checkpointing", None)):
            timm(True)
            return True
        # The older kind of checkpoint, with reentrant calls, gives no gradients to maps within it.
        for name in TRANSFORMERS:
            if callable(enable := getattr(module, f"{name}_enable", None)):
                enable(**{f"{name}_kwargs": {"use_reentrant": False}})
                return True
    except (AssertionError, NotImplementedError, ValueError):  # how networks say that they can't
        return False
    return sum(enable_in_library(child) for child in module.children()) > 0  # all are asked


def keep_buffers_in_backward(network: nn.Module) -> None:
    """Let a module that runs in the backward pass change copies of its buffers, which are dropped afterwards."""
    for module in network.modules():
        if any(isinstance(buffer, Tensor) for buffer in module._buffers.values()):
            _Buffers(module)


class _Buffers:
    """The buffers of a module, which are set aside while it runs in a backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self._own: dict[str, Tensor | None] | None = None
        module.register_forward_pre_hook(self._set_aside)
        # The second computation may be broken off by an exception as soon as it has all that the backward pass needs.
        module.register_forward_hook(self._put_back, always_call=True)

    def _set_aside(self, module: nn.Module, _: object) -> None:
        if torch._C._current_graph_task_id() == -1:  # not within a backward pass
            return
        self._own = dict(module._buffers)
        for name, buffer in self._own.items():
            module._buffers[name] = None if buffer is None else buffer.clone()

    def _put_back(self, module: nn.Module, *_: object) -> None:
        if self._own is not None:
            module._buffers.update(self._own)
            self._own = None
