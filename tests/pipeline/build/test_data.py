"""From settings to images and recipes, without the command line."""

import numpy as np
import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.data.errors import ConfigError
from dhkd.data.images.decoding import photo_of
from dhkd.data.recipes import RECIPES
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.recipes.unaugmented import AsTheyAre, CenterCrop
from dhkd.pipeline.build.data import images_of, num_views_of, recipe_of, renderer_of, test_renderer_of
from dhkd.pipeline.build.training import objective_of, setting_of
from dhkd.pipeline.data_options import DataOptions

CPU = torch.device("cpu")
# A bare import would make pytest take the function for a test.
renderer_of_test_images = test_renderer_of
del test_renderer_of

LARGER = ["views={kind: random-resized-crop, size: 12, flip: true, seed: 3}"]


def test_each_split_has_its_own_limit() -> None:
    experiment = load_experiment("digits", ["data.limit=5", "data.test_limit=7"])
    assert [len(images_of(experiment, split, DataOptions())) for split in ("train", "test")] == [5, 7]


def test_a_recipe_is_built_from_the_preset() -> None:
    assert recipe_of(load_experiment("digits").views) == CropFlip(padding=1, flip=False, seed=0)
    assert recipe_of(load_experiment("digits", LARGER).views) == RandomResizedCrop(size=12, flip=True, seed=3)
    views = load_experiment("imagenet/resnet34-resnet18", ["views.scale=[0.5, 1]", "views.test_resize=300"]).views
    recipe = recipe_of(views)
    assert recipe == RandomResizedCrop(size=224, flip=True, seed=0, scale=(0.5, 1.0), test_resize=300)
    assert recipe.at_test() == CenterCrop(224, 300)
    assert recipe_of(load_experiment("digits").views).at_test() == AsTheyAre()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("views.kind=crop-flop", "unknown views.kind 'crop-flop': did you mean 'crop-flip'?"),
        ("views.size=8", "views of kind crop-flip: unknown option 'size'"),
        ("views.padding=null", "views of kind crop-flip: padding: expected a value, got none"),
        ("views.flip=null", "views of kind crop-flip: flip: expected a value, got none"),
        ("views.paddin=2", "views of kind crop-flip: unknown option 'paddin': did you mean 'padding'?"),
        ("views.kind=random-resized-crop", "views of kind random-resized-crop: unknown option 'padding'"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(override: str, line: str) -> None:
    views = load_experiment("digits", [override]).views
    with pytest.raises(ConfigError) as caught:
        recipe_of(views)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("network", "taken"), [("torchvision:vit_b_16", False), ("resnet8", True)])
def test_test_images_of_another_size_need_a_network_that_takes_them(network: str, taken: bool) -> None:
    overrides = [*LARGER, "views.size=32", "views.test_size=48", f"student.architecture={network}", "data.limit=2"]
    options = ["student.options={image_size: 32}"] if "vit" in network else []
    experiment = load_experiment("digits", overrides + options)
    images, objective = images_of(experiment, "train", DataOptions()), objective_of(experiment)
    if taken:
        assert setting_of(experiment, experiment.student, images, objective).student.image == (32, 32)
        return
    message = r"^views.test_size: expected a size that torchvision:vit_b_16 takes after training .* got 48×48; leave .*"
    with pytest.raises(ConfigError, match=message):
        setting_of(experiment, experiment.student, images, objective)


def test_a_run_s_own_settings_build_the_same_recipe(tmp_path: object) -> None:
    for overrides in ([], LARGER):
        views = load_experiment("digits", overrides).views
        assert recipe_of(type(views).model_validate(views.model_dump(mode="json"))) == recipe_of(views)


def test_a_data_set_in_memory_takes_random_resized_crops() -> None:
    """Its images are treated as decoded ones; test images are cropped to the same size."""
    experiment = load_experiment("digits", [*LARGER, "data.limit=20", "data.test_limit=4"])
    images, recipe = images_of(experiment, "train", DataOptions()), recipe_of(experiment.views)
    renderer = renderer_of(images, recipe, CPU, DataOptions())
    assert renderer.in_memory
    assert not renderer.exact
    view_B, index_B = torch.tensor([0, 5, 0]), torch.tensor([3, 3, 19])
    (pixels,) = renderer.render([(view_B, index_B)])
    assert (pixels.shape, pixels.dtype) == ((3, 3, 12, 12), torch.uint8)
    for row, index in enumerate(index_B.tolist()):
        draws = recipe.draws(view_B[row : row + 1], index_B[row : row + 1])
        expected = recipe.pixels(photo_of(images.images_NCHW[index].numpy()), draws)[0]  # type: ignore[attr-defined]
        assert np.array_equal(pixels[row].permute(1, 2, 0).numpy(), expected)
    assert not torch.equal(pixels[0], pixels[1])
    test = renderer_of_test_images(experiment, CPU, DataOptions())
    (pixels,) = test.render([(torch.zeros(4, dtype=torch.int64), torch.arange(4))])
    assert pixels.shape == (4, 3, 12, 12)


def test_all_views_become_a_number_or_are_refused() -> None:
    experiment = load_experiment("digits")
    assert num_views_of(experiment, recipe_of(experiment.views)) == 9
    endless = load_experiment("digits", LARGER)
    with pytest.raises(ConfigError, match=r"^cache\.views: random-resized-crop has unlimited views; set a number$"):
        num_views_of(endless, recipe_of(endless.views))
    with pytest.raises(ConfigError, match=r"^cache\.views: expected 1 to 9 \(all there are\) or all, got 10$"):
        num_views_of(load_experiment("digits", ["cache.views=10"]), recipe_of(experiment.views))


def test_a_recipe_s_identity_holds_its_parameters() -> None:
    """All that change pixels: otherwise caches of different views would have the same identity."""
    made = {"crop-flip": CropFlip(2, True, 4, "edge"), "random-resized-crop": RandomResizedCrop(9, True, 4)}
    assert made.keys() == RECIPES.keys()
    for kind, recipe in made.items():
        parameters = {name for name in vars(recipe) if name not in ("test_resize", "test_size", "identity")}
        assert recipe.identity["kind"] == kind
        assert parameters <= recipe.identity.keys()
