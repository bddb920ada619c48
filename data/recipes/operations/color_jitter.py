"""Color jitter: brightness, contrast, saturation and hue, each changed by a random amount, in random order."""

from dataclasses import dataclass
from itertools import permutations

import torch
from dhkd.data.draws.keyed import below, chosen
from dhkd.data.draws.philox import Domain
from dhkd.data.errors import ConfigError
from dhkd.data.recipes.kernels.blends import BITS as WEIGHT_BITS
from dhkd.data.recipes.kernels.colors import BITS as TURN_BITS
from dhkd.data.recipes.kernels.colors import brightened, contrasted, saturated, turned
from dhkd.data.recipes.operations.base import Operation, require, require_probability
from dhkd.data.recipes.operations.drawn import between
from torch import Tensor

MOST = 5.0  # the kernels take factors below 8
_ORDERS = torch.tensor(list(permutations(range(4))))


@dataclass(frozen=True)
class ColorJitter(Operation):
    """Changes colours with this probability, as torchvision's `ColorJitter`.

    The factors of brightness, contrast and saturation are uniform from 1 - x (at least 0) to 1 + x, and the hue turns
    by up to ± `hue` of the colour circle. 0 leaves a property as it is. `strength` sets the first three, as a number
    alone does in timm.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0
    strength: float | None = None

    domain = Domain.COLOR_JITTER
    main_field = "strength"

    def __post_init__(self) -> None:
        if self.strength is not None:
            if (self.brightness, self.contrast, self.saturation) != (0, 0, 0):
                raise ConfigError(
                    "views.color_jitter: strength: expected no brightness, contrast or saturation beside it, which it"
                    " sets; leave them out"
                )
            for name in ("brightness", "contrast", "saturation"):
                object.__setattr__(self, name, self.strength)  # the dataclass is frozen
        for name, amount in zip(("brightness", "contrast", "saturation"), self._amounts, strict=True):
            require("color_jitter", name, 0 <= amount <= MOST, f"0 to {MOST:g}", amount)
        require("color_jitter", "hue", 0 <= self.hue <= 0.5, "0 to 0.5, half of the colour circle", self.hue)
        require_probability("color_jitter", self.probability)
        if not any((*self._amounts, self.hue)):
            raise ConfigError("views.color_jitter: expected brightness, contrast, saturation or hue above 0, got none")

    @property
    def _amounts(self) -> tuple[float, float, float]:
        return self.brightness, self.contrast, self.saturation

    @property
    def identity(self) -> dict[str, object]:
        """The operation as plain values; `strength` is recorded as what it sets."""
        recorded = super().identity
        del recorded["strength"]
        return recorded

    @property
    def num_draws(self) -> int:
        """6: whether colours change, the order, three factors, and the turn of the hue."""
        return 6

    def orders(self, draws_BD: Tensor) -> Tensor:
        """Return the order of the four changes, int64 (B, 4): 0 brightness, 1 contrast, 2 saturation, 3 hue."""
        return _ORDERS.to(draws_BD.device)[below(draws_BD[:, 1], len(_ORDERS))]

    def amounts(self, draws_BD: Tensor) -> Tensor:
        """Return the three factors and the turn, int32 (B, 4), with the numbers of fractional bits of the kernels."""
        factors = [
            between(draws_BD[:, 2 + place], max(0.0, 1 - amount), 1 + amount, WEIGHT_BITS)
            for place, amount in enumerate(self._amounts)
        ]
        return torch.stack([*factors, between(draws_BD[:, 5], -self.hue, self.hue, TURN_BITS)], 1).int()

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        changes_B = chosen(draws_BD[:, 0], self.probability)
        order_B4, amount_B4 = self.orders(draws_BD), self.amounts(draws_BD)
        kernels = (brightened, contrasted, saturated, turned)
        wanted = [number for number, amount in enumerate((*self._amounts, self.hue)) if amount]
        pixels_BCHW = pixels_BCHW.clone(memory_format=torch.contiguous_format)
        for place in range(4):
            for number in wanted:
                rows = (changes_B & (order_B4[:, place] == number)).nonzero()[:, 0]
                if len(rows) > 0:
                    pixels_BCHW[rows] = kernels[number](pixels_BCHW[rows], amount_B4[rows, number])
        return pixels_BCHW
