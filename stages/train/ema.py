"""An exponential moving average (EMA) of a network's weights, which is kept and tested beside them.

The rules are those of timm's `ModelEmaV3`. Parameters and floating-point buffers, such as the running statistics of
batch norm, are averaged; other buffers, such as counters, are copied. The first update copies everything, so that the
initial weights don't count. The average starts from `state_dict`, so it has no part of the student that is dropped
after training: neither the auxiliary head nor the objective's adapter.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WARMUP_POWER = 2 / 3  # timm's default


class Ema:
    """The average of a network's weights: call `begin` with the network, then `step` after each training step.

    Every `every`-th step, from the first, makes an update: average ← d · average + (1 - d) · weights. In update k,
    counted from 1, d is `decay`, with `warmup` at most 1 - k^(-2/3), and 0 in the first update.
    """

    def __init__(self, decay: float, *, warmup: bool = False, every: int = 1) -> None:
        self._decay, self._warmup, self._every = decay, warmup, every
        self._steps = 0
        self._average: dict[str, Tensor] = {}

    def begin(self, network: nn.Module) -> None:
        """Start with the weights that the network has now, on their device."""
        self._average = {name: value.clone() for name, value in _tensors(network).items()}

    def decay_of(self, update: int) -> float:
        """Return the share of the average that this update keeps; updates are counted from 1."""
        if update == 1:
            return 0.0
        return min(self._decay, 1 - update**-WARMUP_POWER) if self._warmup else self._decay

    @torch.no_grad()
    def step(self, network: nn.Module) -> None:
        """Count one training step and, if it is due, update the average with the network's weights."""
        updates, wait = divmod(self._steps, self._every)
        self._steps += 1
        if wait:
            return
        averaged, weights = [], []
        for name, value in _tensors(network).items():
            if value.is_floating_point():
                averaged.append(self._average[name])
                weights.append(value)
            else:
                self._average[name].copy_(value)
        torch._foreach_lerp_(averaged, weights, 1 - self.decay_of(updates + 1))

    @contextmanager
    def in_place_of_weights(self, network: nn.Module) -> Iterator[None]:
        """Give the network the average as its weights in the `with` block, and its own weights again afterwards."""
        weights = _tensors(network)
        own = {name: value.clone() for name, value in weights.items()}
        _overwrite(weights, self._average)
        try:
            yield
        finally:
            _overwrite(weights, own)

    def tensors(self) -> list[Tensor]:
        """Return the average's tensors, which may be changed in place."""
        return list(self._average.values())

    def state(self) -> dict[str, Any]:  # Any: what a checkpoint holds
        """Return what a checkpoint holds of the average."""
        return {"steps": self._steps, "average": self._average}

    def load(self, state: Mapping[str, Any]) -> None:  # Any: what a checkpoint holds
        """Go on from a `state`, once begun. Raises `ValueError` or `KeyError` if it is not of this network."""
        steps, average = state["steps"], state["average"]
        shapes = {name: value.shape for name, value in self._average.items()}
        if type(steps) is not int or {name: value.shape for name, value in average.items()} != shapes:
            raise ValueError("its average of weights is of another network")
        self._steps = steps
        _overwrite(self._average, average)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers by name, as they are in memory."""
    return {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}


@torch.no_grad()
def _overwrite(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(sources[name])
