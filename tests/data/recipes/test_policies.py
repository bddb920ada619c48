"""Policies draw what torchvision's draw, and their operations give its pixels, to one grey level."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.images.pictures import Pictures
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.augmented import Augmented
from dhkd.data.recipes.operations.policies import POLICIES
from dhkd.data.recipes.operations.policies.auto_augment import AutoAugment
from dhkd.data.recipes.operations.policies.auto_augment_tables import TABLES
from dhkd.data.recipes.operations.policies.base import FEW, Policy
from dhkd.data.recipes.operations.policies.batched_steps import BatchedSteps
from dhkd.data.recipes.operations.policies.magnitudes import NAMES, Space, usual, wide
from dhkd.data.recipes.operations.policies.rand_augment import RandAugment
from dhkd.data.recipes.operations.policies.single_steps import SingleSteps, _floats_are_exact
from dhkd.data.recipes.operations.policies.steps import Step
from dhkd.data.recipes.operations.policies.trivial_augment import TrivialAugment
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import chi2
from torchvision import datasets, transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

CPU = torch.device("cpu")
Pixels = NDArray[np.uint8]


def by_torchvision(image: Image.Image, step: Step) -> Image.Image:
    """Apply an operation to a Pillow image as torchvision's policies do."""
    size, shear = float(step.magnitude), math.degrees(math.atan(step.magnitude))
    corner = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "center": [0.0, 0.0]}
    still = {"angle": 0.0, "scale": 1.0, "shear": [0.0, 0.0]}
    match step.name:
        case "Identity":
            return image
        case "ShearX":
            return F.affine(image, shear=[shear, 0.0], **corner)
        case "ShearY":
            return F.affine(image, shear=[0.0, shear], **corner)
        case "TranslateX":
            return F.affine(image, translate=[int(size), 0], **still)
        case "TranslateY":
            return F.affine(image, translate=[0, int(size)], **still)
        case "Rotate":
            return F.rotate(image, size)
        case "Brightness":
            return F.adjust_brightness(image, 1 + size)
        case "Color":
            return F.adjust_saturation(image, 1 + size)
        case "Contrast":
            return F.adjust_contrast(image, 1 + size)
        case "Sharpness":
            return F.adjust_sharpness(image, 1 + size)
        case "Posterize":
            return F.posterize(image, int(size))
        case "Solarize":
            return F.solarize(image, size)
        case "AutoContrast":
            return F.autocontrast(image)
        case "Equalize":
            return F.equalize(image)
        case "Invert":
            return F.invert(image)
    raise ValueError(step.name)


def drawn_images(height: int, width: int) -> list[Pixels]:
    """Return images of noise, of smooth colours, of few grey levels and of one colour."""
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC))
    noise, dull = (rng.integers(low, high, (height, width, 3), dtype=np.uint8) for low, high in ((0, 256), (90, 130)))
    return [noise, smooth, dull, np.full_like(noise, 77)]


def grey(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def in_one_batch(images: list[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def steps_of(spaces: list[Space], places: tuple[int, ...]) -> Iterator[Step]:
    for name in (*NAMES, "Invert"):
        yield from sorted({space.step(name, place, sign) for space in spaces for place in places for sign in (1, -1)})


def assert_as_torchvision(images: list[Pixels], steps: list[Step]) -> dict[str, float]:
    """Compare every step on every image; return each operation's share of values that differ, by one level."""
    (height, width, channels), pixels_BCHW = images[0].shape, in_one_batch(images)
    photos = [Image.fromarray(image.squeeze(2) if channels == 1 else image) for image in images]
    compiled = BatchedSteps(steps, height, width, CPU)
    shares: dict[str, list[float]] = {}
    for number, step in enumerate(steps):
        chosen_B1 = torch.full((len(images), 1), number)
        mine = compiled.apply(pixels_BCHW, chosen_B1).permute(0, 2, 3, 1).numpy()
        theirs = np.stack([np.atleast_3d(np.asarray(by_torchvision(photo, step))) for photo in photos])
        difference = np.abs(mine.astype(int) - theirs)
        assert difference.max() <= 1, step
        shares.setdefault(step.name, []).append((difference > 0).mean())
    return {name: float(np.mean(values)) for name, values in shares.items()}


# Rounding in Pillow's floats: of factors of brightness, and of the stretched values of auto-contrast.
INEXACT = {"Brightness": 0.03, "Color": 0.002, "Contrast": 0.01, "Sharpness": 0.002, "AutoContrast": 0.02}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 14), (2, 3), (1, 1)])
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_of_each_operation_are_torchvisions(height: int, width: int, channels: int) -> None:
    images = [image if channels == 3 else grey(image) for image in drawn_images(height, width)]
    steps = list(steps_of([usual(height, width, 31), wide(31)], (0, 9, 17, 20, 30)))
    shares = assert_as_torchvision(images, steps)
    if height == 32:
        assert {name for name, share in shares.items() if share > INEXACT.get(name, 0)} == set()


