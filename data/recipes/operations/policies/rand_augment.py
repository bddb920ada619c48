"""RandAugment (Cubuk et al., 2019, arXiv:1909.13719), as torchvision's `RandAugment`."""

from dataclasses import dataclass

from dhkd.data.draws.keyed import BITS, below
from dhkd.data.errors import ConfigError
from dhkd.data.recipes.operations.policies.base import COLUMNS, Policy
from dhkd.data.recipes.operations.policies.magnitudes import NAMES, usual
from dhkd.data.recipes.operations.policies.steps import Step
from torch import Tensor

MOST_OPS = 16


@dataclass(frozen=True)
class RandAugment(Policy):
    """Applies `num_ops` operations, each drawn evenly from 14, with magnitude number `magnitude` and a random sign."""

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31

    name = "randaugment"
    row_draws = COLUMNS * MOST_OPS

    def __post_init__(self) -> None:
        where = f"views.policy {self.name}"
        if not 1 <= self.num_ops <= MOST_OPS:
            raise ConfigError(f"{where}: num_ops: expected 1 to {MOST_OPS}, got {self.num_ops}")
        if not 2 <= self.num_magnitude_bins <= 1000:
            raise ConfigError(f"{where}: num_magnitude_bins: expected 2 to 1000, got {self.num_magnitude_bins}")
        if not 0 <= self.magnitude < self.num_magnitude_bins:
            most = self.num_magnitude_bins - 1
            raise ConfigError(
                f"{where}: magnitude: expected 0 to {most}, one less than num_magnitude_bins, got {self.magnitude}"
            )

    @property
    def num_draws(self) -> int:
        """Three for each operation."""
        return COLUMNS * self.num_ops

    def steps(self, height: int, width: int) -> tuple[Step, ...]:
        """Return each operation with a positive and with a negative magnitude."""
        space = usual(height, width, self.num_magnitude_bins)
        return tuple(space.step(name, self.magnitude, sign) for name in NAMES for sign in (1, -1))

    def chosen(self, draws_BD: Tensor) -> Tensor:
        """Return the number of the step in each slot, int64 (B, slots)."""
        operation_BS, sign_BS = below(draws_BD[:, 0::COLUMNS], len(NAMES)), draws_BD[:, 2::COLUMNS] >> BITS - 1
        return operation_BS * 2 + sign_BS
