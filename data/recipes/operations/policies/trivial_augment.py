"""TrivialAugment (Müller and Hutter, 2021, arXiv:2103.10158), as torchvision's `TrivialAugmentWide`."""

from dataclasses import dataclass

from dhkd.data.draws.keyed import BITS, below
from dhkd.data.errors import ConfigError
from dhkd.data.recipes.operations.policies.base import COLUMNS, Policy
from dhkd.data.recipes.operations.policies.magnitudes import NAMES, wide
from dhkd.data.recipes.operations.policies.steps import Step
from torch import Tensor


@dataclass(frozen=True)
class TrivialAugment(Policy):
    """Applies one operation of 14, with a magnitude of `num_magnitude_bins` and a sign, all drawn evenly."""

    num_magnitude_bins: int = 31

    name = "trivialaugment"

    def __post_init__(self) -> None:
        bins = self.num_magnitude_bins
        if not 2 <= bins <= 1000:
            raise ConfigError(f"views.policy {self.name}: num_magnitude_bins: expected 2 to 1000, got {bins}")

    @property
    def num_draws(self) -> int:
        """3: operation, magnitude, sign."""
        return COLUMNS

    def steps(self, height: int, width: int) -> tuple[Step, ...]:
        """Return each operation with each magnitude, positive and negative."""
        space, places = wide(self.num_magnitude_bins), range(self.num_magnitude_bins)
        return tuple(space.step(name, place, sign) for name in NAMES for place in places for sign in (1, -1))

    def chosen(self, draws_BD: Tensor) -> Tensor:
        """Return the number of the step, int64 (B, 1)."""
        operation_B, place_B = below(draws_BD[:, 0], len(NAMES)), below(draws_BD[:, 1], self.num_magnitude_bins)
        return ((operation_B * self.num_magnitude_bins + place_B) * 2 + (draws_BD[:, 2] >> BITS - 1))[:, None]
