"""Dropout and drop path by one name, for the networks of all libraries."""

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.stages.models import build_network
from dhkd.stages.models.architecture import Architecture, projected
from dhkd.stages.models.dropping import DROP_PATH, DROPOUT, draws_random_numbers, with_drops


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:vit_tiny_patch16_224", {"drop_path_rate": 0.2, "drop_rate": 0.1}),
        ("torchvision:convnext_tiny", {"stochastic_depth_prob": 0.2, "dropout": 0.1}),
        ("my.py:Net", {"drop_path": 0.2, "dropout": 0.1}),
        ("package.module:Net", {"drop_path": 0.2, "dropout": 0.1}),
    ],
)
def test_each_librarys_names(name: str, options: dict[str, float]) -> None:
    wanted = with_drops(Architecture(name, {"depth": 3}), {DROP_PATH: 0.2, DROPOUT: 0.1})
    assert wanted.options == {"depth": 3, **options}


def test_a_students_trunk_drops_and_the_teachers_classifier_does_not() -> None:
    both = projected(Architecture("timm:resnet10t"), Architecture("timm:resnet18"))
    assert both.parts is not None
    with_both = with_drops(both, {DROPOUT: 0.1})
    assert with_both.parts == (Architecture("timm:resnet10t", {"drop_rate": 0.1}), both.parts[1])
    assert with_drops(both, {}) is both


def test_an_option_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^dropout: expected it once, got options\.drop_rate as well"):
        with_drops(Architecture("timm:resnet10t", {"drop_rate": 0.1}), {DROPOUT: 0.1})


@pytest.mark.parametrize(
    ("name", "drops", "drawn"),
    [
        ("resnet8", {}, False),
        ("timm:resnet10t", {}, False),
        ("timm:resnet10t", {DROPOUT: 0.1}, True),  # F.dropout
        ("timm:resnet10t", {DROP_PATH: 0.1}, True),
        ("torchvision:mobilenet_v2", {}, True),
        ("torchvision:mobilenet_v2", {DROPOUT: 0.0}, False),
    ],
)
def test_what_draws_is_seen_and_left_as_it_was(name: str, drops: dict[str, float], drawn: bool) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="needs timm")
    network = build_network(with_drops(Architecture(name), drops), 5).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    assert draws_random_numbers(network, torch.randn(2, 3, 32, 32, generator=torch.Generator())) is drawn
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not network.training
