"""Losses that a user wrote become objectives: functions, modules, objectives and what makes them."""

import pytest
import torch
import torch.nn.functional as F
from dhkd.data import own_code
from dhkd.data.errors import ConfigError, OwnCodeError
from dhkd.data.own_code import offer
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives import build_objective, combined_objective, own_objectives
from dhkd.stages.train.objectives.combined import Adapters
from dhkd.stages.train.objectives.contract import Objective
from dhkd.stages.train.objectives.kd import KD
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def nothing_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_code, "_known", own_code._Known())


def far(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    assert labels.dtype == torch.int64
    return F.relu((student_logits - teacher_logits).abs() - margin).mean()


def value_of(objective: Objective) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, generator=rng) for _ in range(2))
    outputs = StudentOutputs(student.requires_grad_(), student)
    terms = objective.terms(outputs, Labels(torch.tensor([0, 1, 2, 0])), {"logits": teacher})
    assert terms.keys() == objective.weights(0).keys()
    loss = sum(objective.weights(0)[term] * value for term, value in terms.items())
    assert isinstance(loss, Tensor)
    loss.backward()
    return loss.detach()


def test_a_function_is_one_term_of_weight_one() -> None:
    offer("my_loss.py:far", far)
    loss = build_objective("my_loss.py:far", {"margin": 0.5})
    assert loss.weights(3) == {"far": 1.0}
    assert dict(loss.needs(None)) == {"logits": None}  # type: ignore[arg-type]  # no setting matters
    assert value_of(loss) != value_of(build_objective("my_loss.py:far", {}))
    text = "kd + 0.5 * my_loss.py:far"
    both = combined_objective(text, {"my_loss.py:far": {"margin": 0.5}})
    assert both.weights(0)["far"] == 0.5
    assert value_of(both) == pytest.approx(value_of(build_objective("kd", {})) + 0.5 * value_of(loss))
    assert own_objectives(text) == ["my_loss.py:far"]


def test_names_with_dots_slashes_dashes_and_colons_are_parts() -> None:
    names = ["../my-losses/v1.2/my_loss.py:far", "~/x.py:near", "my_pack.losses:odd", "a:b.py:last"]
    for name in names:
        offer(name, far)
    parts = [f"{number + 1}e-1 * {name}" for number, name in enumerate(names)]
    assert combined_objective(" + ".join(parts), {}).weights(0) == pytest.approx(
        {"far": 0.1, "near": 0.2, "odd": 0.3, "last": 0.4}
    )


def test_objectives_classes_factories_and_modules_count() -> None:
    class Far(nn.Module):
        def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
            return far(student, teacher, labels)

    offer("instance", KD(temperature=2.0))
    offer("subclass", KD)
    offer("factory", lambda: KD(temperature=2.0))
    offer("module", Far())
    offer("any", lambda *arguments, **options: 2 * far(*arguments, **options))
    assert build_objective("instance", {}) == build_objective("factory", {}) == KD(temperature=2.0)
    assert build_objective("subclass", {"temperature": 3.0}) == KD(temperature=3.0)
    assert 2 * value_of(build_objective("module", {})) == value_of(build_objective("any", {"margin": 1.0}))
    with pytest.raises(ConfigError, match="unknown option 'temperature': there are none"):
        build_objective("instance", {"temperature": 3.0})


def test_terms_have_names_that_nothing_else_has() -> None:
    for name, term in (("m.py:loss", "loss_term"), ("m.py:ce", "ce_term"), ("mine@1f", "mine_1f"), ("m.py:ok", "ok")):
        offer(name, far)
        assert list(build_objective(name, {}).weights(0)) == [term]
    offer("n.py:ok", far)
    with pytest.raises(ConfigError, match=r"m\.py:ok and n\.py:ok both have a term ok"):
        combined_objective("m.py:ok + n.py:ok", {})


def test_a_loss_on_mixed_labels_is_refused() -> None:
    offer("far", far)
    mixed = Labels(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    student = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(ConfigError, match="objective 'far': expected images of one class each"):
        build_objective("far", {}).terms(StudentOutputs(student, student), mixed, {"logits": torch.zeros(2, 3)})


def test_what_has_no_gradient_is_refused_in_training_only() -> None:
    offer("far", lambda student, teacher, labels: F.mse_loss(student.detach(), teacher))
    objective = build_objective("far", {})
    with pytest.raises(OwnCodeError, match="doesn't depend on the student's logits"):
        value_of(objective)
    with torch.no_grad():
        objective.terms(
            StudentOutputs(torch.zeros(2, 3), torch.zeros(2, 3)),
            Labels(torch.tensor([0, 1])),
            {"logits": torch.zeros(2, 3)},
        )


def test_adapters_of_parts_with_dots_in_their_names() -> None:
    adapters = Adapters({"my.py:a": nn.Linear(2, 2), "my.py:b": nn.Linear(2, 2)})
    assert len(list(adapters.parameters())) == 4
