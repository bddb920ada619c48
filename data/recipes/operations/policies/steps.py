"""Steps of policies: one operation with its magnitude, by torchvision's names, and how a batch of them is computed.

A batch draws a different step for each image. Images are put into an order in which those with the same kind of step
are neighbours, so that each kind is computed at once; at the end they are put back.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from dhkd.data.recipes.kernels import affine, tables
from dhkd.data.recipes.kernels.blends import saturated, sharpened, weight_of
from torch import Tensor


class Step(NamedTuple):
    """An operation and its magnitude with its sign; 0 for an operation that has none."""

    name: str
    magnitude: Fraction = Fraction(0)


# The kinds of steps, in the order in which images are put. Those from "table" to "Equalize" look values up in tables.
KINDS = ("Identity", "map", "table", "Contrast", "AutoContrast", "Equalize", "Color", "Sharpness")
_KIND_OF = {
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), "map"),
    **dict.fromkeys(("Brightness", "Posterize", "Solarize", "Invert"), "table"),
}

Change = Callable[[Tensor, Tensor], Tensor]  # takes pixels_BCHW and the place of each image's step


class CompiledSteps:
    """Steps for images of one size on one device, as integers: `maps` and `tables` and `weights` of each step."""

    def __init__(self, steps: Sequence[Step], height: int, width: int, device: torch.device) -> None:
        kind_N = torch.tensor([KINDS.index(_KIND_OF.get(step.name, step.name)) for step in steps])
        order_N = kind_N.argsort(stable=True)
        self._place = order_N.argsort().to(device)  # of each step among those ordered by kind
        self._first = torch.searchsorted(kind_N[order_N], torch.arange(1, len(KINDS))).to(device)
        ordered = [steps[number] for number in order_N.tolist()]
        self._maps = torch.tensor([_map_of(step, height, width) for step in ordered], dtype=torch.int32, device=device)
        self._tables = torch.tensor([_table_of(step) for step in ordered], dtype=torch.uint8, device=device)
        self._weights = torch.tensor([_weight_of(step) for step in ordered], dtype=torch.int32, device=device)

    def apply(self, pixels_BCHW: Tensor, step_BS: Tensor) -> Tensor:
        """Return the pixels after the steps of each image in turn, uint8 (B, C, H, W), contiguous."""
        place_BS = self._place[step_BS]
        order_B = torch.arange(len(place_BS), device=pixels_BCHW.device)
        pixels_BCHW = pixels_BCHW.contiguous()
        for slot in range(place_BS.shape[1]):
            place_B, further_B = place_BS[order_B, slot].sort(stable=True)
            order_B, pixels_BCHW = order_B[further_B], pixels_BCHW.index_select(0, further_B)
            ends = torch.searchsorted(place_B, self._first).tolist()
            self._change(pixels_BCHW, place_B, [slice(*pair) for pair in pairwise((0, *ends, len(place_B)))])
        return pixels_BCHW.index_select(0, order_B.argsort())

    def _change(self, pixels_BCHW: Tensor, place_B: Tensor, rows_of_kinds: list[slice]) -> None:
        """Compute the step of each image, in place; `rows_of_kinds` are the images of each of `KINDS`."""
        _, mapped, fixed, contrast, stretched, even, colour, sharpness = rows_of_kinds
        table_makers: tuple[tuple[slice, Change], ...] = (
            (fixed, lambda images, place: self._tables[place][:, None].expand(-1, images.shape[1], -1)),
            (contrast, lambda images, place: tables.contrasts(images, self._weights[place])),
            (stretched, lambda images, _: tables.auto_contrasts(images)),
            (even, lambda images, _: tables.equalizations(images)),
        )

        def looked_up(images: Tensor, _: Tensor) -> Tensor:
            made = [make(pixels_BCHW[rows], place_B[rows]) for rows, make in table_makers if rows.start < rows.stop]
            return tables.looked_up(images, torch.cat(made))

        changes: tuple[tuple[slice, Change], ...] = (
            (mapped, lambda images, place: affine.nearest(images, self._maps[place])),
            (slice(fixed.start, even.stop), looked_up),
            (colour, lambda images, place: saturated(images, self._weights[place])),
            (sharpness, lambda images, place: sharpened(images, self._weights[place])),
        )
        for rows, change in changes:
            if rows.start < rows.stop:
                pixels_BCHW[rows] = change(pixels_BCHW[rows], place_B[rows])


@lru_cache(maxsize=64)
def compiled(steps: tuple[Step, ...], height: int, width: int, device: torch.device) -> CompiledSteps:
    """Return the steps as integers for images of this size; computed once for each size and device."""
    return CompiledSteps(steps, height, width, device)


def _map_of(step: Step, height: int, width: int) -> affine.Map:
    zero, magnitude = Fraction(0), step.magnitude
    match step.name:
        case "ShearX":
            return affine.sheared(magnitude, zero)
        case "ShearY":
            return affine.sheared(zero, magnitude)
        case "TranslateX":
            return affine.translated(int(magnitude), 0)
        case "TranslateY":
            return affine.translated(0, int(magnitude))
        case "Rotate":
            return affine.rotated(magnitude, height, width)
    return affine.IDENTITY


@lru_cache(maxsize=512)
def _table_of(step: Step) -> list[int]:
    match step.name:
        case "Brightness":
            return tables.brightened(1 + step.magnitude)
        case "Posterize":
            return tables.posterized(int(step.magnitude))
        case "Solarize":
            return tables.solarized(step.magnitude)
        case "Invert":
            return tables.INVERTED
    return tables.IDENTITY


def _weight_of(step: Step) -> int:
    return weight_of(1 + step.magnitude) if step.name in ("Contrast", "Color", "Sharpness") else 0
