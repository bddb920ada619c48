"""The example recipe of docs/extending.md works with the whole program once it has a line in `RECIPES`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.cache.reader import open_cache
from dhkd.data.recipes import RECIPES
from dhkd.data.recipes.base import Recipe

from tests.e2e.command_line import SMALL, SMALL_VERIFY, assert_one_line, dhkd, done
from tests.extending.examples import example
from tests.samples import make_images, pixels_of

VIEWS = ["--set", "views={kind: quarter-turns, seed: 5}", "--set", "cache.views=all"]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    made = example("A recipe")["QuarterTurns"]
    monkeypatch.setitem(RECIPES, "quarter-turns", made)
    return made(seed=5)


def test_a_key_alone_decides_the_pixels(recipe: Recipe) -> None:
    images = make_images(6)
    view_B, index_B = torch.arange(4).repeat(6), torch.arange(6).repeat_interleave(4)
    draws_BD = recipe.draws(view_B, index_B)
    assert [sorted(turns) for turns in draws_BD.view(6, 4).tolist()] == [[0, 1, 2, 3]] * 6
    pixels_BCHW = recipe.resident(images.images_NCHW)(view_B, index_B)
    assert torch.equal(pixels_BCHW, pixels_of(recipe, images.images_NCHW[index_B], draws_BD))
    some = torch.tensor([17, 3, 3, 22])
    assert torch.equal(recipe.draws(view_B[some], index_B[some]), draws_BD[some])
    turned = np.rot90(images.images_NCHW[2].numpy(), draws_BD[9, 0].item(), axes=(1, 2))
    assert np.array_equal(pixels_BCHW[9].numpy(), turned)


def test_teacher_cache_and_student(recipe: Recipe, tmp_path: Path) -> None:
    cache = tmp_path / "c.zarr"
    done("train-teacher", "digits", *SMALL, *VIEWS, "--out", tmp_path / "teacher")
    done("cache-teacher", "digits", *SMALL, *VIEWS, "--teacher", tmp_path / "teacher", "--out", cache)
    manifest = open_cache(cache).manifest
    assert (manifest.num_views, manifest.identity.recipe) == (4, recipe.identity)
    result = done("train-student", "digits", *SMALL, *VIEWS, "--cache", cache, "--out", tmp_path / "s", "--json").result
    assert result["epochs"] == 2
    verified = done("verify", cache, "--preset", "digits", *SMALL_VERIFY, *VIEWS, "--json").result
    assert verified["rows_rendered"] > 0
    other = [word.replace("seed: 5", "seed: 6") for word in VIEWS]
    refused = dhkd("train-student", "digits", *SMALL, *other, "--cache", cache, "--out", tmp_path / "other")
    assert_one_line(refused, 1, ["recipe.seed expected 6, got 5"])


def test_a_wrong_parameter_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    words = ["--set", "views={kind: quarter-turns, padding: 1}", "--out", tmp_path / "teacher"]
    line = ["views of kind quarter-turns: unknown option 'padding'"]
    assert_one_line(dhkd("train-teacher", "digits", *SMALL, *words), 2, line)
