"""The calls of the Python interface do what the commands do, with objects as well as with names."""

import functools
import json
from pathlib import Path
from typing import Any

import dhkd
import numpy as np
import pytest
import torch
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.runs.config import read_config
from dhkd.stages.models.weights import weights_sha256
from torch import nn
from torch.utils.data import DataLoader

from tests.own import SHIFTS, TRAINED, Net, cosine, digits, small, trained

BUILT_IN = {"dataset": "digits", "recipe": SHIFTS, "settings": {"data.limit": 150}, "cpu": True}


class Pairs(torch.utils.data.Dataset[Any]):
    """The same digits as items of a torch `Dataset`."""

    def __init__(self, split: str) -> None:
        self.pixels, self.labels = digits(split)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.pixels[index], int(self.labels[index])


def settings_in(run: Path) -> Any:
    return (read_config(run) or {})["experiment"]


# a teacher


def test_a_network_is_cached_by_its_weights(teacher: nn.Module, own_cache: Path) -> None:
    manifest = dhkd.open_cache(own_cache).manifest
    recorded = manifest.signals["logits"].teacher
    assert recorded["sha256"] == weights_sha256(teacher)
    assert recorded["architecture"].startswith("tests.own:Net@")
    assert (manifest.num_views, manifest.num_samples, manifest.num_classes) == (3, 200, 10)


def test_the_cache_holds_what_the_network_computes(teacher: nn.Module, own_cache: Path) -> None:
    samples = dhkd.DistillationSet.from_cache(own_cache)
    images, _, logits = next(iter(DataLoader(samples, batch_size=50)))
    with torch.inference_mode():
        live = teacher.eval()(images)
    teacher.train()
    assert torch.allclose(live, logits, atol=0.02)


@pytest.mark.parametrize(
    "given",
    [
        {"dataset": digits("train"), "test": digits("test")},
        {"dataset": {"train": digits("train"), "test": digits("test")}},
        {"dataset": Pairs("train"), "test": Pairs("test")},
        {"dataset": digits},
    ],
    ids=["arrays", "mapping", "Dataset", "function"],
)
def test_a_data_set_in_any_form_has_the_same_samples(
    given: dict[str, Any], teacher: nn.Module, own_cache: Path, tmp_path: Path
) -> None:
    dhkd.cache_teacher(teacher, recipe=SHIFTS, out=tmp_path / "c.zarr", views=1, cpu=True, **given)
    made, expected = (dhkd.open_cache(place).manifest.identity for place in (tmp_path / "c.zarr", own_cache))
    assert made.dataset.fingerprint == expected.dataset.fingerprint
    assert made.recipe == expected.recipe


@pytest.mark.parametrize("recipe", [CropFlip(1, False, 0), SHIFTS])
def test_a_recipe_may_be_an_object_or_its_settings(recipe: Any, teacher: nn.Module, tmp_path: Path) -> None:
    dhkd.cache_teacher(teacher, digits, recipe, tmp_path / "c.zarr", views=1, cpu=True)
    recorded = dhkd.open_cache(tmp_path / "c.zarr").manifest.identity.recipe
    assert recorded == CropFlip(1, False, 0).identity


def test_a_preset_is_a_base(tmp_path: Path) -> None:
    """The preset's settings, then the keywords, then `settings`."""
    run = dhkd.train_teacher(
        None, preset="digits", out=tmp_path / "t", epochs=1, lr=0.2, settings={"data.limit": 100}, cpu=True
    )
    kept = settings_in(tmp_path / "t")
    assert run.architecture == "resnet14"
    assert (kept["teacher"]["epochs"], kept["teacher"]["lr"], kept["data"]["limit"]) == (1, 0.2, 100)
    assert kept["teacher"]["nesterov"] is True


# students


