"""What the loop may expect of every objective, for any networks, and of several objectives at once."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.signals import Shapes, needs_maps, signals_of_outputs
from dhkd.stages.models.student import Student, auxiliary_head
from dhkd.stages.train.gradients import Alignment, backward
from dhkd.stages.train.objectives import OBJECTIVES, build_objective, combined_objective
from dhkd.stages.train.objectives.combined import Combined
from dhkd.stages.train.objectives.contract import Objective, Setting
from torch import Tensor

from tests.few import few

CLASSES = 5
LABELS = torch.arange(40) % CLASSES
OPTIONS: Mapping[str, dict[str, object]] = {"crd": {"negatives": 9, "dim": 6}}
TOGETHER = ["dhkd + reviewkd", "kd + 0.5 * rkd", "simkd + kd", "at + crd + ofd + dkd"]
# Teacher, student and pixels, from the families of the published pairs.
PAIRS = [
    ("resnet32x4", "resnet8x4", 32),
    ("wrn_40_2", "ShuffleV1", 32),
    ("ResNet50", "MobileNetV2", 32),
    ("torchvision:resnet34", "torchvision:resnet18", 224),
]


def objective_of(text: str) -> Objective:
    return combined_objective(text, OPTIONS)


@cache
def shapes_of(architecture: str, pixels: int) -> Shapes:
    return Shapes(architecture, CLASSES, (pixels, pixels))


def setting_of(
    objective: Objective, teacher: str, student: str, pixels: int, network: Network | None = None
) -> Setting:
    setting = Setting(shapes_of(student, pixels), shapes_of(teacher, pixels), LABELS, 0, network)
    return replace(setting, student=shapes_of(objective.architecture(setting), pixels))


@pytest.mark.parametrize(("teacher", "student", "pixels"), PAIRS)
@pytest.mark.parametrize("name", [*OBJECTIVES, *TOGETHER])
def test_both_networks_have_what_is_needed_and_read(name: str, teacher: str, student: str, pixels: int) -> None:
    objective = objective_of(name)
    setting = setting_of(objective, teacher, student, pixels)
    needs, reads = objective.needs(setting), list(objective.reads(setting))
    of_teacher = {name: setting.teacher.row(name) for name in needs}
    of_student = {name: setting.student.row(name) for name in reads}
    assert all(math.prod(row) > 0 for row in [*of_teacher.values(), *of_student.values()])
    assert len(set(reads)) == len(reads)
    # Signals that are compared directly have the same shape.
    for shared in set(needs) & set(reads):
        if shared.startswith(("attention", "cam")):
            assert of_teacher[shared] == of_student[shared]
    if objective.couples_rows is False and objective.of_logits and not isinstance(objective, Combined):
        assert not reads


@pytest.mark.parametrize(("name", "at_least"), [("at", 3), ("ofd", 3), ("reviewkd", 4), ("fitnet", 1)])
@pytest.mark.parametrize(("teacher", "student", "pixels"), PAIRS)
def test_the_stages_behind_the_stem_are_compared(
    name: str, at_least: int, teacher: str, student: str, pixels: int
) -> None:
    objective = objective_of(name)
    setting = setting_of(objective, teacher, student, pixels)
    deepest = len(setting.teacher.maps) - 1
    stages = {2} if name == "fitnet" else set(range(1, deepest + 1))
    for names in (objective.needs(setting), objective.reads(setting)):
        compared = {
            int("".join(c for c in one.partition("-")[0] if c.isdigit())) for one in names if one != "embedding"
        }
        assert compared == stages
        assert len(names) >= at_least
        assert ("embedding" in names) == (name == "reviewkd")


def test_attention_is_compared_at_the_smaller_resolution() -> None:
    objective = objective_of("at")
    coarse = ["attention1-16x16", "attention2-8x8", "attention3-4x4"]
    out = [f"{name}-out" for name in coarse]  # of a wide ResNet
    assert list(objective.needs(setting_of(objective, "wrn_40_2", "ShuffleV1", 32))) == out
    assert list(objective.reads(setting_of(objective, "wrn_40_2", "ShuffleV1", 32))) == coarse
    assert list(objective.needs(setting_of(objective, "ShuffleV1", "wrn_40_2", 32))) == coarse
    assert list(objective.reads(setting_of(objective, "ShuffleV1", "wrn_40_2", 32))) == out
    uneven = Setting(Shapes("resnet8", 5, (8, 16)), Shapes("resnet8", 5, (16, 8)), LABELS, 0)
    assert next(iter(objective.needs(uneven))) == "attention1-8x8"


def test_ofd_reads_before_the_activation_and_chooses_how_the_teacher_normalises() -> None:
    setting = setting_of(objective_of("ofd"), "resnet32x4", "resnet8x4", 32)
    before = ["map1-before", "map2-before", "map3-before"]
    assert list(objective_of("ofd").reads(setting)) == before
    assert list(objective_of("ofd").needs(setting)) == [f"{name}-batch" for name in before]
    as_trained = build_objective("ofd", {"teacher_batch_norm": "eval"})
    assert list(as_trained.needs(setting)) == before


def test_reviewkd_reads_the_student_behind_and_the_teacher_before_the_activation() -> None:
    setting = setting_of(objective_of("reviewkd"), "resnet32x4", "resnet8x4", 32)
    assert list(objective_of("reviewkd").reads(setting)) == ["map1", "map2", "map3", "embedding"]
    assert list(objective_of("reviewkd").needs(setting)) == ["map1-before", "map2-before", "map3-before", "embedding"]


@pytest.mark.parametrize("name", ["at", "ofd", "reviewkd", "at + kd", "dhkd + reviewkd"])
@pytest.mark.parametrize(("teacher", "student"), [("vgg13", "resnet8"), ("resnet8", "MobileNetV2")])
def test_networks_of_unequally_many_stages_are_refused(name: str, teacher: str, student: str) -> None:
    objective = objective_of(name)
    counts = {"vgg13": 4, "resnet8": 3, "MobileNetV2": 4}
    method = next(one for one in ("at", "ofd", "reviewkd") if one in name.split())
    message = (
        f"objective {method!r} compares stage with stage: expected equally many, got {counts[student]} of {student}"
        f" and {counts[teacher]} of {teacher}; choose with student.maps or teacher.maps"
    )
    for ask in (objective.needs, objective.reads):
        with pytest.raises(ConfigError) as raised:
            ask(setting_of(objective, teacher, student, 32))
        without_sizes = re.sub(r" \([\d×, ]+\)", "", str(raised.value))
        assert without_sizes == message


@pytest.mark.parametrize(
    ("name", "options", "teacher", "student", "message_part"),
    [
        ("fitnet", {"hint_stage": 4}, "resnet8", "resnet14", "expected a stage from 0 to 3, got 4"),
        ("fitnet", {"hint_stage": 4}, "vgg8", "resnet14", "expected a stage from 0 to 3, got 4"),
        ("fitnet", {}, "torchvision:mobilenet_v3_small", "resnet8", "gives no maps"),
        ("simkd", {}, "MobileNetV2", "resnet8", "expected a teacher whose last stage is pooled and classified"),
        ("cat-kd", {}, "torchvision:mobilenet_v3_small", "resnet8", "gives no maps: name modules"),
    ],
)
def test_an_error_says_in_one_line_what_a_network_lacks(
    name: str, options: dict[str, object], teacher: str, student: str, message_part: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        rows_of(build_objective(name, options), teacher, student)
    assert message_part in str(raised.value)
    assert "\n" not in str(raised.value)


def rows_of(objective: Objective, teacher: str, student: str) -> list[tuple[int, ...]]:
    setting = setting_of(objective, teacher, student, 64)
    of_student = [setting.student.row(name) for name in objective.reads(setting)]
    return of_student + [setting.teacher.row(name) for name in objective.needs(setting)]


@cache
def teacher_of(architecture: str) -> Network:
    torch.manual_seed(1)
    return build_network(architecture, CLASSES).eval()


def built(objective: Objective, setting: Setting) -> Student:
    torch.manual_seed(setting.seed)
    backbone = build_network(setting.student.architecture, CLASSES)
    objective.start(backbone, setting)
    head = auxiliary_head(objective.auxiliary, backbone, CLASSES) if objective.auxiliary else None
    return Student(backbone, head, objective.reads(setting), objective.adapter(setting)).train()


@torch.no_grad()
def batch_of(objective: Objective, setting: Setting, epoch: int = 0) -> Batch:
    teacher, needs = setting.teacher_network, list(objective.needs(setting))
    index_B = torch.tensor([3, 17, 8, 39])
    images_BCHW = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    signals = signals_of_outputs(teacher, teacher.outputs(images_BCHW, maps=needs_maps(needs)), needs)
    return Batch(epoch, torch.zeros(4, dtype=torch.int64), index_B, images_BCHW, Labels(LABELS[index_B]), signals, 4)


def terms_of(name: str, teacher: str, student: str) -> tuple[Objective, Student, dict[str, Tensor]]:
    objective = objective_of(name)
    setting = setting_of(objective, teacher, student, 16, teacher_of(teacher))
    network, batch = built(objective, setting), batch_of(objective, setting)
    return objective, network, objective.terms(network(batch.images_BCHW, batch), batch.labels, batch.teacher)


@pytest.mark.parametrize(
    ("name", "teacher", "student"),
    few(
        [
            (name, *pair)
            for name in [*OBJECTIVES, *TOGETHER]
            for pair in (("resnet14", "resnet8"), ("resnet8x4", "ShuffleV1"))
        ],
        [
            *((name, "resnet14", "resnet8") for name in [*OBJECTIVES, *TOGETHER]),
            *((name, "resnet8x4", "ShuffleV1") for name in ["crd", "fitnet", "ofd", "reviewkd", "simkd", *TOGETHER]),
        ],
    ),
)
def test_terms_are_the_weights_in_every_epoch_and_reach_all_that_is_trained(
    name: str, teacher: str, student: str
) -> None:
    objective, network, terms = terms_of(name, teacher, student)
    for epoch in (0, 1, 19, 20, 50, 239):
        weights = objective.weights(epoch)
        assert list(weights) == list(terms), epoch
        assert all(isinstance(weight, float) and weight >= 0 for weight in weights.values())
    assert "ce" in terms
    for term, value in terms.items():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert torch.isfinite(value), term
        assert term == "ce" or value != 0, term
    sum(objective.weights(0)[term] * value for term, value in terms.items()).backward()
    for path, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, path  # as DDP needs it
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), path


NEED_ONE_CLASS = {"dkd", "crd"}


@pytest.mark.parametrize("name", [*sorted(OBJECTIVES.keys() - NEED_ONE_CLASS), "dhkd + reviewkd", "kd + 0.5 * rkd"])
def test_mixed_labels_change_the_cross_entropy_and_nothing_else(name: str) -> None:
    objective = objective_of(name)
    setting = setting_of(objective, "resnet14", "resnet8", 16, teacher_of("resnet14"))
    network, batch = built(objective, setting).eval(), batch_of(objective, setting)
    second_B = (batch.labels.first_B + 1) % CLASSES
    mixed = replace(batch, labels=Labels(batch.labels.first_B, second_B, torch.full((4,), 0.75)))
    outputs = network(batch.images_BCHW, batch)
    plain, of_both, of_second = (
        objective.terms(outputs, labels, batch.teacher) for labels in (batch.labels, mixed.labels, Labels(second_B))
    )
    assert {term for term, value in of_both.items() if not torch.equal(value, plain[term])} == {"ce"}
    torch.testing.assert_close(of_both["ce"], 0.75 * plain["ce"] + 0.25 * of_second["ce"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [*sorted(OBJECTIVES.keys() - {"label-smoothing"}), "kd + 0.5 * rkd"])
def test_smoothed_labels_change_the_cross_entropy_and_nothing_else(name: str) -> None:
    objective = objective_of(name)
    setting = setting_of(objective, "resnet14", "resnet8", 16, teacher_of("resnet14"))
    network, batch = built(objective, setting).eval(), batch_of(objective, setting)
    outputs = network(batch.images_BCHW, batch)
    plain, smoothed = (
        objective.terms(outputs, labels, batch.teacher) for labels in (batch.labels, batch.labels.smoothed(0.2))
    )
    assert {term for term, value in smoothed.items() if not torch.equal(value, plain[term])} == {"ce"}
    expected = torch.nn.functional.cross_entropy(outputs.task, batch.labels.classes_B, label_smoothing=0.2)
    assert torch.equal(smoothed["ce"], expected)


@pytest.mark.parametrize("name", [*sorted(NEED_ONE_CLASS), "kd + dkd", "kd + crd"])
def test_what_needs_one_class_for_each_image_refuses_mixed_labels(name: str) -> None:
    objective = objective_of(name)
    setting = setting_of(objective, "resnet14", "resnet8", 16, teacher_of("resnet14"))
    network, batch = built(objective, setting), batch_of(objective, setting)
    mixed = replace(batch, labels=Labels(batch.labels.first_B, batch.labels.first_B, torch.ones(4)))
    method = name.split()[-1]
    with pytest.raises(ConfigError, match=rf"^objective '{method}': expected images of one class each, got mixed ones"):
        objective.terms(network(mixed.images_BCHW, mixed), mixed.labels, mixed.teacher)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_part_with_factor_one_is_that_objective(name: str) -> None:
    assert combined_objective(name, OPTIONS) == build_objective(name, OPTIONS.get(name, {}))
    assert combined_objective(f" 1 * {name} ", OPTIONS) == build_objective(name, OPTIONS.get(name, {}))


def test_factors_multiply_weights_and_cross_entropy_is_the_first_parts() -> None:
    for text, expected in (
        ("kd + 0.5 * rkd", {"ce": 0.1, "kd": 0.9, "distance": 12.5, "angle": 25.0}),
        ("0.5 * rkd + kd", {"ce": 0.5, "kd": 0.9, "distance": 12.5, "angle": 25.0}),
        ("2*kd+1e-1*cat-kd", {"ce": 0.2, "kd": 1.8, "cam": 1.5}),
        ("0.25 * ce", {"ce": 0.25}),
        ("label-smoothing + binary-kl", {"ce": 1.0, "binary-kl": 1.0}),
    ):
        assert objective_of(text).weights(0) == pytest.approx(expected), text
    warmed = objective_of("dhkd + 2 * reviewkd")
    assert warmed.weights(0) == pytest.approx({"ce": 1.0, "binary-kl-norm": 1.0, "review": 0.5})
    assert warmed.weights(19) == {"ce": 1.0, "binary-kl-norm": 1.0, "review": 10.0}


def test_the_terms_are_those_of_the_parts() -> None:
    for text in TOGETHER:
        _, _, together = terms_of(text, "resnet14", "resnet8")
        assert set(together) == {
            term for name in text.split(" + ") for term in objective_of(name.rpartition("*")[2].strip()).weights(0)
        }
    _, _, smoothed = terms_of("label-smoothing + kd", "resnet14", "resnet8")
    _, _, plain = terms_of("kd", "resnet14", "resnet8")
    assert smoothed["kd"] == plain["kd"]
    assert smoothed["ce"] == terms_of("label-smoothing", "resnet14", "resnet8")[2]["ce"]
    assert plain["ce"] != smoothed["ce"]
    # No part influences the terms of another.
    _, _, both = terms_of("rkd + at", "resnet14", "resnet8")
    for name in ("rkd", "at"):
        for term, value in terms_of(name, "resnet14", "resnet8")[2].items():
            torch.testing.assert_close(both[term], value, rtol=1e-6, atol=0)


def test_each_part_keeps_its_own_options() -> None:
    objective = combined_objective("kd + 0.5 * dkd", {"kd": {"temperature": 2.0}, "dkd": {"beta": 3.0}, "rkd": {}})
    assert isinstance(objective, Combined)
    assert objective.parts == (
        ("kd", 1.0, build_objective("kd", {"temperature": 2.0})),
        ("dkd", 0.5, build_objective("dkd", {"beta": 3.0})),
    )


def test_probabilities_are_enough_if_all_parts_take_them_at_one_temperature() -> None:
    setting = setting_of(objective_of("ce"), "resnet14", "resnet8", 16)
    assert dict(objective_of("kd + dkd").needs(setting)) == {"logits": 4.0}
    hot = combined_objective("kd + dkd", {"dkd": {"temperature": 3.0}})
    assert dict(hot.needs(setting)) == {"logits": None}
    for text in ("kd + binary-kl", "binary-kl + kd", "dkd + binary-kl + kd", "binary-kl + kd + dkd"):
        assert dict(objective_of(text).needs(setting)) == {"logits": None}, text
    assert dict(objective_of("kd + rkd + cat-kd").needs(setting)) == {
        "logits": 4.0,
        "embedding": None,
        "cam-2x2": None,
    }
    assert list(objective_of("rkd + crd + cat-kd").reads(setting)) == ["embedding", "cam-2x2"]


def test_the_whole_has_what_any_part_has() -> None:
    assert objective_of("kd + rkd").couples_rows
    assert objective_of("dist + kd").couples_rows
    assert not objective_of("kd + at").couples_rows
    assert objective_of("reviewkd + dhkd").auxiliary == "nonlinear"
    assert objective_of("kd + rkd").auxiliary is None
    setting = setting_of(objective_of("ce"), "resnet14", "resnet8", 16)
    assert objective_of("kd + simkd").architecture(setting).name == "simkd:resnet8+resnet14"
    assert objective_of("kd + rkd").architecture(setting).name == "resnet8"
    assert objective_of("kd + rkd").adapter(setting) is None
    adapter = objective_of("kd + fitnet + crd").adapter(setting)
    assert adapter is not None
    assert {path.split(".")[1] for path, _ in adapter.named_parameters()} == {"fitnet", "crd"}
    assert adapter.same_in_every_process == ["parts.crd.memory_student", "parts.crd.memory_teacher"]
    assert all(path in dict(adapter.named_buffers()) for path in adapter.same_in_every_process)


ALIGNED = {
    "dhkd + reviewkd": ("binary-kl-norm",),
    "reviewkd + dhkd": ("binary-kl-norm",),
    "dhkd + kd": ("binary-kl-norm", "kd"),
    "dkd + rkd + dhkd + at": ("tckd", "nckd", "binary-kl-norm"),
    "dhkd + dist + crd": ("binary-kl-norm", "inter", "intra"),
}


@pytest.mark.parametrize("text", ALIGNED)
def test_the_alignment_of_a_part_is_against_all_terms_of_logits_and_no_others(text: str) -> None:
    objective = objective_of(text)
    assert objective.alignment == Alignment(kept=("ce",), against=ALIGNED[text])
    kept, against, free = objective.alignment.split(objective.weights(0))
    assert kept == ["ce"]
    assert sorted(against) == sorted(ALIGNED[text])
    of_others = {
        term
        for name in text.split(" + ")
        if not build_objective(name, {}).of_logits
        for term in build_objective(name, {}).weights(0)
    }
    assert set(free) == of_others - {"ce"}


def test_a_given_alignment_replaces_that_of_the_parts() -> None:
    assert objective_of("kd + reviewkd").alignment is None
    unaligned = {"dhkd": {"align": False}}
    assert combined_objective("dhkd + reviewkd", unaligned).alignment is None
    keep_ce = combined_objective("kd + reviewkd", {}, Alignment(kept=("ce",)))
    assert keep_ce.alignment == Alignment(kept=("ce",), against=("kd",))
    given = Alignment(kept=("ce", "binary-kl-norm"), against=("review",))
    assert combined_objective("dhkd + reviewkd", {}, given).alignment == given
    keep_kd = combined_objective("kd", {}, Alignment(kept=("kd",)))
    assert keep_kd.alignment == Alignment(kept=("kd",), against=("ce",))
    assert combined_objective("dhkd", {}).alignment == Alignment(kept=("ce",), against=("binary-kl-norm",))


@pytest.mark.parametrize(
    ("alignment", "message_part"),
    [
        (Alignment(kept=("cee",)), "alignment: unknown term 'cee': did you mean 'ce'? valid are ce, kd, review"),
        (Alignment(kept=("ce",), against=("kdd",)), "alignment: unknown term 'kdd': did you mean 'kd'?"),
        (Alignment(kept=()), "alignment.kept: expected at least one of"),
        (Alignment(kept=("ce",), against=()), "alignment.against: expected at least one of"),
        (Alignment(kept=("ce", "kd")), "alignment.against: expected at least one of"),
    ],
)
def test_an_alignment_of_other_terms_is_refused(alignment: Alignment, message_part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        combined_objective("kd + reviewkd", {}, alignment)
    assert str(raised.value).startswith(message_part)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message_part"),
    [
        ("kd + rkdd", "unknown objective 'rkdd': did you mean 'rkd'?"),
        ("kd + 0.5 * dhkdd", "unknown objective 'dhkdd': did you mean 'dhkd'?"),
        ("kd + kd", "objective: expected each only once, got kd + kd"),
        ("kd + 2 * kd + rkd", "objective: expected each only once, got kd + kd + rkd"),
        ("dhkd + binary-kl-norm", "objective: dhkd and binary-kl-norm both have a term binary-kl-norm; leave one out"),
        ("kd + -1 * rkd", "objective 'kd + -1 * rkd': expected a finite factor > 0, got '-1'"),
        ("kd + 0 * rkd", "objective 'kd + 0 * rkd': expected a finite factor > 0, got '0'"),
        ("0.0 * kd", "objective '0.0 * kd': expected a finite factor > 0, got '0.0'"),
        ("kd + half * rkd", "objective 'kd + half * rkd': expected a finite factor > 0, got 'half'"),
        ("inf * kd", "objective 'inf * kd': expected a finite factor > 0, got 'inf'"),
        ("nan * kd", "objective 'nan * kd': expected a finite factor > 0, got 'nan'"),
        ("kd * 0.5", "objective 'kd * 0.5': expected a finite factor > 0, got 'kd'"),
        ("kd + ce", "objective: expected that each part adds a term, got ce, which adds nothing to kd in kd + ce; put"),
        ("kd + label-smoothing", "objective: expected that each part adds a term, got label-smoothing, which adds"),
        (
            "ce + rkd",
            "objective: expected that each part adds a term, got ce, which adds nothing to rkd in ce + rkd; l",
        ),
        (
            "rkd + at + 0.5 * ce",
            "objective: expected that each part adds a term, got ce, which adds nothing to rkd + a",
        ),
        ("kd +", "objective 'kd +': expected NAME, or NAME + FACTOR * NAME"),
        ("+ kd", "objective '+ kd': expected NAME, or NAME + FACTOR * NAME"),
        ("kd + * rkd", "objective 'kd + * rkd': expected NAME, or NAME + FACTOR * NAME"),
        ("2 * 3 * kd", "objective '2 * 3 * kd': expected NAME, or NAME + FACTOR * NAME"),
        ("", "objective '': expected NAME, or NAME + FACTOR * NAME"),
    ],
)
def test_an_error_says_in_one_line_what_does_not_combine(text: str, message_part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        combined_objective(text, {})
    assert str(raised.value).startswith(message_part)
    assert "\n" not in str(raised.value)


def test_a_wrong_option_of_a_part_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"^objective 'rkd': angle_weight: expected a finite number >= 0, got -1\.0$"):
        combined_objective("kd + 0.5 * rkd", {"rkd": {"angle_weight": -1.0}})


@pytest.mark.parametrize(
    ("text", "options", "idle"),
    [
        ("rkd + kd", {"kd": {"kd_weight": 0.0}}, "kd"),
        ("kd + dhkd", {"dhkd": {"alpha_epochs": 0}}, "dhkd"),
        ("ce + label-smoothing", {"label-smoothing": {"smoothing": 0.0}}, "ce"),
        ("label-smoothing + rkd", {"label-smoothing": {"smoothing": 0.0}}, "label-smoothing"),
        ("rkd + dkd", {"dkd": {"alpha": 0.0, "beta": 0.0}}, "dkd"),
    ],
)
def test_a_part_whose_options_silence_it_is_refused(
    text: str, options: dict[str, dict[str, object]], idle: str
) -> None:
    with pytest.raises(ConfigError, match=f"got {idle}, which adds nothing to "):
        combined_objective(text, options)


def test_a_part_counts_if_only_its_warm_up_or_its_cross_entropy_tells_it_apart() -> None:
    for text in ("kd + dhkd", "2 * ce + rkd", "ce + kd", "label-smoothing + rkd", "kd + dkd"):
        assert combined_objective(text, {"dhkd": {"alpha_epochs": 1}}).weights(0)


@cache
def step_of(text: str) -> tuple[float, dict[str, Tensor]]:
    """One step's loss, and its gradient in the student's network without what the method adds to it."""
    objective, network, terms = terms_of(text, "resnet8", "resnet8")
    weights = objective.weights(0)
    named = {path: parameter for path, parameter in network.named_parameters() if parameter.requires_grad}
    backward(terms, weights, list(named.values()), alignment=objective.alignment)
    backbone = {path: p.grad for path, p in named.items() if path.startswith("backbone.") and p.grad is not None}
    return float(sum(weights[term] * value.detach() for term, value in terms.items())), backbone


def trains_alike(one: str, other: str) -> bool:
    (loss, gradient), (other_loss, other_gradient) = step_of(one), step_of(other)
    return loss == other_loss and all(torch.equal(gradient[path], other_gradient[path]) for path in gradient)


def refusal(text: str) -> str | None:
    try:
        objective_of(text)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("first", few(OBJECTIVES, ["ce", "kd", "dhkd", "reviewkd", "simkd"]))
def test_each_pair_of_objectives_is_a_method_of_its_own_or_is_refused(first: str) -> None:
    refused = []
    for second in OBJECTIVES:
        text = f"{first} + {second}"
        if refusal(text) is not None:
            refused.append(second)
            continue
        assert not trains_alike(text, first), text
        assert not trains_alike(text, second), text
    assert first in refused
    if first not in ("ce", "simkd"):  # what has another loss, and weighs cross-entropy as ce does, has ce within it
        assert "ce" in refused
    assert len(refused) < len(OBJECTIVES) - 1 or first == "ce"
