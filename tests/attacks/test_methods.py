"""Methods from outside: published files, runs and caches of earlier definitions, and options that make no sense."""

import argparse
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from dhkd.data.errors import WeightsError
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.weights import fit_weights, read_weights
from torch import Tensor, nn

from tests.e2e.command_line import SMALL, assert_one_line, dhkd, done
from tests.few import few

CLASSES = 5
WIDE = [
    *SMALL,
    *("--set", "teacher=wrn_16_1", "--set", "student=wrn_16_1", "--set", "student.epochs=1"),
    *("--set", "data.limit=60", "--set", "data.test_limit=20", "--set", "cache.views=1"),
    *("--set", "teacher.batch_size=30", "--set", "student.batch_size=30"),
]
FEW = ["--set", "objectives.crd.negatives=20"]

# The classifier's name in the DHKD authors' networks, and in their students that of the auxiliary head.
OFFICIAL = {
    "MobileNetV2": ("classifier", "classifier2"),
    "MobileNetV1": ("classifier", "classifier2"),
    "vgg8": ("classifier", "classifier2"),
    "resnet8": ("fc", "fc2"),
    "wrn_16_1": ("fc", "fc2"),
    "ShuffleV1": ("linear", "linear2"),
    "ShuffleV2": ("linear", "linear2"),
}
SECOND_HEADS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "none": {},
    "linear": {"weight": (CLASSES, 3), "bias": (CLASSES,)},
    "nonlinear": {"net.0.weight": (200, 3), "net.2.running_mean": (200,), "net.4.weight": (CLASSES, 200)},
}