def test_pixels_of_real_images_are_torchvisions(real_data: Path, photographs: Path) -> None:
    small = list(datasets.CIFAR100(real_data, train=False).data[:12])
    files = sorted(photographs.glob("*/*.JPEG"))[:3]
    large = [np.asarray(Image.open(file).convert("RGB").resize((160, 120))) for file in files]
    for pictures in (small, large):
        height, width, _ = pictures[0].shape
        shares = assert_as_torchvision(pictures, list(steps_of([usual(height, width, 31), wide(31)], (9, 23))))
        assert {name for name, share in shares.items() if share > INEXACT.get(name, 0)} == set()


def one_after_the_other(steps: list[Step], pixels_BCHW: torch.Tensor, step_BS: torch.Tensor) -> torch.Tensor:
    single = SingleSteps(steps, *pixels_BCHW.shape[2:])
    return Pictures(single.changed(Pictures(pixels_BCHW).photos, step_BS)).tensor


@pytest.mark.parametrize(("height", "width"), [(48, 40), (3, 3), (2, 9), (1, 1)])
@pytest.mark.parametrize("channels", [3, 1])
def test_images_one_after_the_other_have_the_bytes_of_a_batch(height: int, width: int, channels: int) -> None:
    """With factors for which Pillow's blends are equal, and with some for which they are not."""
    images = drawn_images(height, width)
    pixels_BCHW = in_one_batch([image if channels == 3 else grey(image) for image in images])
    spaces = {(0, 9, 20): [usual(height, width, 31), wide(31)], (2, 8): [usual(height, width, 10)]}
    steps = [step for places, some in spaces.items() for step in steps_of(some, places)]
    exact = {_floats_are_exact(1 + step.magnitude) for step in steps if step.name == "Color"}
    assert exact == {True, False}
    batched = BatchedSteps(steps, height, width, CPU)
    for number, step in enumerate(steps):
        step_B1 = torch.full((len(images), 1), number)
        expected = batched.apply(pixels_BCHW, step_B1)
        assert torch.equal(one_after_the_other(steps, pixels_BCHW, step_B1), expected), step


@pytest.mark.parametrize("num", [1, FEW, 3 * FEW])
@pytest.mark.parametrize("side", [32, 128])
def test_few_and_large_images_are_changed_one_after_the_other(num: int, side: int) -> None:
    generator, policy = torch.Generator().manual_seed(0), RandAugment()
    pixels_BCHW = torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=generator)
    draws_BD = policy.draws(1, torch.arange(num), torch.arange(num))
    changed = policy.apply(pixels_BCHW, draws_BD)
    assert policy.apply(pixels_BCHW[:0], draws_BD[:0]).shape == (0, 3, side, side)
    assert torch.equal(changed, policy.change(Pictures(pixels_BCHW), draws_BD).tensor)
    batched = BatchedSteps(policy.steps(side, side), side, side, CPU)
    assert torch.equal(changed, batched.apply(pixels_BCHW, policy.chosen(draws_BD)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 160), (28, 331)])
@pytest.mark.parametrize("bins", [31, 10, 5])
def test_magnitudes_are_torchvisions(height: int, width: int, bins: int) -> None:
    for theirs, space in (
        (transforms.RandAugment()._augmentation_space(bins, (height, width)), usual(height, width, bins)),
        (transforms.TrivialAugmentWide()._augmentation_space(bins), wide(bins)),
    ):
        assert tuple(theirs) == NAMES
        for name, (magnitudes, signed) in theirs.items():
            for place in range(bins):
                expected = magnitudes[place].item() if magnitudes.ndim else 0
                assert float(space.step(name, place).magnitude) == pytest.approx(expected, rel=1e-6, abs=1e-6)
                negative = space.step(name, place, -1).magnitude
                assert negative == (-1 if signed else 1) * space.step(name, place).magnitude


