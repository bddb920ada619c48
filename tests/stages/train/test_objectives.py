"""Which losses an objective has, of which head, with which weights; and the errors for wrong options."""

import dataclasses
import inspect
from collections.abc import Mapping
from functools import partial

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.objectives import OBJECTIVES, build_objective, losses
from dhkd.stages.train.objectives.contract import Objective, Setting
from dhkd.stages.train.objectives.dist import correlation_distance
from dhkd.stages.train.objectives.dkd import decoupled_kd
from torch import Tensor

LABELS = Labels(torch.tensor([3, 0, 4, 4]))
# The objectives that compare logits with the teacher's; test_methods.py has what the others compare.
OF_LOGITS = ["kd", "mse", "dkd", "dist", "binary-kl", "binary-kl-norm", "dhkd"]
ALONE = ["ce", "label-smoothing"]


@pytest.fixture
def student() -> StudentOutputs:
    generator = torch.Generator().manual_seed(0)
    task_BK, distill_BK = 3 * torch.randn(2, 4, 5, generator=generator)
    return StudentOutputs(task_BK.requires_grad_(), distill_BK.requires_grad_())


@pytest.fixture
def teacher() -> dict[str, Tensor]:
    return {"logits": 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).half()}


def assert_terms(objective: Objective, student: StudentOutputs, teacher: Mapping[str, Tensor], expected: dict) -> None:
    terms = objective.terms(student, LABELS, teacher)
    assert list(terms) == list(expected) == list(objective.weights(0))
    for name, value in expected.items():
        assert terms[name].shape == ()
        torch.testing.assert_close(terms[name], value, rtol=0, atol=0)