def official(network: Network, head: str, second: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The network's state in the authors' names, with an auxiliary head of these shapes."""
    state = {
        f"{head}.{name.rpartition('.')[2]}" if name.startswith(f"{network.head_name}.") else name: tensor
        for name, tensor in network.state_dict().items()
    }
    return state | {f"{second}.{name}": torch.ones(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    few(product(OFFICIAL, SECOND_HEADS), [*product(OFFICIAL, ["nonlinear"]), *product(["resnet8"], SECOND_HEADS)]),
)
def test_checkpoints_of_the_dhkd_authors_load(name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    original, fresh = build_network(name, CLASSES), build_network(name, CLASSES)
    state = official(original, *OFFICIAL[name], SECOND_HEADS[kind])
    # Their scripts for CIFAR-100 save it so; those for ImageNet with a prefix and under other keys.
    contents: list[dict[str, object]] = [
        {"args": argparse.Namespace(model_s=name), "model": state},
        {"epoch": 3, "opt": argparse.Namespace(), "model": {f"module.{key}": value for key, value in state.items()}},
    ]
    for number, content in enumerate(contents):
        torch.save(content, tmp_path / f"{number}.pth")
        fit_weights(fresh, read_weights(tmp_path / f"{number}.pth"), "w")
        assert all(torch.equal(tensor, fresh.state_dict()[key]) for key, tensor in original.state_dict().items())
        nn.init.zeros_(fresh.get_parameter(next(name for name, _ in fresh.named_parameters())))


def test_published_mobilenets_of_the_comparison_load() -> None:
    original, fresh = build_network("MobileNetV2", CLASSES), build_network("MobileNetV2", CLASSES)
    fit_weights(fresh, official(original, "classifier.0", "none", {}), "w")
    assert torch.equal(fresh.head.weight, original.head.weight)


@pytest.mark.parametrize("name", ["resnet8", "MobileNetV2", "MobileNetV1"])
def test_any_other_head_is_still_refused(name: str) -> None:
    network = build_network(name, CLASSES)
    with pytest.raises(WeightsError, match=r"fc3\.weight expected nothing, got 5"):
        fit_weights(network, {**network.state_dict(), "fc3.weight": torch.ones(5)}, "w")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wide ResNet as teacher, its cache for `at`, and one of attention as it once was."""
    folder = tmp_path_factory.mktemp("wide")
    done("train-teacher", "digits", *WIDE, "--out", folder / "teacher")
    caching = ["cache-teacher", "digits", *WIDE, "--teacher", folder / "teacher"]
    done(*caching, "--out", folder / "c.zarr", "--signals", "logits,embedding,attention,cam,map2-out")
    earlier = "logits,attention1-8x8,attention2-4x4,attention3-2x2,map2"
    done(*caching, "--out", folder / "earlier.zarr", "--signals", earlier)
    return folder


def training(wide: Path, objective: str, out: Path, *words: object, cache: str = "c.zarr") -> list[object]:
    command = ["train-student", "digits", *WIDE, *FEW, "--cache", wide / cache, "--out", out]
    return [*command, "--set", f"objective={objective}", *words]


@pytest.mark.parametrize(
    ("objective", "missing"),
    [
        ("at", "attention1-8x8-out, attention2-4x4-out, attention3-2x2-out"),
        ("fitnet", "map2-out"),
        ("kd + 0.5 * at", "attention1-8x8-out"),
    ],
)
def test_a_cache_of_other_maps_of_a_wide_resnet_is_not_taken_for_the_published_ones(
    objective: str, missing: str, wide: Path, tmp_path: Path
) -> None:
    outcome = dhkd(*training(wide, objective, tmp_path / "run", cache="earlier.zarr"))
    assert_one_line(
        outcome, 1, ["needs the signal", missing, "it holds", "attention1-8x8", "--signals", "teacher.live"]
    )
    assert not (tmp_path / "run").exists()


# What a run of each objective records, which a run from before there was a second definition lacks.
DEFINITIONS = {"at": {"at": 2}, "kd + crd": {"crd": 2}}


@pytest.mark.parametrize("objective", DEFINITIONS)
def test_a_run_of_an_earlier_definition_is_not_continued(objective: str, wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done(*training(wide, objective, out))
    text = (out / "config.yaml").read_text()
    config = yaml.safe_load(text)
    assert config["run"].pop("definitions") == DEFINITIONS[objective]
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (out / "result.json").unlink()
    before = {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    outcome = dhkd(*training(wide, objective, out, "--resume"))
    name = next(iter(DEFINITIONS[objective]))
    assert_one_line(outcome, 1, [f'run.definitions expected nothing, got {{"{name}": 2}}', "choose another --out"])
    assert {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()} == before
    # With what it recorded, it goes on.
    (out / "config.yaml").write_text(text)
    done(*training(wide, objective, out, "--resume"))


def test_a_run_of_a_method_that_never_changed_records_no_definition(wide: Path, tmp_path: Path) -> None:
    done(*training(wide, "dhkd + rkd", tmp_path / "run"))
    assert "definitions" not in yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]


@pytest.mark.parametrize(
    ("setting", "objective", "says"),
    [
        ("objectives.reviewkd.fusion_width=0", "reviewkd", ["fusion_width", "at least 1", "got 0"]),
        ("objectives.reviewkd.fusion_width=wide", "reviewkd", ["fusion_width", "integer", "wide"]),
        ("objectives.reviewkd.student_before_activation=2", "reviewkd", ["student_before_activation", "boolean"]),
        ("objectives.crd.replacement=maybe", "crd", ["replacement", "boolean", "maybe"]),
        ("objectives.cat-kd.bias=[]", "cat-kd", ["bias", "boolean"]),
        ("objectives.ofd.size=student", "ofd", ["'ofd'", "'size'", "valid are"]),
        ("objectives.dhkd.alpha_epochs=-1", "dhkd", ["alpha_epochs", ">= 0", "-1"]),
    ],
)
def test_options_without_a_meaning_are_refused(
    setting: str, objective: str, says: list[str], wide: Path, tmp_path: Path
) -> None:
    outcome = dhkd(*training(wide, objective, tmp_path / "run", "--set", setting))
    assert_one_line(outcome, outcome.code, says)
    assert outcome.code in (1, 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "signal", ["map2-out-before", "map2-before-out", "logits-out", "embedding-out", "cam-2x2-out", "attention1-out"]
)
def test_signals_that_no_network_has_are_refused(signal: str, wide: Path, tmp_path: Path) -> None:
    words = ["cache-teacher", "digits", *WIDE, "--teacher", wide / "teacher", "--signals", f"logits,{signal}"]
    assert_one_line(dhkd(*words, "--out", tmp_path / "c.zarr"), 2, [f"signal '{signal}'", "map2-out"])
    assert not (tmp_path / "c.zarr").exists()
