"""Recipes with pixel operations: one key, one picture, however it is rendered."""

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.images.decoding import photo_of
from dhkd.data.recipes import build_recipe
from dhkd.data.recipes.base import Recipe, rendered

# Every operation alone, by a name, with settings that change most pictures.
ALONE: dict[str, dict[str, object]] = {
    "vertical_flip": {"vertical_flip": 0.7},
    "rotation": {"rotation": 30},
    "affine": {"affine": {"degrees": 10, "translate": [0.2, 0.1], "scale": [0.7, 1.3], "shear": [-5, 5, -9, 9]}},
    "bilinear": {"affine": {"degrees": 10, "interpolation": "bilinear", "fill": 99, "probability": 0.7}},
    "color_jitter": {"color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}},
    "grayscale": {"grayscale": 0.7},
    "blur": {"blur": {"probability": 0.7, "kernel_size": 7}},
    "solarize": {"solarize": 0.7},
    "random_erasing": {"random_erasing": 0.7},
    "noise": {"random_erasing": {"probability": 0.7, "value": "random"}},
    "randaugment": {"policy": {"name": "randaugment", "num_ops": 4}},
    "trivialaugment": {"policy": "trivialaugment"},
    "three-augment": {"policy": {"name": "three-augment", "kernel_size": 7}},
    "autoaugment": {"policy": {"name": "autoaugment", "table": "cifar10"}},
}
GEOMETRIES: dict[str, dict[str, object]] = {
    "crop-flip": {"padding": 2, "flip": True},
    "random-resized-crop": {"size": 12, "flip": True},
}

IMAGES = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def recipe_of(geometry: str, **operations: object) -> Recipe:
    return build_recipe(geometry, {"seed": 3, **GEOMETRIES[geometry], **operations})


def keys(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 1 << 20, (num,), generator=generator), torch.randint(0, 20, (num,), generator=generator)


def one_by_one(recipe: Recipe, view_B: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    """Render each key by itself from its decoded image, as files are rendered."""
    rows = [
        rendered(recipe, photo_of(IMAGES[index].numpy()), recipe.draws(view_B[row : row + 1], index_B[row : row + 1]))
        for row, index in enumerate(index_B.tolist())
    ]
    return torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("operation", ALONE)
def test_a_key_gives_the_same_bytes_in_any_batch_in_memory_and_from_files(geometry: str, operation: str) -> None:
    recipe = recipe_of(geometry, **ALONE[operation])
    view_B, index_B = keys(60)
    render = recipe.resident(IMAGES)
    together = render(view_B, index_B)
    halves = torch.cat([render(view_B[rows], index_B[rows]) for rows in (slice(0, 23), slice(23, 60))])
    assert torch.equal(together, halves)
    assert torch.equal(together, one_by_one(recipe, view_B, index_B))
    plain = recipe_of(geometry).without_end().resident(IMAGES)(view_B, index_B)
    assert 0.3 < (plain != together).flatten(1).any(1).float().mean() <= 1


def test_the_first_views_show_the_crops_of_the_recipe_without_operations() -> None:
    plain, augmented = recipe_of("crop-flip"), recipe_of("crop-flip", solarize=0.5)
    view_B = torch.arange(plain.num_views or 0)
    index_B = torch.full_like(view_B, 7)
    assert torch.equal(plain.draws(view_B, index_B), augmented.draws(view_B, index_B)[:, :3])
    assert augmented.num_views is None


def test_operations_are_part_of_the_identity() -> None:
    assert "solarize" not in recipe_of("crop-flip").identity
    assert recipe_of("crop-flip", solarize=0.5).identity["solarize"] == {
        "version": 1, "probability": 0.5, "threshold": 128,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ({"solarize": 0}, "views.solarize: probability: expected above 0, up to 1, got 0"),
        ({"solarize": True}, "views.solarize: expected its settings, got True; leave it out if it isn't wanted"),
        ({"solarize": {"probability": 0.5, "treshold": 3}}, "views.solarize: unknown option 'treshold'"),
        ({"solarise": 0.2}, "views of kind crop-flip: unknown option 'solarise': did you mean 'solarize'?"),
    ],
)
def test_wrong_settings_are_one_line(operations: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_of("crop-flip", **operations)
    assert message in str(caught.value)
