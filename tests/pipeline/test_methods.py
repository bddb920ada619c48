"""What each method needs, against numbers worked out by hand for a pair of ResNets."""

from dataclasses import asdict

import pytest
from dhkd.configs.load import load_experiment
from dhkd.pipeline.methods import Method, list_methods
from dhkd.stages.train.objectives import OBJECTIVES

PAIR = "cifar100/resnet56-resnet20"


@pytest.fixture(scope="module")
def methods() -> dict[str, Method]:
    return {method.method: method for method in list_methods(load_experiment(PAIR))}


def test_every_objective_is_a_method(methods: dict[str, Method]) -> None:
    assert list(methods) == list(OBJECTIVES)


def test_cross_entropy_needs_no_teacher(methods: dict[str, Method]) -> None:
    assert methods["ce"] == Method("ce", (), 0, 0, None, None, 0, 0)


def test_logits_of_100_classes_are_200_bytes(methods: dict[str, Method]) -> None:
    """50,000 rows of float16 a view."""
    assert methods["kd"] == Method("kd", ("logits",), 200, 10_000_000, True, None, 0, 0)


def test_dhkd_trains_an_auxiliary_head(methods: dict[str, Method]) -> None:
    """Its head isn't exported: 64 features to 200, batch norm, 200 to 100 classes."""
    assert methods["dhkd"].signals == ("logits",)
    assert (methods["dhkd"].extra_parameters, methods["dhkd"].exported_parameters) == (
        64 * 200 + 200 + 2 * 200 + 200 * 100 + 100,
        0,
    )


def test_simkd_takes_the_teachers_classifier_and_exports_more(methods: dict[str, Method]) -> None:
    simkd = methods["simkd"]
    assert simkd.takes_of_teacher is not None
    assert simkd.exported_parameters > 0


def test_batch_statistics_cannot_be_cached(methods: dict[str, Method]) -> None:
    assert {name for name, method in methods.items() if method.cacheable is False} == {"ofd"}


def test_options_and_sizes_of_the_preset_count() -> None:
    experiment = load_experiment("digits", ["data.limit=100", "cache.codec=float32"])
    kd = next(method for method in list_methods(experiment) if method.method == "kd")
    assert (kd.row_bytes, kd.view_bytes) == (40, 4000)
    folder = list_methods(load_experiment("imagenet/resnet34-resnet18", ["views.size=64"]), samples=7, classes=30)
    kd = next(method for method in folder if method.method == "kd")
    assert (kd.row_bytes, kd.view_bytes) == (60, 420)


def test_plain_values_have_the_keys_of_the_json(methods: dict[str, Method]) -> None:
    assert list(asdict(methods["ce"])) == [
        "method", "signals", "row_bytes", "view_bytes", "cacheable", "takes_of_teacher", "extra_parameters",
        "exported_parameters", "stands_against",
    ]  # fmt: skip
