"""What a key draws for mixing: the partner, the share and the box, and how these mix pixels."""

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.mixing import Mixed, Mixing, build_mixing, share_bounds, shares_of
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import beta
from timm.data.mixup import Mixup
from torch import Tensor

BOTH = Mixing(seed=3, mixup=0.8, cutmix=1.0)
NUM = 100_000
SHAPE = (32, 32)


def many(mixing: Mixing, shape: tuple[int, int] = SHAPE) -> Mixed:
    """How 10⁵ keys are mixed, all in one view; in small groups, because each draw of a group takes time."""
    index_B = torch.arange(NUM)
    return replace(mixing, group=7).drawn(torch.full_like(index_B, 7), index_B, NUM, shape)


def areas(mixed: Mixed) -> Tensor:
    top, left, bottom, right = mixed.box_B4.unbind(1)
    return (bottom - top) * (right - left)


# partners


@given(
    num=st.integers(2, 300),
    group=st.integers(2, 64),
    view=st.integers(0, 1 << 31),
    seed=st.integers(0, (1 << 63) - 1),
)
@example(num=65, group=64, view=0, seed=0)  # a last group of one sample
@example(num=2, group=64, view=0, seed=0)
@example(num=3, group=2, view=0, seed=0)
def test_a_group_is_a_circle(num: int, group: int, view: int, seed: int) -> None:
    """Each sample has one partner in its group, is the partner of one, and never its own."""
    mixing = Mixing(seed, mixup=1.0, group=group)
    index_N = torch.arange(num)
    partner_N = mixing.partners(torch.full((num,), view), index_N, num)
    assert sorted(partner_N.tolist()) == index_N.tolist()
    group_N = mixing.groups(index_N, num)
    assert torch.equal(group_N, group_N[partner_N])
    assert not (partner_N == index_N).any()
    assert min(torch.bincount(group_N)) >= 2
    for start in torch.unique(group_N):
        (members,) = torch.nonzero(group_N == start, as_tuple=True)
        seen = [int(members[0])]
        while (following := int(partner_N[seen[-1]])) != seen[0]:
            seen.append(following)
        assert len(seen) == len(members)


@pytest.mark.parametrize(("index", "num", "others"), [(2, 18, 5), (17, 18, 5), (16, 19, 6), (13, 16, 3)])
def test_partners_are_uniform_over_the_others_of_the_group(index: int, num: int, others: int) -> None:
    """Of a group of 6, of a last group that takes in a seventh, and of a last group of 4."""
    view_B = torch.arange(60_000)
    partner_B = Mixing(5, mixup=1.0, group=6).partners(view_B, torch.full_like(view_B, index), num)
    counts = torch.bincount(partner_B)
    assert counts[counts > 0].tolist() == pytest.approx([60_000 / others] * others, rel=0.05)


def test_a_partner_is_a_function_of_its_key_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    view_B = torch.randint(0, 1 << 31, (200,), generator=generator)
    index_B = torch.randint(0, 1000, (200,), generator=generator)
    together = BOTH.drawn(view_B, index_B, 1000, SHAPE)
    order = torch.randperm(200, generator=generator)
    for rows in order.split(7):
        alone = BOTH.drawn(view_B[rows], index_B[rows], 1000, SHAPE)
        for name, values in vars(alone).items():
            assert torch.equal(values, getattr(together, name)[rows]), name


def test_golden() -> None:
    """Whoever changes these numbers gives the mixing a new version, because caches hold what was drawn before."""
    view_B, index_B = torch.tensor([(0, 0), (0, 1), (1, 0), (1, 64), (5, 99), (1 << 30, 70)]).unbind(1)
    mixed = Mixing(seed=3, mixup=0.8, cutmix=1.0, probability=0.9).drawn(view_B, index_B, 100, (224, 200))
    assert mixed.partner_B.tolist() == PARTNERS
    assert mixed.share_B.tolist() == SHARES
    assert mixed.box_B4.tolist() == BOXES
    bounds = [bound for alpha in (0.2, 0.8, 1.0) for bound in share_bounds(alpha)]
    assert hashlib.sha256(struct.pack(f"<{len(bounds)}Q", *bounds)).hexdigest() == BOUNDS


PARTNERS = [29, 32, 28, 73, 73, 71]
SHARES = [78, 256, 47, 256, 256, 256]
BOXES = [
    [212, 97, 212, 97],
    [19, 10, 191, 164],
    [192, 43, 192, 43],
    [60, 0, 214, 79],
    [108, 77, 188, 147],
    [108, 114, 224, 200],
]
BOUNDS = "cee82bd87d0e79197aae06a5b069844180687c52289d7912caac27e14511743d"

