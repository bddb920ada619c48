"""3-Augment (Touvron et al., "DeiT III", 2022, arXiv:2204.07118): grey, solarized or blurred."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from dhkd.data.draws.keyed import below
from dhkd.data.draws.philox import Domain
from dhkd.data.recipes.operations.base import Operation
from dhkd.data.recipes.operations.blur import Blur
from dhkd.data.recipes.operations.drawn import changed
from dhkd.data.recipes.operations.grayscale import Grayscale
from dhkd.data.recipes.operations.solarize import Solarize
from torch import Tensor


@dataclass(frozen=True)
class ThreeAugment(Operation):
    """Applies one of `grayscale`, `solarize` and `blur`, drawn evenly; the fields are theirs.

    In the paper's recipe, color jitter of 0.3 comes beside it, which `views.color_jitter` sets.
    """

    threshold: int = 128
    kernel_size: int = 23
    sigma: tuple[float, float] = (0.1, 2.0)

    domain = Domain.POLICY
    name = "three-augment"

    def __post_init__(self) -> None:
        _ = self._operations  # which check the fields

    @property
    def identity(self) -> dict[str, object]:
        """The policy as plain values, which a cache records and compares."""
        return {"name": self.name, **super().identity}

    @property
    def num_draws(self) -> int:
        """2: which operation, and the blur's sigma."""
        return 2

    @property
    def _operations(self) -> tuple[Grayscale, Solarize, Blur]:
        return Grayscale(1.0), Solarize(1.0, self.threshold), Blur(1.0, self.kernel_size, self.sigma)

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        choice_B = below(draws_BD[:, 0], len(self._operations))
        # The first draw of each operation decides whether pixels change, which is so for all draws.
        draws_BD = torch.stack([torch.zeros_like(choice_B), draws_BD[:, 1]], 1)
        for number, operation in enumerate(self._operations):
            pixels_BCHW = changed(pixels_BCHW, choice_B == number, _applied(operation, draws_BD))
        return pixels_BCHW

    def at_size(self, before: int, after: int) -> "ThreeAugment":
        """Return the policy with a blur in proportion to the size."""
        blur = self._operations[2].at_size(before, after)
        return replace(self, kernel_size=blur.kernel_size, sigma=blur.sigma)


def _applied(operation: Operation, draws_BD: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda pixels, rows: operation.apply(pixels, draws_BD[rows])