def test_all_objectives_and_their_defaults() -> None:
    assert {name: dataclasses.asdict(build_objective(name, {})) for name in OBJECTIVES} == {
        "ce": {},
        "label-smoothing": {"smoothing": 0.1},
        "kd": {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9, "standardize": False},
        "mse": {"ce_weight": 0.1, "mse_weight": 0.9},
        "dkd": {
            "temperature": 4.0,
            "ce_weight": 1.0,
            "alpha": 1.0,
            "beta": 8.0,
            "warmup_epochs": 20,
            "standardize": False,
        },
        "dist": {"temperature": 4.0, "ce_weight": 1.0, "inter_weight": 2.0, "intra_weight": 2.0},
        "binary-kl": {"alpha": 1.0, "temperature": 2.0, "ce_weight": 1.0},
        "binary-kl-norm": {"alpha": 1.0, "temperature": 2.0, "ce_weight": 1.0},
        "dhkd": {
            "alpha": 1.0,
            "temperature": 2.0,
            "ce_weight": 1.0,
            "head": "nonlinear",
            "align": True,
            "loss": "binary-kl-norm",
            "alpha_epochs": None,
            "standardize": False,
        },
        "fitnet": {"ce_weight": 1.0, "hint_weight": 100.0, "hint_stage": 2},
        "at": {"ce_weight": 1.0, "at_weight": 1000.0},
        "rkd": {"ce_weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0},
        "crd": {
            "ce_weight": 1.0,
            "crd_weight": 0.8,
            "dim": 128,
            "negatives": 16384,
            "temperature": 0.07,
            "momentum": 0.5,
            "replacement": False,
        },
        "ofd": {"ce_weight": 1.0, "ofd_weight": 1e-3, "teacher_batch_norm": "train"},
        "reviewkd": {
            "ce_weight": 1.0,
            "review_weight": 5.0,
            "warmup_epochs": 20,
            "fusion_width": 512,
            "student_before_activation": False,
        },
        "simkd": {"ce_weight": 0.0, "map_weight": 1.0},
        "cat-kd": {"ce_weight": 1.0, "cam_weight": None, "grid": 2, "normalize": False, "bias": False},
    }


@pytest.fixture
def setting() -> Setting:
    shapes_of = partial(Shapes, num_classes=5, image=(8, 8))
    return Setting(shapes_of("resnet8"), shapes_of("resnet14"), torch.arange(20) % 5, seed=0)


@pytest.mark.parametrize("name", [*OF_LOGITS, *ALONE])
def test_needs_of_logits_are_what_terms_read(
    name: str, setting: Setting, student: StudentOutputs, teacher: dict[str, Tensor]
) -> None:
    objective = build_objective(name, {})
    temperature = 4.0 if name in ("kd", "dkd", "dist") else None
    assert dict(objective.needs(setting)) == ({} if name in ALONE else {"logits": temperature})
    objective.terms(student, LABELS, {signal: teacher[signal] for signal in objective.needs(setting)})
    assert list(objective.reads(setting)) == []
    assert objective.adapter(setting) is None


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
def test_if_a_temperature_is_needed_probabilities_at_it_are_enough(
    name: str, setting: Setting, student: StudentOutputs, teacher: dict[str, Tensor]
) -> None:
    objective = build_objective(name, {"temperature": 3.0})
    assert dict(objective.needs(setting)) == {"logits": 3.0}
    probabilities_BK = torch.softmax(teacher["logits"].double() / 3, dim=1)
    terms = objective.terms(student, LABELS, teacher)
    of_probabilities = objective.terms(student, LABELS, {"logits": 3 * probabilities_BK.log()})
    torch.testing.assert_close(of_probabilities, terms, rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_what_is_standardised_needs_raw_logits(name: str, setting: Setting) -> None:
    assert dict(build_objective(name, {"standardize": True}).needs(setting)) == {"logits": None}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_dhkd_has_another_head_and_aligns(name: str) -> None:
    objective = build_objective(name, {})
    assert objective.auxiliary == ("nonlinear" if name == "dhkd" else None)
    assert objective.alignment == (Alignment(kept=("ce",), against=("binary-kl-norm",)) if name == "dhkd" else None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_which_objectives_couple_rows_and_which_compare_logits(name: str) -> None:
    objective = build_objective(name, {})
    assert objective.couples_rows == (name in ("dist", "rkd"))
    assert objective.of_logits == (name in [*OF_LOGITS, *ALONE])


def test_ce(student: StudentOutputs) -> None:
    objective = build_objective("ce", {})
    assert_terms(objective, student, {}, {"ce": losses.cross_entropy(student.task, LABELS)})
    assert objective.weights(0) == objective.weights(99) == {"ce": 1.0}


def test_kd(student: StudentOutputs, teacher: dict[str, Tensor]) -> None:
    objective = build_objective("kd", {"temperature": 3, "ce_weight": 0.2, "kd_weight": 0.8})
    expected = {
        "ce": losses.cross_entropy(student.task, LABELS),
        "kd": losses.kd(student.task, teacher["logits"], 3.0),
    }
    assert_terms(objective, student, teacher, expected)
    assert objective.weights(0) == objective.weights(99) == {"ce": 0.2, "kd": 0.8}


def test_label_smoothing(student: StudentOutputs) -> None:
    objective = build_objective("label-smoothing", {"smoothing": 0.25})
    assert_terms(objective, student, {}, {"ce": losses.smoothed_cross_entropy(student.task, LABELS, 0.25)})
    assert objective.weights(0) == objective.weights(99) == {"ce": 1.0}


def test_mse(student: StudentOutputs, teacher: dict[str, Tensor]) -> None:
    objective = build_objective("mse", {"ce_weight": 0.3, "mse_weight": 0.7})
    expected = {
        "ce": losses.cross_entropy(student.task, LABELS),
        "mse": losses.logit_mse(student.task, teacher["logits"]),
    }
    assert_terms(objective, student, teacher, expected)
    assert objective.weights(0) == objective.weights(99) == {"ce": 0.3, "mse": 0.7}


def test_dkd(student: StudentOutputs, teacher: dict[str, Tensor]) -> None:
    objective = build_objective("dkd", {"temperature": 3.0, "ce_weight": 0.5, "alpha": 2.0, "beta": 6.0})
    tckd, nckd = decoupled_kd(student.task, teacher["logits"], LABELS.first_B, 3.0)
    expected = {"ce": losses.cross_entropy(student.task, LABELS), "tckd": tckd, "nckd": nckd}
    assert_terms(objective, student, teacher, expected)
    assert objective.weights(19) == objective.weights(99) == {"ce": 0.5, "tckd": 2.0, "nckd": 6.0}


def test_dist(student: StudentOutputs, teacher: dict[str, Tensor]) -> None:
    objective = build_objective("dist", {"temperature": 3.0, "ce_weight": 0.5, "inter_weight": 2.5, "intra_weight": 3})
    student_BK, teacher_BK = (torch.softmax(x.float() / 3, dim=1) for x in (student.task, teacher["logits"]))
    expected = {
        "ce": losses.cross_entropy(student.task, LABELS),
        "inter": 9 * correlation_distance(student_BK, teacher_BK),
        "intra": 9 * correlation_distance(student_BK.T, teacher_BK.T),
    }
    assert_terms(objective, student, teacher, expected)
    assert objective.weights(0) == objective.weights(99) == {"ce": 0.5, "inter": 2.5, "intra": 3.0}


@pytest.mark.parametrize("name", ["kd", "dkd", "dhkd"])
def test_logits_are_standardised_on_demand(name: str, student: StudentOutputs, teacher: dict[str, Tensor]) -> None:
    standardized = StudentOutputs(losses.standardized(student.task), losses.standardized(student.distill))
    plain = build_objective(name, {}).terms(standardized, LABELS, {"logits": losses.standardized(teacher["logits"])})
    asked = build_objective(name, {"standardize": True}).terms(student, LABELS, teacher)
    for term, value in asked.items():
        expected = losses.cross_entropy(student.task, LABELS) if term == "ce" else plain[term]
        assert torch.equal(value, expected), term


@pytest.mark.parametrize("name", ["binary-kl", "binary-kl-norm"])
def test_binary_kl_on_one_head(name: str, student: StudentOutputs, teacher: dict[str, Tensor]) -> None:
    objective = build_objective(name, {"alpha": 0.5, "temperature": 3.0, "ce_weight": 2})
    loss = {"binary-kl": losses.binary_kl, "binary-kl-norm": losses.binary_kl_norm}[name]
    expected = {
        "ce": losses.cross_entropy(student.task, LABELS),
        name: loss(student.task, teacher["logits"], 3.0),
    }
    assert_terms(objective, student, teacher, expected)
    assert objective.weights(0) == objective.weights(99) == {"ce": 2.0, name: 0.5}


@pytest.mark.parametrize("name", ["binary-kl", "binary-kl-norm"])
def test_dhkd_gives_each_loss_its_own_head(name: str, student: StudentOutputs, teacher: dict[str, Tensor]) -> None:
    objective = build_objective("dhkd", {"loss": name, "temperature": 3.0})
    loss = {"binary-kl": losses.binary_kl, "binary-kl-norm": losses.binary_kl_norm}[name]
    expected = {
        "ce": losses.cross_entropy(student.task, LABELS),
        name: loss(student.distill, teacher["logits"], 3.0),
    }
    assert_terms(objective, student, teacher, expected)
    terms, heads = objective.terms(student, LABELS, teacher), (student.task, student.distill)
    assert torch.autograd.grad(terms["ce"], heads, allow_unused=True)[1] is None
    assert torch.autograd.grad(terms[name], heads, allow_unused=True)[0] is None


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("loss", ["binary-kl", "binary-kl-norm"])
@pytest.mark.parametrize("head", ["linear", "nonlinear"])
def test_dhkd_head_and_alignment_are_options(head: str, loss: str, align: bool) -> None:
    objective = build_objective("dhkd", {"head": head, "align": align, "loss": loss})
    assert objective.auxiliary == head
    assert objective.alignment == (Alignment(kept=("ce",), against=(loss,)) if align else None)


def test_dhkd_alpha_ends_at_its_epoch_and_the_term_stays_in_the_graph(
    student: StudentOutputs, teacher: dict[str, Tensor]
) -> None:
    objective = build_objective("dhkd", {"alpha": 0.1, "ce_weight": 2.0, "alpha_epochs": 50})
    assert objective.weights(0) == objective.weights(49) == {"ce": 2.0, "binary-kl-norm": 0.1}
    assert objective.weights(50) == objective.weights(99) == {"ce": 2.0, "binary-kl-norm": 0.0}
    terms, weights = objective.terms(student, LABELS, teacher), objective.weights(50)
    sum(weights[name] * term for name, term in terms.items()).backward()
    assert student.distill.grad is not None
    assert torch.count_nonzero(student.distill.grad) == 0
    assert build_objective("dhkd", {"alpha_epochs": 0}).weights(0)["binary-kl-norm"] == 0
    assert build_objective("dhkd", {"alpha_epochs": None}).weights(10**6)["binary-kl-norm"] == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_immutable_values(name: str) -> None:
    assert build_objective(name, {}) == build_objective(name, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_objective(name, {}).temperature = 1.0


def test_single_head_objectives_of_one_setting_differ() -> None:
    assert build_objective("binary-kl", {}) != build_objective("binary-kl-norm", {})


@pytest.mark.parametrize(
    ("name", "options", "message_part"),
    [
        ("dhkdd", {}, ["objective 'dhkdd'", "did you mean 'dhkd'"]),
        ("kd", {"temprature": 4.0}, ["'kd'", "'temprature'", "did you mean 'temperature'"]),
        (
            "kd",
            {"loss": "binary-kl"},
            ["'kd'", "'loss'", "valid are ce_weight, kd_weight, standardize, temperature"],
        ),
        ("ce", {"temperature": 4.0}, ["'ce'", "'temperature'", "none"]),
        ("ofd", {"teacher_batch_norm": "eva"}, ["'ofd'", "teacher_batch_norm", "'train' or 'eval'", "'eva'"]),
        ("crd", {"momentum": "0.5"}, ["'crd'", "momentum", "a valid number", "'0.5'"]),
        ("cat-kd", {"grid": 2.0}, ["'cat-kd'", "grid", "a valid integer", "2.0"]),
        ("binary-kl", {"needs": frozenset()}, ["'binary-kl'", "'needs'"]),
        ("kd", {"temperature": "4"}, ["'kd'", "temperature", "a valid number", "'4'"]),
        ("kd", {"temperature": True}, ["'kd'", "temperature", "a valid number", "True"]),
        ("kd", {"temperature": None}, ["'kd'", "temperature", "a valid number", "None"]),
        ("dhkd", {"align": 1}, ["'dhkd'", "align", "a valid boolean", "1"]),
        ("dhkd", {"alpha_epochs": 2.5}, ["'dhkd'", "alpha_epochs", "a valid integer", "2.5"]),
        ("dhkd", {"head": "nonlinar"}, ["'dhkd'", "head", "'linear' or 'nonlinear'", "'nonlinar'"]),
        ("dhkd", {"loss": "kl"}, ["'dhkd'", "loss", "'binary-kl' or 'binary-kl-norm'", "'kl'"]),
        ("kd", {"temperature": 0}, ["'kd'", "temperature", "> 0", "0"]),
        ("kd", {"temperature": float("inf")}, ["'kd'", "temperature", "finite", "inf"]),
        ("kd", {"kd_weight": -0.1}, ["'kd'", "kd_weight", ">= 0", "-0.1"]),
        ("kd", {"ce_weight": float("nan")}, ["'kd'", "ce_weight", "finite", "nan"]),
        ("binary-kl", {"temperature": -1.0}, ["'binary-kl'", "temperature", "> 0", "-1"]),
        ("binary-kl-norm", {"alpha": -1}, ["'binary-kl-norm'", "alpha", ">= 0", "-1"]),
        ("dhkd", {"temperature": 0.0}, ["'dhkd'", "temperature", "> 0", "0"]),
        ("dhkd", {"alpha": float("inf")}, ["'dhkd'", "alpha", "finite", "inf"]),
        ("dhkd", {"ce_weight": -1}, ["'dhkd'", "ce_weight", ">= 0", "-1"]),
        ("dhkd", {"alpha_epochs": -1}, ["'dhkd'", "alpha_epochs", ">= 0", "-1"]),
    ],
)
def test_an_error_names_in_one_line_a_wrong_name_option_or_value(
    name: str, options: dict[str, object], message_part: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        build_objective(name, options)
    message = str(raised.value)
    assert "\n" not in message
    for part in message_part:
        assert part in message


def test_an_integer_is_accepted_as_a_float() -> None:
    assert build_objective("dhkd", {"alpha": 2, "temperature": 4}) == build_objective(
        "dhkd", {"alpha": 2.0, "temperature": 4.0}
    )
    assert isinstance(build_objective("kd", {"temperature": 4}).temperature, float)


OPTIONS = [(name, option) for name, factory in OBJECTIVES.items() for option in inspect.signature(factory).parameters]
WEIGHTS = [(name, option) for name, option in OPTIONS if option.endswith("_weight") or option in ("alpha", "beta")]
TEMPERATURES = [(name, option) for name, option in OPTIONS if option == "temperature"]


@pytest.mark.parametrize("value", [-1e-6, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize(("name", "option"), WEIGHTS)
def test_no_weight_may_be_negative_or_infinite(name: str, option: str, value: float) -> None:
    assert_refused(name, {option: value}, f"objective {name!r}: {option}: expected a finite number >= 0, got {value!r}")
    build_objective(name, {option: 0.0})


@pytest.mark.parametrize("value", [0.0, -2.0, float("inf"), float("nan")])
@pytest.mark.parametrize(("name", "option"), TEMPERATURES)
def test_temperatures_are_above_zero(name: str, option: str, value: float) -> None:
    assert_refused(name, {option: value}, f"objective {name!r}: {option}: expected a finite number > 0, got {value!r}")


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("dkd", "warmup_epochs", -1, "at least 0"),
        ("reviewkd", "warmup_epochs", -1, "at least 0"),
        ("reviewkd", "fusion_width", 0, "at least 1"),
        ("fitnet", "hint_stage", -1, "at least 0"),
        ("crd", "dim", 0, "at least 1"),
        ("crd", "negatives", 0, "at least 1"),
        ("crd", "momentum", 1.0, "at least 0 and below 1"),
        ("crd", "momentum", -0.1, "at least 0 and below 1"),
        ("crd", "momentum", float("nan"), "at least 0 and below 1"),
        ("cat-kd", "grid", 0, "at least 1"),
        ("label-smoothing", "smoothing", 1.1, "0 to 1"),
        ("label-smoothing", "smoothing", -0.1, "0 to 1"),
        ("label-smoothing", "smoothing", float("nan"), "0 to 1"),
    ],
)
def test_other_options_have_their_ranges(name: str, option: str, value: float, expected: str) -> None:
    assert_refused(name, {option: value}, f"objective {name!r}: {option}: expected {expected}, got {value!r}")


def assert_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_objective(name, options)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("name", "full"),
    [("dkd", {"ce": 1.0, "tckd": 1.0, "nckd": 8.0}), ("reviewkd", {"ce": 1.0, "review": 5.0})],
)
def test_the_warm_up_grows_by_a_twentieth_each_epoch(name: str, full: dict[str, float]) -> None:
    objective = build_objective(name, {})
    for epoch in range(30):
        factor = min(epoch + 1, 20) / 20
        expected = {term: weight * (1 if term == "ce" else factor) for term, weight in full.items()}
        assert objective.weights(epoch) == pytest.approx(expected, rel=1e-12), epoch
    assert objective.weights(19) == objective.weights(200) == full  # to the bit, from then on
    at_once = build_objective(name, {"warmup_epochs": 0})
    assert at_once.weights(0) == build_objective(name, {"warmup_epochs": 1}).weights(0) == full