# shares


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 0.8, 1.0, 2.0, 17.0, 100.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    bounds = np.array(share_bounds(alpha), dtype=np.float64)
    expected = beta.cdf((np.arange(256) + 0.5) / 256, alpha, alpha) * 2.0**32
    assert np.abs(bounds - expected).max() < 0.51  # rounded to integers
    assert (np.diff(bounds) >= 0).all()


def test_the_uniform_distribution_has_exact_bounds() -> None:
    assert share_bounds(1.0) == tuple((2 * share + 1) << 23 for share in range(256))


def test_a_draw_at_a_bound_gives_the_next_share() -> None:
    bounds = share_bounds(0.8)
    draws = torch.tensor([0, bounds[0] - 1, bounds[0], bounds[99] - 1, bounds[99], bounds[255], (1 << 32) - 1])
    assert shares_of(draws, 0.8).tolist() == [0, 0, 1, 99, 100, 256, 256]


def same_distribution(one: np.ndarray, other: np.ndarray) -> bool:
    """Compare two samples as Kolmogorov and Smirnov do, on a grid of 256ths; they pass in 999 of 1,000 cases."""
    grid = (np.arange(256) + 0.5) / 256
    below = [np.searchsorted(np.sort(sample), grid) / len(sample) for sample in (one, other)]
    return bool(np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(1 / len(one) + 1 / len(other)))


