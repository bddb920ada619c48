"""Policies: operations that are drawn at random for each view, with their magnitudes and signs."""

from abc import abstractmethod
from typing import ClassVar

from dhkd.data.draws.philox import Domain
from dhkd.data.recipes.operations.base import Operation
from dhkd.data.recipes.operations.policies.steps import Step, compiled
from torch import Tensor

COLUMNS = 3  # draws of a slot: operation, magnitude, sign


class Policy(Operation):
    """Applies a number of steps in turn. What is drawn is the number of a step in a list that the image's size gives.

    Slot s of a policy uses draws 3s to 3s + 2, however many slots there are.
    """

    domain = Domain.POLICY
    name: ClassVar[str]

    @property
    def identity(self) -> dict[str, object]:
        """The policy as plain values, which a cache records and compares."""
        return {"name": self.name, **super().identity}

    @abstractmethod
    def steps(self, height: int, width: int) -> tuple[Step, ...]:
        """Return every step that can be drawn, for images of this size."""

    @abstractmethod
    def chosen(self, draws_BD: Tensor) -> Tensor:
        """Return the number of the step in each slot, int64 (B, slots)."""

    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W)."""
        height, width = pixels_BCHW.shape[2:]
        steps = compiled(self.steps(height, width), height, width, pixels_BCHW.device)
        return steps.apply(pixels_BCHW, self.chosen(draws_BD))
