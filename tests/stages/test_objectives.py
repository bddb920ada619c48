"""Which losses an objective asks for, of which head, with which weights; and what a wrong option is told."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.stages.models.student import StudentLogits
from dhkd.stages.train.objectives import OBJECTIVES, build_objective, losses
from dhkd.stages.train.objectives.contract import Objective
from torch import Tensor

LABELS = torch.tensor([3, 0, 4, 4])


@pytest.fixture
def student() -> StudentLogits:
    generator = torch.Generator().manual_seed(0)
    task_BK, distill_BK = 3 * torch.randn(2, 4, 5, generator=generator)
    return StudentLogits(task_BK.requires_grad_(), distill_BK.requires_grad_())


@pytest.fixture
def teacher() -> dict[str, Tensor]:
    return {"logits": 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).half()}


def assert_terms(objective: Objective, student: StudentLogits, teacher: Mapping[str, Tensor], expected: dict) -> None:
    terms = objective.terms(student, LABELS, teacher)
    assert list(terms) == list(expected) == list(objective.weights(0))
    for name, value in expected.items():
        assert terms[name].shape == ()
        torch.testing.assert_close(terms[name], value, rtol=0, atol=0)


def test_there_are_these_objectives_and_their_defaults() -> None:
    assert {name: dataclasses.asdict(build_objective(name, {})) for name in OBJECTIVES} == {
        "ce": {},
        "kd": {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9},
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
        },
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_needs_are_what_terms_read(name: str, student: StudentLogits, teacher: dict[str, Tensor]) -> None:
    objective = build_objective(name, {})
    assert dict(objective.needs) == ({} if name == "ce" else {"logits": 4.0 if name == "kd" else None})
    objective.terms(student, LABELS, {signal: teacher[signal] for signal in objective.needs})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_dhkd_has_another_head_and_aligns(name: str) -> None:
    objective = build_objective(name, {})
    assert objective.auxiliary == ("nonlinear" if name == "dhkd" else None)
    assert objective.protected == ("ce" if name == "dhkd" else None)


def test_ce(student: StudentLogits) -> None:
    objective = build_objective("ce", {})
    assert_terms(objective, student, {}, {"ce": losses.cross_entropy(student.task, LABELS)})
    assert objective.weights(0) == objective.weights(99) == {"ce": 1.0}


def test_kd(student: StudentLogits, teacher: dict[str, Tensor]) -> None:
    objective = build_objective("kd", {"temperature": 3, "ce_weight": 0.2, "kd_weight": 0.8})
    expected = {
        "ce": losses.cross_entropy(student.task, LABELS),
        "kd": losses.kd(student.task, teacher["logits"], 3.0),
    }
    assert_terms(objective, student, teacher, expected)
    assert objective.weights(0) == objective.weights(99) == {"ce": 0.2, "kd": 0.8}


@pytest.mark.parametrize("name", ["binary-kl", "binary-kl-norm"])
def test_binary_kl_on_one_head(name: str, student: StudentLogits, teacher: dict[str, Tensor]) -> None:
    objective = build_objective(name, {"alpha": 0.5, "temperature": 3.0, "ce_weight": 2})
    loss = {"binary-kl": losses.binary_kl, "binary-kl-norm": losses.binary_kl_norm}[name]
    expected = {
        "ce": losses.cross_entropy(student.task, LABELS),
        name: loss(student.task, teacher["logits"], 3.0),
    }
    assert_terms(objective, student, teacher, expected)
    assert objective.weights(0) == objective.weights(99) == {"ce": 2.0, name: 0.5}


@pytest.mark.parametrize("name", ["binary-kl", "binary-kl-norm"])
def test_dhkd_gives_each_loss_its_own_head(name: str, student: StudentLogits, teacher: dict[str, Tensor]) -> None:
    objective = build_objective("dhkd", {"loss": name, "temperature": 3.0})
    loss = {"binary-kl": losses.binary_kl, "binary-kl-norm": losses.binary_kl_norm}[name]
    expected = {
        "ce": losses.cross_entropy(student.task, LABELS),
        name: loss(student.distill, teacher["logits"], 3.0),
    }
    assert_terms(objective, student, teacher, expected)
    terms = objective.terms(student, LABELS, teacher)
    assert torch.autograd.grad(terms["ce"], student, allow_unused=True)[1] is None
    assert torch.autograd.grad(terms[name], student, allow_unused=True)[0] is None


@pytest.mark.parametrize(("align", "protected"), [(True, "ce"), (False, None)])
@pytest.mark.parametrize("head", ["linear", "nonlinear"])
def test_dhkd_head_and_alignment_are_options(head: str, align: bool, protected: str | None) -> None:
    objective = build_objective("dhkd", {"head": head, "align": align})
    assert objective.auxiliary == head
    assert objective.protected == protected


def test_dhkd_alpha_ends_at_its_epoch_and_the_term_stays_in_the_graph(
    student: StudentLogits, teacher: dict[str, Tensor]
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
    ("name", "options", "says"),
    [
        ("dkhd", {}, ["objective 'dkhd'", "'dhkd'"]),
        ("kd", {"temprature": 4.0}, ["'kd'", "'temprature'", "did you mean 'temperature'"]),
        ("kd", {"loss": "binary-kl"}, ["'kd'", "'loss'", "valid are ce_weight, kd_weight, temperature"]),
        ("ce", {"temperature": 4.0}, ["'ce'", "'temperature'", "none"]),
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
def test_a_wrong_name_option_or_value_is_told_in_one_line(
    name: str, options: dict[str, object], says: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        build_objective(name, options)
    message = str(raised.value)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_a_whole_number_serves_as_a_float() -> None:
    assert build_objective("dhkd", {"alpha": 2, "temperature": 4}) == build_objective(
        "dhkd", {"alpha": 2.0, "temperature": 4.0}
    )
    assert isinstance(build_objective("kd", {"temperature": 4}).temperature, float)