def test_a_student_learns_from_what_the_cache_records(own_cache: Path, tmp_path: Path) -> None:
    run = dhkd.train_student(small, own_cache, "kd", tmp_path / "s", **TRAINED, cpu=True)
    assert run.architecture == "tests.own:small"
    assert run.distillation is not None
    assert run.distillation.cache is not None
    assert run.distillation.cache.path == str(own_cache)
    assert settings_in(tmp_path / "s")["views"]["padding"] == 1


def test_a_function_is_an_objective(own_cache: Path, tmp_path: Path) -> None:
    run = dhkd.train_student(small, own_cache, cosine, tmp_path / "s", **TRAINED, cpu=True)
    assert run.distillation is not None
    assert run.distillation.objective == "tests.own:cosine"
    first = json.loads((tmp_path / "s" / "metrics.jsonl").read_text().splitlines()[0])
    assert "cosine" in first


def test_a_partial_function_says_its_arguments(own_cache: Path, tmp_path: Path) -> None:
    width = functools.partial(Net, width=3)
    run = dhkd.train_student(width, own_cache, "kd", tmp_path / "s", **TRAINED, cpu=True)
    assert run.architecture == "tests.own:Net(width=3)"


def test_a_network_starts_from_its_weights(own_cache: Path, tmp_path: Path) -> None:
    network = trained(functools.partial(Net, width=3))
    before = weights_sha256(network)
    almost = {**TRAINED, "epochs": 1, "lr": 1e-12, "weight_decay": 0.0}
    dhkd.train_student(network, own_cache, "kd", tmp_path / "s", **almost, seed=5, cpu=True)
    after = dhkd.load_network(tmp_path / "s", network).state_dict()
    assert all(torch.allclose(after[name], value) for name, value in network.named_parameters())
    assert weights_sha256(network) == before


def test_built_in_names_are_names(tmp_path: Path) -> None:
    dhkd.train_teacher("resnet8", out=tmp_path / "t", epochs=2, lr=0.1, **BUILT_IN)
    dhkd.cache_teacher("resnet8", out=tmp_path / "c.zarr", weights=tmp_path / "t", views=2, **BUILT_IN)
    run = dhkd.train_student("resnet8", tmp_path / "c.zarr", "kd + 0.5 * mse", tmp_path / "s", **TRAINED, cpu=True)
    assert run.architecture == "resnet8"
    assert settings_in(tmp_path / "s")["data"] == {**settings_in(tmp_path / "t")["data"]}
    network = dhkd.load_network(tmp_path / "t")
    again = dhkd.cache_teacher(network, out=tmp_path / "c.zarr", views=2, **BUILT_IN)
    assert again.blocks_written == 0, "a network that was loaded by name keeps its name"


def test_a_live_teacher_may_be_an_object(teacher: nn.Module, tmp_path: Path) -> None:
    run = dhkd.train_student(
        *(small, None, "kd", tmp_path / "s"),
        dataset=digits,
        recipe=SHIFTS,
        teacher=teacher,
        settings={"teacher.live": True},
        cpu=True,
        **TRAINED,
    )
    assert run.distillation is not None
    assert run.distillation.live == ["logits"]


# many students


def test_a_sweep_compares_names_and_objects(own_cache: Path, tmp_path: Path) -> None:
    grid = {"objective": ["ce", cosine], "model": [small, functools.partial(Net, width=3)]}
    table = dhkd.sweep(None, own_cache, out=tmp_path / "all", grid=grid, seeds=2, together=2, cpu=True, **TRAINED)
    assert len(table.comparison.rows) == 4
    assert table.failed == {}
    assert {row["objective"] for row in table.records()} == {"ce", "tests.own:cosine"}
    assert all(row["seeds"] == [0, 1] for row in table.records())
    text, page = str(table), table._repr_mimebundle_()["text/html"]
    assert "against objective=ce" in text
    assert page.count("<tr>") == 5
    assert "tests.own:Net(width=3)" in page
    again = dhkd.sweep(None, own_cache, out=tmp_path / "all", grid=grid, seeds=2, cpu=True, **TRAINED)
    assert again.records() == table.records(), "finished runs stay"


