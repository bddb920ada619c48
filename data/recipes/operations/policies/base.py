"""Policies: operations that are drawn at random for each view, with their magnitudes and signs."""

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

import torch
from dhkd.data.draws.philox import Domain
from dhkd.data.images.pictures import Pictures
from dhkd.data.recipes.operations.base import Operation
from dhkd.data.recipes.operations.policies.batched_steps import BatchedSteps
from dhkd.data.recipes.operations.policies.single_steps import SingleSteps
from dhkd.data.recipes.operations.policies.steps import Step
from torch import Tensor

# A batch is changed image by image if it has fewer than `FEW`, or if they have at least `LARGE` pixels.
FEW, LARGE = 16, 112 * 112
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
        batch, _, height, width = pixels_BCHW.shape
        device = pixels_BCHW.device
        if device.type == "cpu" and (batch < FEW or height * width >= LARGE):
            return self.change(Pictures(pixels_BCHW), draws_BD).tensor
        return _batched(self, height, width, device).apply(pixels_BCHW, self.chosen(draws_BD))

    def change(self, pictures: Pictures, draws_BD: Tensor) -> Pictures:
        """Return the changed pictures, one after the other."""
        photos = pictures.photos
        if not photos:
            return pictures
        return Pictures(_single(self, *photos[0].size).changed(photos, self.chosen(draws_BD)))

    def at_size(self, before: int, after: int) -> "PolicyAtSize":
        """Return the policy whose translations are those of images with the side `before`, in proportion."""
        return PolicyAtSize(self, before, after)


@dataclass(frozen=True)
class PolicyAtSize(Policy):
    """Applies, to images with the side `after`, the steps that `policy` applies to those with the side `before`."""

    policy: Policy
    before: int
    after: int

    @property
    def name(self) -> str:  # type: ignore[override]  # a class's attribute may be a property
        """The policy's name."""
        return self.policy.name

    @property
    def num_draws(self) -> int:
        """The policy's number of draws."""
        return self.policy.num_draws

    @property
    def row_draws(self) -> int | None:  # type: ignore[override]
        """The policy's."""
        return self.policy.row_draws

    def steps(self, height: int, width: int) -> tuple[Step, ...]:
        """Return the policy's steps, with scaled translations."""
        return tuple(self._scaled(step) for step in self.policy.steps(self.before, self.before))

    def chosen(self, draws_BD: Tensor) -> Tensor:
        """Return the number of the step in each slot, int64 (B, slots)."""
        return self.policy.chosen(draws_BD)

    def at_size(self, before: int, after: int) -> "PolicyAtSize":
        """Return the policy for another size; the first one remains that at which it is drawn."""
        return PolicyAtSize(self.policy, self.before, after)

    def _scaled(self, step: Step) -> Step:
        if not step.name.startswith("Translate"):
            return step
        return Step(step.name, Fraction(round(Fraction(int(step.magnitude) * self.after, self.before))))


@lru_cache(maxsize=64)
def _batched(policy: Policy, height: int, width: int, device: torch.device) -> BatchedSteps:
    """Return the policy's steps for batches of images of this size; computed once for each size and device."""
    return BatchedSteps(policy.steps(height, width), height, width, device)


@lru_cache(maxsize=64)
def _single(policy: Policy, width: int, height: int) -> SingleSteps:
    """Return the policy's steps for single images of this size; computed once for each size."""
    return SingleSteps(policy.steps(height, width), height, width)