@pytest.mark.parametrize(
    ("mixup", "cutmix", "probability", "switch"),
    [(0.8, 1.0, 1.0, 0.5), (0.2, 0.0, 1.0, 0.5), (0.0, 1.0, 0.7, 0.5), (0.4, 0.3, 0.6, 0.2)],
)
def test_settings_mean_what_they_mean_in_timm(mixup: float, cutmix: float, probability: float, switch: float) -> None:
    mixing = build_mixing({"mixup": mixup, "cutmix": cutmix, "probability": probability, "switch": switch}, 11)
    mixed = many(mixing, (224, 224))
    np.random.seed(0)  # timm draws from the global generator
    shares, by_box = Mixup(mixup, cutmix, prob=probability, switch_prob=switch, mode="elem")._params_per_elem(NUM)
    mixes = shares < 511 / 512  # which isn't rounded to 1
    boxed = areas(mixed).numpy() > 0
    assert boxed.mean() == pytest.approx((by_box & mixes).mean(), abs=0.01)
    blended = (mixed.share_B < 256).numpy()
    assert blended.mean() == pytest.approx((~by_box & mixes).mean(), abs=0.01)
    assert not (boxed & blended).any()
    if mixup:
        drawn = mixed.share_B.numpy()[blended] / 256
        assert same_distribution(drawn, shares[~by_box & mixes])
    if cutmix:  # the area that remains is less than was drawn where the box is cut off: timm's `rand_bbox`
        side = (224 * np.sqrt(1 - shares)).astype(int)
        rng = np.random.default_rng(0)
        kept = [
            np.clip(middle + side // 2, 0, 224) - np.clip(middle - side // 2, 0, 224)
            for middle in rng.integers(224, size=(2, NUM))
        ]
        expected = 1 - kept[0] * kept[1] / 224**2
        assert same_distribution(mixed.weight_B.numpy()[boxed], expected[by_box & mixes])


def test_boxes_lie_in_the_image_and_their_centres_everywhere() -> None:
    mixed = many(Mixing(1, cutmix=1.0), (20, 48))
    top, left, bottom, right = mixed.box_B4.unbind(1)
    assert int(top.min()) == int(left.min()) == 0
    assert (int(bottom.max()), int(right.max())) == (20, 48)
    assert (top <= bottom).all()
    assert (left <= right).all()
    whole = (top > 0) & (bottom < 20) & (left > 0) & (right < 48) & (areas(mixed) > 0)
    assert (bottom - top)[whole].unique().tolist() == list(range(2, 20, 2))
    inside = torch.stack([(top <= row) & (row < bottom) for row in range(20)]).float().mean(dim=1)
    assert inside.min() > 0.3  # the edge is covered too, if less often than the middle
    assert torch.allclose(inside[:19], inside[:19].flip(0), atol=0.01)  # a middle is a pixel's upper left corner


def test_a_label_weighs_as_much_as_its_image_shows() -> None:
    mixed = many(BOTH)
    assert torch.equal(mixed.weight_B, ((1024 - areas(mixed)).float() / 1024) * (mixed.share_B.float() / 256))
    unmixed = (areas(mixed) == 0) & (mixed.share_B == 256)
    assert torch.equal(mixed.partner_B[unmixed], torch.arange(NUM)[unmixed])
    assert 0 < int(unmixed.sum()) < NUM / 20
    rare = many(Mixing(2, cutmix=1.0, probability=0.1))
    assert (rare.weight_B == 1).float().mean() == pytest.approx(0.9, abs=0.02)


def test_boxes_of_another_size_show_the_same_part() -> None:
    recipe = build_recipe("random-resized-crop", {"size": 64, "flip": True, "seed": 3, "mix": "cutmix"})
    larger = recipe.at_size(96, "bilinear")
    assert larger is not None
    small, large = many(recipe.mixing, (64, 64)), many(larger.mixing, (96, 96))
    assert torch.equal(large.box_B4, (3 * small.box_B4 + 1) // 2)
    for name in ("partner_B", "share_B", "weight_B"):
        assert torch.equal(getattr(small, name), getattr(large, name)), name


# pixels


def test_pixels_are_those_of_the_formula() -> None:
    """Each channel separately, in unbounded integers."""
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randint(0, 256, (2, 300, 3, 9, 12), dtype=torch.uint8, generator=generator)
    index_B = torch.arange(300)
    mixed = BOTH.drawn(index_B % 5, index_B, 300, (9, 12))
    got = mixed.pixels(torch.cat([other, own]), index_B + 300, index_B)
    assert got.dtype == torch.uint8
    assert got.is_contiguous(memory_format=torch.channels_last)
    for row in range(300):
        share = int(mixed.share_B[row])
        expected = (share * own[row].long() + (256 - share) * other[row].long() + 128) >> 8
        top, left, bottom, right = mixed.box_B4[row].tolist()
        expected[:, top:bottom, left:right] = other[row, :, top:bottom, left:right].long()
        assert torch.equal(got[row].long(), expected), row


def test_extreme_values_neither_overflow_nor_move() -> None:
    black, white = torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    row, nowhere = torch.tensor([0]), torch.zeros(1, 4, dtype=torch.int64)
    for share, expected in ((0, 0), (1, 1), (128, 128), (255, 254), (256, 255)):
        mixed = Mixed(row, torch.tensor([share]), nowhere, torch.ones(1))
        assert int(mixed.pixels(torch.cat([white, black]), row, row + 1)) == expected
        assert int(mixed.pixels(torch.cat([white, white]), row, row + 1)) == 255


# settings


def test_a_word_sets_the_usual_alpha_and_the_identity_has_all_settings() -> None:
    assert build_mixing("cutmix", 1) == Mixing(1, cutmix=1.0)
    assert build_mixing("mixup", 1) == Mixing(1, mixup=0.8)
    recipe = build_recipe("crop-flip", {"padding": 2, "flip": True, "seed": 3, "mix": {"mixup": 1, "group": 16}})
    assert recipe.identity == {
        "kind": "crop-flip", "version": 1, "padding": 2, "flip": True, "seed": 3,
        "mix": {"version": 1, "mixup": 1.0, "cutmix": 0.0, "probability": 1.0, "switch": 0.5, "group": 16},
    }  # fmt: skip
    assert recipe.num_views is None
    assert recipe.at_test().mixing is None


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"mixup": 0.0, "cutmix": 0}, "views.mix: expected an alpha for mixup or cutmix, got none above 0; leave mix"),
        ({}, "views.mix: expected an alpha for mixup or cutmix, got none above 0; leave mix out"),
        ({"mixup": -1}, "views.mix: mixup: expected an alpha of 0.01 to 100, or 0 to turn it off, got -1"),
        ({"cutmix": float("nan")}, "views.mix: cutmix: expected an alpha of 0.01 to 100, or 0 to turn it off, got nan"),
        ({"cutmix": 1.0, "probability": 0}, "views.mix: probability: expected above 0, up to 1, got 0"),
        ({"cutmix": 1.0, "probability": 1.1}, "views.mix: probability: expected above 0, up to 1, got 1.1"),
        ({"cutmix": 1.0, "switch": -0.1}, "views.mix: switch: expected 0 to 1, got -0.1"),
        ({"cutmix": 1.0, "group": 1}, "views.mix: group: expected 2 to 4096 samples, got 1"),
        ({"cutmix": 1.0, "seed": 1}, "views.mix: unknown option 'seed'"),
        ({"cutmix": "much"}, "views.mix: cutmix: expected a valid number, got 'much'"),
        ("cutmixup", "views.mix: expected mixup, cutmix or settings such as {mixup: 0.8, cutmix: 1.0}, got 'cutmixup'"),
        (True, "views.mix: expected mixup, cutmix or settings such as {mixup: 0.8, cutmix: 1.0}, got True"),
        (0.8, "views.mix: expected mixup, cutmix or settings such as {mixup: 0.8, cutmix: 1.0}, got 0.8"),
    ],
)
def test_wrong_settings_are_one_line(mix: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_recipe("crop-flip", {"padding": 2, "flip": True, "seed": 3, "mix": mix})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