def test_the_tables_of_autoaugment_are_torchvisions() -> None:
    for policy in transforms.AutoAugmentPolicy:
        mine = [tuple((n, tenths / 10, place) for n, tenths, place in sub) for sub in TABLES[policy.value]]
        theirs = [tuple((n, p, place or 0) for n, p, place in sub) for sub in v2.AutoAugment(policy)._policies]
        assert mine == theirs


def uniform(numbers: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether counts of numbers are as probable as the weights say: chi-square, one test in 100,000 fails by chance."""
    counts = torch.bincount(numbers, minlength=len(expected)).double()
    wanted = expected.double() / expected.sum() * len(numbers)
    statistic = ((counts - wanted) ** 2 / wanted).sum().item()
    return statistic < chi2.ppf(1 - 1e-5, len(expected) - 1)


def drawn(policy: Policy, num: int = 100_000) -> torch.Tensor:
    index_B = torch.arange(num)
    return policy.chosen(policy.draws(11, index_B % 7, index_B // 7))


def test_randaugment_draws_operations_and_signs_evenly_and_slots_independently() -> None:
    step_BS = drawn(RandAugment(num_ops=3))
    assert step_BS.shape == (100_000, 3)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert uniform(step_BS[:, first] * 28 + step_BS[:, second], torch.ones(28 * 28))


def test_trivialaugment_draws_operations_magnitudes_and_signs_evenly() -> None:
    assert uniform(drawn(TrivialAugment())[:, 0], torch.ones(14 * 31 * 2))


@pytest.mark.parametrize("table", TABLES)
def test_autoaugment_draws_sub_policies_evenly_and_applies_by_their_probabilities(table: str) -> None:
    policy = AutoAugment(table)  # type: ignore[arg-type]  # one of the literals
    weights_SN = torch.zeros(2, 25, 2, 3)
    for number, sub_policy in enumerate(TABLES[table]):
        for slot, (_, tenths, _) in enumerate(sub_policy):
            weights_SN[slot, number, slot] = torch.tensor([10 - tenths, tenths / 2, tenths / 2])
    step_BS = drawn(policy)
    for slot in range(2):
        weights_N = weights_SN[slot].flatten()
        possible = weights_N > 0
        assert possible[step_BS[:, slot]].all()
        renumbered = possible.long().cumsum(0) - 1
        assert uniform(renumbered[step_BS[:, slot]], weights_N[possible])
    names = {step.name for step in policy.steps(32, 32)}
    assert names == {"Identity", *(choice[0] for sub_policy in TABLES[table] for choice in sub_policy)}


def test_a_slot_draws_the_same_however_many_there_are() -> None:
    few, many = (drawn(RandAugment(num_ops=number), 100) for number in (2, 9))
    assert torch.equal(few, many[:, :2])


# The first 16 digits of the SHA-256 of the pixels of each operation, and of each policy.s keys. A change needs a new
# `version`.
GOLDEN = {
    "Identity": "485ad4d875541a94",
    "ShearX": "40313727af7194cb",
    "ShearY": "c4279f47f5f6d18f",
    "TranslateX": "1014734b65d01a7c",
    "TranslateY": "c72007564c526765",
    "Rotate": "2220f324cbcf777a",
    "Brightness": "5657c56f4d00e7cf",
    "Color": "864e626c8db7787c",
    "Contrast": "0ef26efd5dd751a1",
    "Sharpness": "0a8aa3df2a791ba1",
    "Posterize": "1b6b04a6a483ade1",
    "Solarize": "e4faf53b133ed0c2",
    "AutoContrast": "98e1c15fbc14926f",
    "Equalize": "7d407877f2290245",
    "Invert": "804cd608ab67ac51",
    "randaugment": "336e825c0a03ae49",
    "trivialaugment": "e597e39a96481281",
    "autoaugment": "957bb623c5d4b3d9",
}


def golden_image() -> torch.Tensor:
    row, column = torch.arange(19)[:, None], torch.arange(23)
    planes = [(row * 11 + column * 7) % 256, (row * column) % 256, (row * row + 3 * column) % 251]
    return torch.stack(planes).to(torch.uint8)[None]


def digest(pixels: torch.Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()[:16]


def test_pixels_and_draws_are_those_of_version_1() -> None:
    image_1CHW, space, found = golden_image(), wide(31), {}
    for name in (*NAMES, "Invert"):
        steps = [space.step(name, place, sign) for place in (7, 19) for sign in (1, -1)]
        images = image_1CHW.expand(len(steps), -1, -1, -1)
        step_B1 = torch.arange(len(steps))[:, None]
        found[name] = digest(BatchedSteps(steps, 19, 23, CPU).apply(images, step_B1))
        assert digest(one_after_the_other(steps, images, step_B1)) == found[name], name
    view_B = torch.arange(40)
    for name in ("randaugment", "trivialaugment", "autoaugment"):
        policy = POLICIES[name]()
        assert policy.version == 1
        draws_BD = policy.draws(5, view_B, view_B * 3)
        found[name] = digest(policy.apply(image_1CHW.expand(40, -1, -1, -1), draws_BD))
    assert found == GOLDEN


def test_threads_and_order_change_no_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=generator)
    settings: dict[str, object] = {"seed": 1, "padding": 4, "flip": True, "policy": "randaugment"}
    render = build_recipe("crop-flip", settings).resident(images)
    view_B, index_B = torch.randint(0, 1 << 20, (300,), generator=generator), torch.arange(300) % 50
    order_B, threads = torch.randperm(300, generator=generator), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = render(view_B, index_B)
        torch.set_num_threads(2)
        assert torch.equal(alone, render(view_B, index_B))
        assert torch.equal(alone[order_B], render(view_B[order_B], index_B[order_B]))
    finally:
        torch.set_num_threads(threads)
    assert alone.is_contiguous(memory_format=torch.channels_last)


def test_the_pixels_given_are_not_changed() -> None:
    image_1CHW = golden_image()
    pixels_BCHW = image_1CHW.repeat(14 * 4, 1, 1, 1)
    for policy in (factory() for factory in POLICIES.values()):
        index_B = torch.arange(len(pixels_BCHW))
        policy.apply(pixels_BCHW, policy.draws(0, index_B, index_B))
        assert (pixels_BCHW == image_1CHW).all()


def test_translations_at_another_size_are_in_proportion() -> None:
    policy = TrivialAugment()
    steps, larger = policy.steps(32, 32), policy.at_size(32, 48).steps(48, 48)
    for step, scaled in zip(steps, larger, strict=True):
        moved = step.name.startswith("Translate")
        assert scaled.magnitude == (round(int(step.magnitude) * 1.5) if moved else step.magnitude)
    assert max(step.magnitude for step in larger if step.name == "TranslateX") == 48


def test_settings_are_part_of_the_identity() -> None:
    geometry = {"seed": 1, "padding": 4, "flip": True}
    identity = build_recipe("crop-flip", {**geometry, "policy": {"name": "randaugment", "magnitude": 5}}).identity
    assert identity["policy"] == {
        "name": "randaugment", "version": 1, "num_ops": 2, "magnitude": 5, "num_magnitude_bins": 31,
    }  # fmt: skip
    recipe = build_recipe("crop-flip", {**geometry, "policy": {"name": "autoaugment", "table": "svhn"}})
    assert isinstance(recipe, Augmented)
    assert recipe.identity["policy"] == {"name": "autoaugment", "version": 1, "table": "svhn"}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("randaugmnet", "views.policy: unknown policy 'randaugmnet': did you mean 'randaugment'?"),
        ({"num_ops": 2}, "views.policy: name: expected a value, got none"),
        ({"name": "randaugment", "num_ops": 0}, "views.policy randaugment: num_ops: expected 1 to 16, got 0"),
        (
            {"name": "randaugment", "magnitude": 31},
            "magnitude: expected 0 to 30, one less than num_magnitude_bins, got 31",
        ),
        (
            {"name": "randaugment", "magnitude": 2.5},
            "views.policy randaugment: magnitude: expected a valid integer, got 2.5",
        ),
        ({"name": "trivialaugment", "num_magnitude_bins": 1}, "num_magnitude_bins: expected 2 to 1000, got 1"),
        (
            {"name": "autoaugment", "table": "cifar"},
            "views.policy autoaugment: table: expected 'imagenet', 'cifar10' or",
        ),
        ({"name": "trivialaugment", "num_ops": 2}, "views.policy trivialaugment: unknown option 'num_ops'"),
    ],
)
def test_wrong_settings_are_one_line(policy: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_recipe("crop-flip", {"seed": 1, "padding": 4, "flip": True, "policy": policy})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
