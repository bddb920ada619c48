"""Muon for matrices and AdamW for all other parameters, as one optimizer.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. torch's Muon takes two-dimensional
parameters only. The kernels of convolutions are not among them; `timm:muon` flattens those.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from dhkd.data.errors import ConfigError
from dhkd.data.options import checked_options, parameters_of
from torch import nn

_OWN = ("lr", "weight_decay")  # of groups, not among the options
BESIDE = "adamw"  # the option that holds AdamW's options


class MatricesAndOthers(torch.optim.Optimizer):
    """Two optimizers, of matrices and of other parameters, whose groups and state are those of this one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self._parts = (first, second)
        self._matrix_groups = len(first.param_groups)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share()

    # Any: torch's own type of a state
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state and groups, as any optimizer does."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch's overloads
        """Update the matrices, then the other parameters."""
        assert closure is None
        for part in self._parts:
            part.step()

    def _share(self) -> None:
        first, second = self._parts
        first.param_groups = self.param_groups[: self._matrix_groups]
        second.param_groups = self.param_groups[self._matrix_groups :]
        first.state = second.state = self.state


def muon(
    groups: list[dict[str, object]],
    matrices: Collection[nn.Parameter],
    lr: float,
    weight_decay: float,
    options: Mapping[str, object],
) -> torch.optim.Optimizer:
    """Build Muon over those parameters in `groups` that are `matrices`, with AdamW over the others.

    `options` are Muon's; those under `adamw` are AdamW's. Both have the rate `lr`, so `adjust_lr_fn: match_rms_adamw`
    usually suits. Raises `ConfigError` if torch has no Muon, and if there are no matrices.
    """
    factory = getattr(torch.optim, "Muon", None)
    if factory is None:
        raise ConfigError(f"optimizer muon: expected torch with Muon, got torch {torch.__version__}; use timm:muon")
    beside = options.get(BESIDE, {})
    if not isinstance(beside, Mapping):
        raise ConfigError(f"optimizer muon: {BESIDE}: expected a mapping of AdamW's options, got {beside!r}")
    of_muon = _checked("optimizer muon", factory, {key: one for key, one in options.items() if key != BESIDE})
    of_others = _checked(f"optimizer muon: {BESIDE}", torch.optim.AdamW, beside)
    inside = _only(groups, lambda parameter: parameter in matrices)
    if not inside:
        raise ConfigError(
            "optimizer muon: expected a network with hidden linear layers, whose weights are matrices, found none; use"
            " timm:muon, which flattens the kernels of convolutions"
        )
    outside = _only(groups, lambda parameter: parameter not in matrices)
    of_matrices: torch.optim.Optimizer = factory(inside, lr=lr, weight_decay=weight_decay, **of_muon)
    if not outside:
        return of_matrices
    second = torch.optim.AdamW(outside, lr=lr, weight_decay=weight_decay, **of_others)
    return MatricesAndOthers(of_matrices, second)


def _only(groups: list[dict[str, object]], wanted: Callable[[nn.Parameter], bool]) -> list[dict[str, object]]:
    chosen = []
    for group in groups:
        parameters = group["params"]
        assert isinstance(parameters, list)
        if kept := [parameter for parameter in parameters if wanted(parameter)]:
            chosen.append({**group, "params": kept})
    return chosen


def _checked(
    where: str, factory: Callable[..., object], options: Mapping[str, object]
) -> dict[str, Any]:  # Any: plain values of YAML, checked against the annotations
    left_out = ("params", *_OWN, "foreach", "fused", "capturable", "differentiable")
    return checked_options(where, {k: p for k, p in parameters_of(factory).items() if k not in left_out}, options)
