"""Pixel operations: torchvision's definitions, pixels and distributions, and golden pixels of this version."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from dhkd.data.draws.keyed import below
from dhkd.data.errors import ConfigError
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.images.witness import witnesses
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.kernels.blends import BITS as WEIGHT_BITS
from dhkd.data.recipes.kernels.colors import BITS as TURN_BITS
from dhkd.data.recipes.kernels.functions import STEPS
from dhkd.data.recipes.kernels.warping import FINE
from dhkd.data.recipes.operations import build_operations
from dhkd.data.recipes.operations.base import Operation
from dhkd.data.recipes.operations.blur import Blur
from dhkd.data.recipes.operations.color_jitter import ColorJitter
from dhkd.data.recipes.operations.drawn import between
from dhkd.data.recipes.operations.random_erasing import RandomErasing
from numpy.typing import NDArray
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from tests.samples import make_photo

NUM = 24
# Photographs and noise, 40 × 48 pixels.
PICTURES = torch.stack(
    [torch.from_numpy(np.asarray(make_photo(seed, 48, 40)).copy()).permute(2, 0, 1) for seed in range(NUM - 4)]
    + list(torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
)


def operation_of(name: str, settings: object) -> Operation:
    return build_operations({name: settings})[name]


def draws_of(operation: Operation, num: int = NUM) -> Tensor:
    index_B = torch.arange(num)
    return operation.draws(5, index_B * 7 + 1, index_B)


def step_of(draws_B: Tensor, low: float, high: float) -> list[float]:
    """Return what a table over a range has for each draw, in float64."""
    steps: list[float] = (low + (below(draws_B, STEPS) + 0.5) * (high - low) / STEPS).tolist()
    return steps


def furthest(got: Tensor, expected: Tensor) -> int:
    return int((got.int() - expected.int()).abs().max())


# pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "place", "bits", "change"),
    [
        ("brightness", 0, WEIGHT_BITS, reference.adjust_brightness),
        ("contrast", 1, WEIGHT_BITS, reference.adjust_contrast),
        ("saturation", 2, WEIGHT_BITS, reference.adjust_saturation),
        ("hue", 3, TURN_BITS, reference.adjust_hue),
    ],
)
def test_colours_are_torchvisions_to_one_grey_level(
    name: str, place: int, bits: int, change: Callable[[Tensor, float], Tensor], channels: int
) -> None:
    jitter = ColorJitter(**{name: 0.5})
    draws_BD, pictures = draws_of(jitter), PICTURES[:, :channels]
    amounts = (jitter.amounts(draws_BD)[:, place] / (1 << bits)).tolist()
    expected = torch.stack([change(*one) for one in zip(pictures, amounts, strict=True)])
    got = jitter.apply(pictures, draws_BD)
    assert furthest(got, expected) <= 1
    unchanged = channels == 1 and name in ("saturation", "hue")
    assert torch.equal(got, pictures) == unchanged


def test_the_four_changes_come_in_the_order_that_is_drawn() -> None:
    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    alone = [ColorJitter(**{name: getattr(jitter, name)}) for name in ("brightness", "contrast", "saturation", "hue")]
    draws_BD = draws_of(jitter)
    expected = PICTURES.clone()
    for row, order in enumerate(jitter.orders(draws_BD).tolist()):
        for number in order:
            expected[row : row + 1] = alone[number].apply(expected[row : row + 1], draws_BD[row : row + 1])
    assert torch.equal(jitter.apply(PICTURES, draws_BD), expected)


def test_a_blur_is_torchvisions_to_one_grey_level() -> None:
    blur = Blur(1.0, kernel_size=23, sigma=(0.1, 2.0))
    draws_BD = draws_of(blur)
    sigmas = step_of(draws_BD[:, 1], 0.1, 2.0)
    expected = [reference.gaussian_blur(PICTURES[i], [23, 23], [sigmas[i]] * 2) for i in range(NUM)]
    assert furthest(blur.apply(PICTURES, draws_BD), torch.stack(expected)) <= 1


@pytest.mark.parametrize("interpolation", [InterpolationMode.NEAREST, InterpolationMode.BILINEAR])
def test_rotations_and_affine_maps_are_torchvisions(interpolation: InterpolationMode) -> None:
    """Without a fill, which torchvision blends into the border twice. A place may be rounded to another pixel."""
    rotation = operation_of("rotation", {"degrees": [-40, 90], "interpolation": interpolation.value})
    draws_BD = draws_of(rotation)
    angles = step_of(draws_BD[:, 1], -40, 90)
    turned = [reference.rotate(*one, interpolation) for one in zip(PICTURES, angles, strict=True)]
    settings = {"degrees": 30, "translate": [0.1, 0.2], "scale": [0.6, 1.5], "shear": [-10, 10, -20, 20]}
    affine = operation_of("affine", {**settings, "interpolation": interpolation.value})
    drawn = draws_of(affine)
    angles, x, y = (step_of(drawn[:, column], -most, most) for column, most in ((1, 30), (5, 10), (6, 20)))
    across, down = (
        [math.floor(share * side / 2**16 + 0.5) for share in between(drawn[:, column], -most, most, 16).tolist()]
        for column, most, side in ((2, 0.1, 48), (3, 0.2, 40))
    )
    scales = (between(drawn[:, 4], 0.6, 1.5, 16) / 2**16).tolist()
    mapped = [
        reference.affine(PICTURES[i], angles[i], [across[i], down[i]], scales[i], [x[i], y[i]], interpolation)
        for i in range(NUM)
    ]
    for operation, draws, expected in ((rotation, draws_BD, turned), (affine, drawn, mapped)):
        apart = (operation.apply(PICTURES, draws).int() - torch.stack(expected).int()).abs()
        assert (apart > 1).float().mean() < 1e-3


def test_what_a_rotation_uncovers_is_filled() -> None:
    rotation = operation_of("rotation", {"degrees": [45, 45], "fill": [1, 2, 3], "interpolation": "bilinear"})
    corner = rotation.apply(PICTURES, draws_of(rotation))[:, :, 0, 0]
    assert (corner == torch.tensor([1, 2, 3], dtype=torch.uint8)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_mirrored_images_are_torchvisions(channels: int) -> None:
    pictures = PICTURES[:, :channels]
    for name, change in (
        ("grayscale", transforms.Grayscale(channels)),
        ("vertical_flip", transforms.RandomVerticalFlip(1.0)),
    ):
        operation = operation_of(name, 1.0)
        expected = torch.stack([change(picture) for picture in pictures])
        assert furthest(operation.apply(pictures, draws_of(operation)), expected) <= 1, name


def test_three_augment_applies_one_of_three_evenly() -> None:
    """To a picture that each of them changes in another way."""
    policy = operation_of("policy", "three-augment")
    num = 3000
    pictures = PICTURES[:1].expand(num, -1, -1, -1)
    draws_BD = draws_of(policy, num)
    got = policy.apply(pictures, draws_BD)
    grey = (got == reference.rgb_to_grayscale(PICTURES[0], 3)).flatten(1).float().mean(1) > 0.4
    solarized = (got == reference.solarize(PICTURES[0], 128)).flatten(1).all(1)
    assert not (grey & solarized).any()
    for number, count in (("grey", grey.sum()), ("solarized", solarized.sum())):
        assert abs(int(count) - num / 3) < 6 * math.sqrt(num / 3), number
    row = int((~grey & ~solarized).nonzero()[0])
    sigma = step_of(draws_BD[row : row + 1, 1], 0.1, 2.0)
    assert furthest(got[row], reference.gaussian_blur(PICTURES[0], [23, 23], sigma * 2)) <= 1


GOLDEN = {
    "policy": ("three-augment", 1914142161),
    "vertical_flip": (0.5, 2650425724),
    "rotation": (15, 3455211076),
    "affine": (
        {"degrees": 10, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 5, "interpolation": "bilinear"},
        816636857,
    ),
    "color_jitter": ({"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}, 2820179784),
    "grayscale": (0.2, 232625126),
    "blur": (0.5, 241340532),
    "solarize": (0.5, 2473964641),
    "random_erasing": ({"probability": 0.9, "value": "random"}, 3320670506),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_pixels(name: str) -> None:
    """A change of these needs a new version of the operation, so that old caches are refused."""
    settings, expected = GOLDEN[name]
    operation = operation_of(name, settings)
    assert operation.version == 1
    y, x = torch.arange(32)[:, None], torch.arange(32)
    images = torch.stack([(x * y + 7 * x * k + 3 * y) % 256 for k in range(8 * 3)]).view(8, 3, 32, 32).to(torch.uint8)
    index_B = torch.arange(8)
    changed = operation.apply(images, operation.draws(0, index_B * 1000, index_B))
    assert witnesses(torch.cat(list(changed), 1)[None]).tolist() == [expected]


# distributions

MANY = 100_000


def gap_from_uniform(values: Tensor, low: float, high: float) -> float:
    """The largest gap between the values' distribution function and the uniform one's."""
    places = (values.double().sort().values - low) / (high - low)
    ranks = torch.arange(1, len(values) + 1) / len(values)
    return float((places - ranks).abs().max())


LARGEST_GAP = 2.7 / math.sqrt(MANY)  # by chance one time in a million


def test_factors_and_orders_are_distributed_as_torchvisions() -> None:
    jitter = ColorJitter(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    draws_BD = draws_of(jitter, MANY)
    amounts = jitter.amounts(draws_BD).double() / torch.tensor([1 << WEIGHT_BITS] * 3 + [1 << TURN_BITS])
    for column, (low, high) in enumerate([(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]):
        assert gap_from_uniform(amounts[:, column], low, high) < LARGEST_GAP
    orders, counts = jitter.orders(draws_BD).unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert (counts - MANY / 24).abs().max() < 6 * math.sqrt(MANY / 24)


def test_angles_are_uniform() -> None:
    rotation = operation_of("rotation", {"degrees": [-20, 50]})
    cosine, _, _, sine, _, _ = rotation.maps(draws_of(rotation, MANY)).double().unbind(1)  # type: ignore[attr-defined]
    assert gap_from_uniform(torch.atan2(sine, cosine).rad2deg(), -20, 50) < LARGEST_GAP
    affine = operation_of("affine", {"degrees": 0, "translate": [0.5, 0.0], "scale": [0.5, 2.0], "shear": 20})
    a, b, c, d, e, f = (affine.maps(draws_of(affine, MANY), 100, 4000).double() / (1 << FINE)).unbind(1)  # type: ignore[attr-defined]
    assert gap_from_uniform(1 / a, 0.5, 2.0) < LARGEST_GAP
    assert gap_from_uniform((b / a).atan().rad2deg(), -20, 20) < LARGEST_GAP
    assert gap_from_uniform(-c / a, -2000, 2000) < LARGEST_GAP
    assert not d.any()
    assert not f.any()
    assert torch.allclose(a, e, atol=1e-5)


def test_erased_boxes_are_distributed_as_torchvisions() -> None:
    height, width, num = 60, 90, 5_000
    erasing = RandomErasing(0.25)
    draws_BD = draws_of(erasing, MANY)
    assert (draws_BD[:, 0] < 2**30).float().mean() == pytest.approx(0.25, abs=0.01)
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transforms.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(num)]

    def facts(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        top, left, box_height, box_width = boxes.T
        area, ratio = box_height * box_width / (height * width), np.log(box_height / box_width)
        return np.stack([area, ratio, top / (height - box_height), left / (width - box_width)])

    got = facts(erasing.boxes(draws_BD, height, width).double().numpy())
    for name, ours, theirs in zip(
        ("area", "log ratio", "top", "left"), got, facts(np.array(drawn, float)), strict=True
    ):
        at = np.sort(theirs)
        shares = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 2.7 * math.sqrt(1 / num + 1 / MANY), name


def test_no_box_is_erased_if_none_of_ten_fits() -> None:
    erasing = RandomErasing(1.0, scale=(0.29, 0.29), ratio=(0.3, 0.3))
    assert not erasing.boxes(draws_of(erasing), 4, 40).any()
    assert torch.equal(erasing.apply(PICTURES[:, :, :4], draws_of(erasing)), PICTURES[:, :, :4])


# what fills an erased box


def test_an_erased_box_has_the_value_and_the_rest_is_unchanged() -> None:
    erasing = RandomErasing(1.0, value=(1, 2, 3))
    draws_BD = draws_of(erasing)
    got = erasing.apply(PICTURES, draws_BD)
    for row, (top, left, height, width) in enumerate(erasing.boxes(draws_BD, 40, 48).tolist()):
        expected = PICTURES[row].clone()
        expected[:, top : top + height, left : left + width] = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]
        assert torch.equal(got[row], expected)


def test_noise_is_uniform_and_differs_from_pixel_to_pixel() -> None:
    erasing = RandomErasing(1.0, scale=(0.3, 0.33), value="random")
    images = torch.zeros((200, 3, 40, 48), dtype=torch.uint8)
    noise = erasing.apply(images, draws_of(erasing, 200))
    counts = torch.bincount(noise.flatten().int())[1:]
    assert (counts / counts.float().mean() - 1).abs().max() < 0.1
    inside = noise.any(1).sum()
    assert inside > 200 * 40 * 48 * 0.25
    values = noise.permute(0, 2, 3, 1).flatten(0, 2).double()
    values = values[values.any(1)]
    assert (torch.corrcoef(values.T) - torch.eye(3)).abs().max() < 0.02


@pytest.mark.parametrize("kind", ["crop-flip", "random-resized-crop"])
def test_the_value_mean_is_the_data_sets_mean_colour(kind: str) -> None:
    images = ImageSet("noise", "train", PICTURES[:, :, :32, :32], None, 2, (0.2, 0.5, 0.999), (0.2, 0.2, 0.2))
    parameters: dict[str, object] = {"padding": 0} if kind == "crop-flip" else {"size": 32, "scale": [1.0, 1.0]}
    erasing = {"probability": 1.0, "value": "mean"}
    recipe = build_recipe(kind, {"seed": 0, "flip": False, **parameters, "random_erasing": erasing})
    index_B = torch.arange(NUM)
    pixels = ResidentRenderer(images, recipe, torch.device("cpu")).pixels(index_B * 0, index_B)
    erased = (
        (pixels == torch.tensor([51, 128, 255], dtype=torch.uint8)[:, None, None]).all(1).flatten(1).float().mean(1)
    )
    assert erased.min() > 0.01
    with pytest.raises(ConfigError, match=r"^views\.random_erasing: value: expected the data set's mean to be known"):
        recipe.resident(images.images_NCHW)(index_B * 0, index_B)


# another size


def test_the_same_box_is_erased_at_another_size() -> None:
    erasing = RandomErasing(1.0)
    draws_BD = draws_of(erasing, 500)
    small, large = (torch.full((500, 1, side, side), 9, dtype=torch.uint8) for side in (32, 96))
    shown = erasing.apply(small, draws_BD).repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(erasing.at_size(32, 96).apply(large, draws_BD), shown)


def test_a_blur_at_another_size_is_as_blurred() -> None:
    blur = Blur(1.0, kernel_size=9, sigma=(1.0, 2.0))
    draws_BD = draws_of(blur)
    large = torch.nn.functional.interpolate(PICTURES.float(), scale_factor=2, mode="bilinear").round().to(torch.uint8)
    shown = torch.nn.functional.avg_pool2d(blur.at_size(40, 80).apply(large, draws_BD).float(), 2)
    assert (shown - blur.apply(PICTURES, draws_BD).float()).abs().mean() < 2


# settings


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vertical_flip", 1.2, "views.vertical_flip: probability: expected above 0, up to 1, got 1.2"),
        ("grayscale", 0, "views.grayscale: probability: expected above 0, up to 1, got 0"),
        ("grayscale", None, "views.grayscale: expected its settings, got None; leave it out if it isn't wanted"),
        ("blur", {"probability": 0.5, "kernel_size": 4}, "kernel_size: expected an odd number of pixels, 3 to 255,"),
        ("blur", {"probability": 0.5, "sigma": [2.0, 0.1]}, "sigma: expected 0.01 <= smallest <= largest <= 100, got"),
        ("blur", {"kernel_size": 5}, "views.blur: probability: expected a value, got none"),
        ("color_jitter", -0.1, "views.color_jitter: brightness: expected 0 to 5, got -0.1"),
        ("color_jitter", {"hue": 0.6}, "hue: expected 0 to 0.5, half of the colour circle, got 0.6"),
        ("color_jitter", {"probability": 0.5}, "expected brightness, contrast, saturation or hue above 0, got none"),
        ("color_jitter", {"strength": 0.4, "contrast": 0.1}, "expected no brightness, contrast or saturation"),
        ("color_jitter", True, "views.color_jitter: expected its settings, got True"),
        ("rotation", 400, "views.rotation: degrees: expected -360 <= smallest <= largest <= 360, got [-400.0, 400.0]"),
        ("rotation", {"degrees": 9, "fill": 256}, "views.rotation: fill: expected 0 to 255, got 256"),
        ("affine", {"degrees": 9, "scale": [1.2, 0.8]}, "views.affine: scale: expected 0.01 <= smallest <= largest"),
        ("affine", {"degrees": 9, "translate": [0.1, 1.5]}, "views.affine: translate: expected two shares from 0 to 1"),
        ("affine", {"degrees": 9, "shear": 85}, "views.affine: shear: expected -80 <= smallest <= largest <= 80"),
        ("affine", {"degrees": 9, "interpolation": "bicubic"}, "expected 'nearest' or 'bilinear', got 'bicubic'"),
        ("random_erasing", {"probability": 0.5, "scale": [0.2, 1.2]}, "random_erasing: scale: expected 0.0001 <="),
        ("random_erasing", {"probability": 0.5, "ratio": [3.3, 0.3]}, "views.random_erasing: ratio: expected 0.01 <="),
        ("random_erasing", {"probability": 0.5, "scale": [0.5, 0.6], "ratio": [3, 4]}, "boxes that fit into a square"),
        ("random_erasing", {"probability": 0.5, "value": [1, 2]}, "value: expected 1 or 3 numbers, got (1, 2)"),
        ("random_erasing", {"probability": 0.5, "value": 300}, "value: expected 0 to 255, random or mean, got 300"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line(name: str, settings: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        operation_of(name, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("blur", 1.0, "views.blur: kernel_size: expected at most 15 for images with a side of 8 pixels, got 23"),
        (
            "random_erasing",
            {"probability": 1.0, "value": [1, 2, 3]},
            "value: expected one number for grey images",
        ),
        ("rotation", {"degrees": 9, "fill": [1, 2, 3]}, "fill: expected one number for grey images, got [1, 2, 3]"),
    ],
)
def test_settings_that_do_not_suit_the_images_are_one_line(name: str, settings: object, message: str) -> None:
    operation = operation_of(name, settings)
    with pytest.raises(ConfigError) as caught:
        operation.apply(PICTURES[:, :1, :8, :8], draws_of(operation))
    assert message in str(caught.value)


def test_a_number_alone_sets_brightness_contrast_and_saturation() -> None:
    three = dict.fromkeys(("brightness", "contrast", "saturation"), 0.4)
    identity = operation_of("color_jitter", 0.4).identity
    assert identity == {"version": 1, **three, "hue": 0.0, "probability": 1.0}
    assert identity == operation_of("color_jitter", three).identity
