"""AutoAugment (Cubuk et al., 2019, arXiv:1805.09501), as torchvision's `AutoAugment`."""

from dataclasses import dataclass
from typing import Literal

import torch
from dhkd.data.draws.keyed import BITS, below
from dhkd.data.recipes.operations.policies.auto_augment_tables import TABLES
from dhkd.data.recipes.operations.policies.base import COLUMNS, Policy
from dhkd.data.recipes.operations.policies.magnitudes import usual
from dhkd.data.recipes.operations.policies.steps import Step
from torch import Tensor

SLOTS, BINS = 2, 10
CASES = 3  # of a choice: not applied, applied with a positive magnitude, with a negative one


@dataclass(frozen=True)
class AutoAugment(Policy):
    """Draws one of 25 sub-policies evenly, and applies each of its two operations with that operation's probability.

    Of the draws, the first chooses the sub-policy; the fourth is not used.
    """

    table: Literal["imagenet", "cifar10", "svhn"] = "imagenet"

    name = "autoaugment"

    @property
    def num_draws(self) -> int:
        """Three for each of the two operations."""
        return COLUMNS * SLOTS

    def steps(self, height: int, width: int) -> tuple[Step, ...]:
        """Return the three cases of each choice: not applied, and applied with either sign."""
        space = usual(height, width, BINS)
        choices = [(name, place) for sub_policy in TABLES[self.table] for name, _, place in sub_policy]
        cases = [(Step("Identity"), space.step(name, place), space.step(name, place, -1)) for name, place in choices]
        return tuple(step for case in cases for step in case)

    def chosen(self, draws_BD: Tensor) -> Tensor:
        """Return the number of the step in each slot, int64 (B, 2)."""
        table = TABLES[self.table]
        probability_NS = torch.tensor([[tenths for _, tenths, _ in sub] for sub in table], device=draws_BD.device)
        sub_policy_B = below(draws_BD[:, 0], len(table))
        applied_BS = draws_BD[:, 1::COLUMNS] * 10 < probability_NS[sub_policy_B] << BITS
        sign_BS = draws_BD[:, 2::COLUMNS] >> BITS - 1
        choice_BS = sub_policy_B[:, None] * SLOTS + torch.arange(SLOTS, device=draws_BD.device)
        return choice_BS * CASES + torch.where(applied_BS, 1 + sign_BS, 0)