def test_a_sweep_names_the_runs_that_failed(own_cache: Path, tmp_path: Path) -> None:
    table = dhkd.sweep(small, own_cache, "kd", tmp_path, grid={"student.lr": [0.1, 1e30]}, cpu=True, epochs=1)
    assert list(table.failed) == ["student.lr=1e+30"]
    assert len(table.comparison.rows) == 1


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    table = dhkd.report(tmp_path)
    assert str(table) == f"{tmp_path}: no finished run"
    assert "no finished run" in table._repr_mimebundle_()["text/html"]


# looking


def test_a_run_and_a_network_are_evaluated_alike(own_cache: Path, tmp_path: Path) -> None:
    run = dhkd.train_student(small, own_cache, "kd", tmp_path / "s", **TRAINED, cpu=True)
    of_folder = dhkd.evaluate(tmp_path / "s", cpu=True)
    network = dhkd.load_network(tmp_path / "s")
    of_network = dhkd.evaluate(network, digits, cpu=True)
    of_test = dhkd.evaluate(network, test=digits("test"), cpu=True)
    assert of_folder.top1 == of_network.top1 == of_test.top1 == pytest.approx(run.last_top1)
    assert of_folder.samples == 100


def test_results_print_in_one_line(own_cache: Path, tmp_path: Path) -> None:
    run = dhkd.train_student(small, own_cache, "kd", tmp_path / "s", **TRAINED, cpu=True)
    assert str(run).startswith("tests.own:small after 2 epochs, top-1 ")
    assert "\n" not in str(run)
    assert run._repr_mimebundle_() == {"text/plain": str(run)}


# data sets for loops


def test_a_set_needs_only_the_cache(own_cache: Path) -> None:
    samples = dhkd.DistillationSet.from_cache(own_cache)
    image, label, logits = samples[7]
    assert (len(samples), samples.num_classes, label) == (200, 10, int(digits("train")[1][7]))
    assert (image.shape, logits.shape) == ((3, 8, 8), (10,))


def test_a_set_gives_any_signals(own_cache: Path) -> None:
    samples = dhkd.DistillationSet.from_cache(own_cache, signals=["embedding", "logits"])
    loader = DataLoader(samples, batch_size=16, shuffle=True, num_workers=2, persistent_workers=True)
    plain = dhkd.DistillationSet.from_cache(own_cache)
    for epoch in range(2):
        samples.set_epoch(epoch)
        plain.set_epoch(epoch)
        _, _, signals = next(iter(loader))
        assert {name: values.shape for name, values in signals.items()} == {"embedding": (16, 128), "logits": (16, 10)}
        assert torch.equal(samples[3][2]["logits"], plain[3][2])


def test_a_set_of_the_test_split_has_no_signals(own_cache: Path) -> None:
    samples = dhkd.DistillationSet.from_cache(own_cache, split="test")
    image, label = samples[5]
    pixels = torch.from_numpy(digits("test")[0][5].astype(np.float32))
    assert len(samples) == 100
    assert label == int(digits("test")[1][5])
    spread = image[0].flatten(), pixels.flatten()
    assert np.corrcoef(*spread)[0, 1] == pytest.approx(1.0), "the image itself, normalised"
    samples.set_epoch(3)
    assert torch.equal(samples[5][0], image)


def test_a_set_takes_settings(own_cache: Path) -> None:
    samples = dhkd.DistillationSet.from_cache(
        own_cache, settings={"student.view_schedule": "cycle", "student.views": 2, "seed": 4}
    )
    first = samples[0][0]
    samples.set_epoch(1)
    second = samples[0][0]
    samples.set_epoch(2)
    assert torch.equal(samples[0][0], first)
    assert not torch.equal(second, first)
