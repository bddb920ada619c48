"""Keyword arguments of a network's builder: passed on, recorded beside the name, and refused in one line."""

import pytest
from dhkd.configs.schema import Student
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.pipeline.build.networks import (
    architecture_metadata,
    architecture_of,
    chosen_network,
    recorded_architecture,
    teacher_facts,
    trained_network,
)
from dhkd.stages.models import build_network, count_parameters
from dhkd.stages.models.architecture import Architecture, from_record, projected
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.weights import save_weights

VIT = Architecture("timm:vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "depth": 2})


def test_options_reach_the_library() -> None:
    narrow = Architecture("torchvision:mobilenet_v2", {"width_mult": 0.25})
    assert count_parameters(build_network(narrow, 10)) < count_parameters(build_network(narrow.name, 10)) / 5
    assert Shapes(VIT, 10, (32, 32)).row("logits") == (10,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet8", {"width": 2}, "network resnet8: unknown option 'width'"),
        ("timm:resnet10t", {"depht": 2}, r"network timm:resnet10t: options: .* got depht \(TypeError.*'depht'"),
        ("torchvision:resnet18", {"x": 2}, r"network torchvision:resnet18: options: .* got x \(TypeError"),
        ("torchvision:resnet18", {"num_classes": 2}, "options: .* got num_classes"),
        ("timm:resnet10t", {"num_classes": 2}, "options.num_classes: expected 0"),
        (
            "timm:resnet10t",
            {"checkpoint_path": "x.pth"},
            "options.checkpoint_path: .* weights are named with --teacher",
        ),
        ("timm:resnet10t", {"pretrained": True}, "options.pretrained: "),
        ("timm:resnet10t", {"features_only": True}, "options.features_only: .* maps"),
        ("timm:vit_tiny_patch16_224", {"img_size": "large"}, "options: .* got img_size"),
    ],
)
def test_options_that_a_network_does_not_take_are_one_line(name, options, message) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build_network(Architecture(name, options), 10)
    assert "\n" not in str(raised.value)


def test_a_section_of_a_preset_becomes_a_network() -> None:
    section = Student(architecture="x", epochs=1, lr=0.1, options={"a": 1}, head="fc", maps="auto")
    assert chosen_network(section) == Architecture("x", {"a": 1}, "fc", ("auto",))
    plain = Student(architecture="x", epochs=1, lr=0.1)
    assert not {"options", "head", "maps"} & plain.model_dump().keys(), "old runs keep their record"


def test_weights_record_options_and_are_read_back(tmp_path) -> None:
    save_weights(tmp_path / "w.safetensors", build_network(VIT, 10), architecture_metadata(VIT))
    assert recorded_architecture(tmp_path / "w.safetensors") == VIT
    assert architecture_of(tmp_path / "w.safetensors", "student", Architecture(VIT.name)) == VIT
    other = Architecture(VIT.name, {"depth": 3})
    assert architecture_of(tmp_path / "w.safetensors", "student", other) == other
    trained = trained_network(VIT, 10, tmp_path / "w.safetensors", "student")
    assert set(trained.network.state_dict()) == set(trained.network.inner.state_dict())


def test_simkd_records_both_networks() -> None:
    both = projected(Architecture("resnet8"), VIT)
    assert from_record(both.name, both.record(), "weights") == both
    assert Architecture("resnet8").record() == {}


@pytest.mark.parametrize("record", [3, {"maps": 3}, {"head": 3}, {"options": 3}])
def test_another_record_is_refused(record) -> None:
    with pytest.raises(WeightsError, match="weights x: expected the options of resnet8 in its metadata"):
        from_record("resnet8", record, "weights x")


def test_a_cache_records_options_of_its_teacher() -> None:
    assert teacher_facts(Architecture("resnet8")) == {"architecture": "resnet8", "options": None, "head": None}
    assert teacher_facts(VIT)["options"] == '{"depth": 2, "img_size": 32, "patch_size": 4}'
