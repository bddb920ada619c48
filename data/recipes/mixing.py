"""Mixing of two images of a data set: mixup, which blends them, and CutMix, which pastes a box of one into the other.

A key (view, index) determines its partner, the share of the key's own image and, for CutMix, the box: integers from
Philox, a counter-based generator, and from exact arithmetic. So a mixed picture has the same bytes in any batch, order
and process, and a cache can hold the teacher's outputs for it. The partner is the picture of another sample in the same
view, with that view's crop and operations, but not mixed itself.

Partners come from the same group of consecutive samples, so that whoever renders a whole group decodes each file once.

mixup: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412.
CutMix: Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", ICCV 2019, arXiv 1905.04899. Settings and definitions are those of timm's `Mixup` in the mode `elem`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from math import isqrt
from typing import TYPE_CHECKING

import torch
from dhkd.data.draws.keyed import BITS, below, chosen, keyed_draws
from dhkd.data.draws.philox import Domain
from dhkd.data.errors import ConfigError
from dhkd.data.options import with_options
from torch import Tensor

if TYPE_CHECKING:
    from dhkd.data.recipes.base import Render

WHOLE = 256  # shares are counted in 256ths
LEAST_ALPHA, MOST_ALPHA = 0.01, 100.0
MOST_IN_GROUP = 4096  # for each key, a draw of each sample of its group is computed
DIGITS = 40  # of the shares' distribution, before it is rounded to 32 bits

# What a bare word sets: the usual alphas for ImageNet.
WORDS: Mapping[str, Mapping[str, object]] = {"mixup": {"mixup": 0.8}, "cutmix": {"cutmix": 1.0}}

PART = 1 << 22  # pixel values that are blended at once; their sums take 16 MB each


@dataclass(frozen=True)
class Mixed:
    """How each row of a batch is mixed, on the device of its keys.

    Row b shows share_B[b] / 256 of its own picture and the rest of the picture of sample partner_B[b]; in the box
    box_B4[b] (top, left, bottom, right in pixels), it shows the partner alone. mixup has an empty box, CutMix a share
    of 256. A row that isn't mixed is its own partner. `weight_B`, float32, is the share of the row's own label.
    """

    partner_B: Tensor
    share_B: Tensor
    box_B4: Tensor
    weight_B: Tensor

    def pixels(self, unmixed_KCHW: Tensor, own_B: Tensor, partner_B: Tensor) -> Tensor:
        """Mix pictures, uint8 (B, C, H, W), channels last in memory, by integer arithmetic.

        `unmixed_KCHW` has the pictures of all keys: that of row b at own_B[b], and its partner's at partner_B[b].
        """
        batch, shape = len(own_B), unmixed_KCHW.shape[1:]
        mixed_BCHW = torch.empty((batch, *shape), dtype=torch.uint8, device=unmixed_KCHW.device)
        mixed_BCHW = mixed_BCHW.contiguous(memory_format=torch.channels_last)
        rows = max(1, PART // shape.numel())
        for part in (slice(start, start + rows) for start in range(0, batch, rows)):
            own, partners = unmixed_KCHW[own_B[part]], unmixed_KCHW[partner_B[part]]
            mixed_BCHW[part] = _mixed(own, partners, self.share_B[part], self.box_B4[part])
        return mixed_BCHW


def _mixed(own_BCHW: Tensor, partners_BCHW: Tensor, share_B: Tensor, box_B4: Tensor) -> Tensor:
    """Compute (share · own + (256 − share) · partner + 128) >> 8, with share 0 inside the box."""
    height, width = own_BCHW.shape[2:]
    row_H1, column_W = (torch.arange(side, device=box_B4.device) for side in (height, width))
    row_H1 = row_H1[:, None]
    top, left, bottom, right = box_B4[:, :, None, None, None].unbind(1)
    inside_B1HW = (row_H1 >= top) & (row_H1 < bottom) & (column_W >= left) & (column_W < right)
    rest_B1HW = torch.where(inside_B1HW, WHOLE, WHOLE - share_B[:, None, None, None]).int()
    own = own_BCHW.int()
    # The same number, as own + ((256 − share) · (partner − own) + 128 >> 8): fewer operations.
    change = partners_BCHW.int().sub_(own).mul_(rest_B1HW).add_(WHOLE // 2).bitwise_right_shift_(8)
    return change.add_(own).byte()


@dataclass(frozen=True)
class Mixing:
    """How the pictures of a view are mixed, `views.mix` of a preset.

    A picture is mixed with this `probability`: by CutMix with the probability `switch` and else by mixup, if both are
    on. The share of its own image is drawn from Beta(alpha, alpha), where alpha is `mixup` or `cutmix`; 0 turns one
    off. `group` is the number of consecutive samples among which partners are found. Boxes are drawn for images of
    height and width `drawn_at`, and then scaled to the pixels' size; if it is None, they are drawn for that size.
    """

    seed: int
    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    group: int = 64
    drawn_at: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not (alpha == 0 or LEAST_ALPHA <= alpha <= MOST_ALPHA):
                raise ConfigError(
                    f"views.mix: {name}: expected an alpha of {LEAST_ALPHA} to {MOST_ALPHA:g}, or 0 to turn it off, got"
                    f" {alpha}"
                )
        if not self.mixup and not self.cutmix:
            raise ConfigError("views.mix: expected an alpha for mixup or cutmix, got none above 0; leave mix out")
        if not 0 < self.probability <= 1:
            raise ConfigError(f"views.mix: probability: expected above 0, up to 1, got {self.probability}")
        if not 0 <= self.switch <= 1:
            raise ConfigError(f"views.mix: switch: expected 0 to 1, got {self.switch}")
        if not 2 <= self.group <= MOST_IN_GROUP:
            raise ConfigError(f"views.mix: group: expected 2 to {MOST_IN_GROUP} samples, got {self.group}")

    @property
    def identity(self) -> dict[str, object]:
        """The settings as plain values, which a cache records and compares."""
        names = ("mixup", "cutmix", "probability", "switch", "group")
        return {"version": 1, **{name: getattr(self, name) for name in names}}

    def require_partners(self, num_samples: int) -> None:
        """Raise `ConfigError` for a data set of a single sample."""
        if num_samples < 2:
            raise ConfigError(f"views.mix: expected at least 2 images to mix, got {num_samples}; leave mix out")

    def groups(self, index_B: Tensor, num_samples: int) -> Tensor:
        """Return the number of each sample's group, int64 (B,). A last group of one sample joins the group before."""
        return (index_B // self.group).clamp(max=self._num_groups(num_samples) - 1)

    def partners(self, view_B: Tensor, index_B: Tensor, num_samples: int) -> Tensor:
        """Return the other sample of the same group that each key is mixed with, int64 (B,).

        A group's samples form a circle, in an order that (seed, view, group) determines, and a sample's partner is the
        next one. So each sample is the partner of one other sample, and each other sample is equally likely.
        """
        group_B = self.groups(index_B, num_samples)
        first_B = group_B * self.group
        is_last_B = group_B == self._num_groups(num_samples) - 1
        size_B = torch.where(is_last_B, num_samples - first_B, self.group)
        draws_BG = keyed_draws(self.seed, Domain.MIX_PARTNER, view_B, group_B, self.group + 1)
        place_G = torch.arange(self.group + 1, device=index_B.device)
        rank_BG = draws_BG << BITS - 2 | place_G  # ranks differ even if draws don't
        nobody = torch.iinfo(torch.int64).max
        rank_BG = torch.where(place_G < size_B[:, None], rank_BG, nobody)
        own_B1 = rank_BG.gather(1, (index_B - first_B)[:, None])
        after_B = torch.where(rank_BG > own_B1, rank_BG, nobody).amin(dim=1)
        next_B = torch.where(after_B == nobody, rank_BG.amin(dim=1), after_B)
        return first_B + (next_B & (1 << BITS - 2) - 1)

    def drawn(self, view_B: Tensor, index_B: Tensor, num_samples: int, shape: tuple[int, int]) -> Mixed:
        """Return how the rows of these keys are mixed, for pixels of this height and width."""
        is_mixed, switch, share, *centre = keyed_draws(self.seed, Domain.MIX_SHARE, view_B, index_B, 5).unbind(1)
        mixes_B = chosen(is_mixed, self.probability)
        by_box_B = chosen(switch, self.switch if self.mixup and self.cutmix else float(self.cutmix > 0))
        blend_B = torch.full_like(share, WHOLE) if not self.mixup else shares_of(share, self.mixup)
        kept_B = torch.full_like(share, WHOLE) if not self.cutmix else shares_of(share, self.cutmix)
        share_B = torch.where(mixes_B & ~by_box_B, blend_B, WHOLE)
        height, width = self.drawn_at or shape
        box_B4 = _boxes(torch.where(mixes_B & by_box_B, kept_B, WHOLE), centre, (height, width))
        top, left, bottom, right = box_B4.unbind(1)
        area_B = (bottom - top) * (right - left)
        partner_B = torch.where((share_B < WHOLE) | (area_B > 0), self.partners(view_B, index_B, num_samples), index_B)
        weight_B = torch.where(by_box_B, (height * width - area_B).float() / (height * width), share_B.float() / WHOLE)
        return Mixed(partner_B, share_B, _scaled(box_B4, (height, width), shape), weight_B)

    def render(self, unmixed: "Render", num_samples: int, shape: tuple[int, int], device: torch.device) -> "Render":
        """Return a function that renders mixed pictures of any keys, from one that renders unmixed pictures.

        Raises `ConfigError` for a data set of a single sample.
        """
        self.require_partners(num_samples)

        def render(view_B: Tensor, index_B: Tensor) -> Tensor:
            view_B, index_B = view_B.to(device), index_B.to(device)
            mixed = self.drawn(view_B, index_B, num_samples, shape)
            both = unmixed(torch.cat([view_B, view_B]), torch.cat([index_B, mixed.partner_B]))
            row_B = torch.arange(len(index_B), device=device)
            return mixed.pixels(both, row_B, row_B + len(index_B))

        return render

    def _num_groups(self, num_samples: int) -> int:
        return max(1, (num_samples + self.group - 2) // self.group)


def build_mixing(setting: object, seed: int) -> Mixing:
    """Build what the key `mix` of `views` describes: its settings, or one of the words mixup and cutmix.

    Raises `ConfigError` for unknown or wrong settings.
    """

    def mixing(
        *, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0, switch: float = 0.5, group: int = 64
    ) -> Mixing:
        return Mixing(seed, mixup, cutmix, probability, switch, group)

    options = WORDS.get(setting) if isinstance(setting, str) else setting
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"views.mix: expected {', '.join(WORDS)} or settings such as {{mixup: 0.8, cutmix: 1.0}}, got {setting!r}"
        )
    return with_options("views.mix", mixing, options)


def shares_of(draws_B: Tensor, alpha: float) -> Tensor:
    """Turn draws in [0, 2³²) into shares, integers 0 to 256: λ of Beta(alpha, alpha) in 256ths, rounded to nearest."""
    return torch.searchsorted(_bounds_on(alpha, draws_B.device), draws_B.contiguous(), right=True)


@cache
def share_bounds(alpha: float) -> tuple[int, ...]:
    """Return for each share s = 0 to 255 the probability of at most s, P(λ ≤ (s + ½) / 256), in units of 2⁻³².

    λ is of Beta(alpha, alpha). The 40 digits are computed with Python's `decimal`, whose results are the same on all
    machines; they would have to lie within 10⁻³⁰ of a half for another way of computing them to round differently.
    """
    with localcontext() as context:
        context.prec = DIGITS
        exponent = Decimal(alpha)
        at_middle = _unscaled(exponent, Decimal("0.5"))
        lower = [
            _unscaled(exponent, Decimal(2 * share + 1) / (2 * WHOLE)) / (2 * at_middle) for share in range(WHOLE // 2)
        ]
        both = [*lower, *(1 - probability for probability in reversed(lower))]
        return tuple(int((probability * (1 << BITS)).to_integral_value()) for probability in both)


def _unscaled(alpha: Decimal, x: Decimal) -> Decimal:
    """Compute P(λ ≤ x) of Beta(alpha, alpha) up to a constant factor, for x ≤ ½.

    (x(1 − x))^α · Σ_n Π_{k<n} (2α + k) / (α + 1 + k) · x^n: the hypergeometric series of the incomplete beta function,
    Abramowitz and Stegun 26.5.4 and 15.3.3. All terms are positive, so no digits cancel.
    """
    term = total = Decimal(1)
    number = 0
    while term > total.scaleb(-DIGITS):
        term *= (2 * alpha + number) / (alpha + 1 + number) * x
        total += term
        number += 1
    return (alpha * (x * (1 - x)).ln()).exp() * total


@cache
def _bounds_on(alpha: float, device: torch.device) -> Tensor:
    return torch.tensor(share_bounds(alpha), dtype=torch.int64, device=device)


@cache
def _half_sides(side: int, device: torch.device) -> Tensor:
    """Return ⌊side · √(1 − share/256) / 2⌋, half the side of a box that leaves a share of the area, for 0 to 256."""
    halves = [isqrt(side * side * (WHOLE - share) // (4 * WHOLE)) for share in range(WHOLE + 1)]
    return torch.tensor(halves, dtype=torch.int64, device=device)


def _boxes(kept_B: Tensor, centre: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
    """Return boxes (top, left, bottom, right), int64 (B, 4), of (256 - kept_B) / 256 of the area, in its proportions.

    The two draws in `centre` put the middle on any pixel of an image of height and width `shape`, all equally likely.
    What lies outside the image is cut off.
    """
    starts, stops = [], []
    for draws_B, side in zip(centre, shape, strict=True):
        middle_B, half_B = below(draws_B, side), _half_sides(side, kept_B.device)[kept_B]
        starts.append((middle_B - half_B).clamp(min=0))
        stops.append((middle_B + half_B).clamp(max=side))
    return torch.stack([*starts, *stops], dim=1)


def _scaled(box_B4: Tensor, drawn_at: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Scale boxes from images of one height and width to another, rounded to whole pixels."""
    if drawn_at == shape:
        return box_B4
    old, new = (torch.tensor([*sides, *sides], device=box_B4.device) for sides in (drawn_at, shape))
    return (2 * box_B4 * new + old) // (2 * old)
