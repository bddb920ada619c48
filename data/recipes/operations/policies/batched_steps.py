"""Computes the steps of a whole batch at once, on any device.

A batch draws a different step for each image. Images are put into an order in which those with the same kind of step
are neighbours, so that each kind is computed at once; at the end they are put back.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from dhkd.data.recipes.kernels import affine, tables
from dhkd.data.recipes.kernels.blends import grey_levels, mean_of, saturated, sharpened
from dhkd.data.recipes.operations.policies.steps import MAPS, TABLES, Step, blend_of, map_of, table_of
from torch import Tensor

# The kinds of steps, in the order in which images are put. Those from "table" to "Contrast" look values up in tables;
# those of Contrast and Color need grey values.
KINDS = ("Identity", "map", "table", "AutoContrast", "Equalize", "Contrast", "Color", "Sharpness")
_KIND_OF = {**dict.fromkeys(MAPS, "map"), **dict.fromkeys(TABLES, "table")}


class BatchedSteps:
    """Steps for images of one size on one device, as integers: `maps` and `tables` and `weights` of each step."""

    def __init__(self, steps: Sequence[Step], height: int, width: int, device: torch.device) -> None:
        kind_N = torch.tensor([KINDS.index(_KIND_OF.get(step.name, step.name)) for step in steps])
        order_N = kind_N.argsort(stable=True)
        self._place = order_N.argsort().to(device)  # of each step among those ordered by kind
        self._first = torch.searchsorted(kind_N[order_N], torch.arange(1, len(KINDS))).to(device)
        ordered = [steps[number] for number in order_N.tolist()]
        self._maps = torch.tensor([map_of(step, height, width) for step in ordered], dtype=torch.int32, device=device)
        self._tables = torch.tensor([table_of(step) for step in ordered], dtype=torch.uint8, device=device)
        self._weights = torch.tensor([blend_of(step) for step in ordered], dtype=torch.int32, device=device)

    def apply(self, pixels_BCHW: Tensor, step_BS: Tensor) -> Tensor:
        """Return the pixels after the steps of each image in turn, uint8 (B, C, H, W), contiguous."""
        place_BS = self._place[step_BS]
        batch = len(place_BS)
        if not batch:
            return pixels_BCHW
        order_B = torch.arange(batch, device=pixels_BCHW.device)
        pixels_BCHW = pixels_BCHW.contiguous()
        for slot in range(place_BS.shape[1]):
            place_B, further_B = place_BS[order_B, slot].sort(stable=True)
            if batch > 1:
                order_B, pixels_BCHW = order_B[further_B], pixels_BCHW.index_select(0, further_B)
            ends = torch.searchsorted(place_B, self._first).tolist()
            rows_of_kinds = [slice(*pair) for pair in pairwise((0, *ends, batch))]
            pixels_BCHW = self._changed(pixels_BCHW, place_B, rows_of_kinds)
        return pixels_BCHW.index_select(0, order_B.argsort()) if batch > 1 else pixels_BCHW

    def _changed(self, pixels_BCHW: Tensor, place_B: Tensor, rows_of_kinds: list[slice]) -> Tensor:
        """Return the images after their steps; `rows_of_kinds` are the images of each of `KINDS`.

        If several kinds occur, the pixels given are changed.
        """
        _, mapped, fixed, stretched, even, contrast, colour, sharpness = rows_of_kinds
        greyed = slice(contrast.start, colour.stop)
        grey_B1HW = grey_levels(pixels_BCHW[greyed]) if _any(greyed) else pixels_BCHW[greyed]
        contrast_grey_B1HW, colour_grey_B1HW = torch.split(grey_B1HW, [_number(contrast), _number(colour)])

        def looked_up() -> Tensor:
            shape = (-1, pixels_BCHW.shape[1], tables.LEVELS)
            made: tuple[tuple[slice, Callable[[], Tensor]], ...] = (
                (fixed, lambda: self._tables[place_B[fixed]][:, None].expand(shape)),
                (stretched, lambda: tables.auto_contrasts(pixels_BCHW[stretched])),
                (even, lambda: tables.equalizations(pixels_BCHW[even])),
                (
                    contrast,
                    lambda: tables.contrasts(mean_of(contrast_grey_B1HW), weights(contrast))[:, None].expand(shape),
                ),
            )
            return tables.looked_up(pixels_BCHW[with_table], torch.cat([make() for rows, make in made if _any(rows)]))

        def weights(rows: slice) -> Tensor:
            return self._weights[place_B[rows]]

        with_table = slice(fixed.start, contrast.stop)
        changes: tuple[tuple[slice, Callable[[], Tensor]], ...] = (
            (mapped, lambda: affine.nearest(pixels_BCHW[mapped], self._maps[place_B[mapped]])),
            (with_table, looked_up),
            (colour, lambda: saturated(pixels_BCHW[colour], colour_grey_B1HW, weights(colour))),
            (sharpness, lambda: sharpened(pixels_BCHW[sharpness], weights(sharpness))),
        )
        for rows, change in changes:
            if _number(rows) == len(pixels_BCHW):
                return change()
            if _any(rows):
                pixels_BCHW[rows] = change()
        return pixels_BCHW


def _number(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _any(rows: slice) -> bool:
    return _number(rows) > 0
