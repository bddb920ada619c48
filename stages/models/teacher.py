"""The frozen teacher, which maps pixels to named signals (outputs such as logits, see `signals.py`)."""

from collections.abc import Iterable

import torch
from dhkd.data.recipes.base import Recipe
from dhkd.data.render import Normalization
from dhkd.stages.models.network import Network
from dhkd.stages.models.signals import needs_maps, parse, signals_of_outputs
from dhkd.stages.processes import Precision, Processes
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class Teacher:
    """A trained network whose weights never change, with the normalisation of the network's input.

    The teacher computes in `precision` or, if that is None, in the precision of the processes. The two may differ if
    the teacher runs beside a student, because its signals must be those that a cache would hold. `recipe` makes the
    pixels that the teacher sees; if it is None, the teacher sees the student's pixels.
    """

    def __init__(
        self,
        network: Network,
        normalize: Normalization,
        processes: Processes,
        precision: Precision | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        self.recipe = recipe
        self._network = network.eval().requires_grad_(False)
        self._network.to(processes.device).to(memory_format=torch.channels_last)
        self._normalize, self._processes, self._precision = normalize, processes, precision
        self._batch_norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        for module in self._batch_norms:
            module.momentum = 0.0  # so that the running statistics don't change in training mode

    @torch.no_grad()
    def signals(self, pixels_BCHW: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Compute the named signals, float32 (B, …), of pixels, uint8 (B, C, H, W).

        Pixels and signals are on the processes' device. Signals whose names end in -batch need a second forward pass,
        with batch norm in training mode.
        """
        names = list(names)
        of_rows = [name for name in names if not parse(name).batch]
        of_batch = [name for name in names if parse(name).batch]
        images_BCHW = self._normalize(pixels_BCHW)
        signals = self._forward(images_BCHW, of_rows) if of_rows else {}
        if of_batch:
            for module in self._batch_norms:
                module.train()
            signals |= self._forward(images_BCHW, of_batch)
            self._network.eval()
        return {name: signals[name].float() for name in names}

    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Compute the logits, float32 (B, K), of pixels, uint8 (B, C, H, W), both on the processes' device."""
        return self.signals(pixels_BCHW, ["logits"])["logits"]

    def _forward(self, images_BCHW: Tensor, names: list[str]) -> dict[str, Tensor]:
        with self._processes.autocast(self._precision):
            if names == ["logits"]:
                return {"logits": self._network(images_BCHW)}
            outputs = self._network.outputs(images_BCHW, maps=needs_maps(names))
            return signals_of_outputs(self._network, outputs, names)
