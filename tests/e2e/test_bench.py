"""`dhkd bench`: its file and table, the comparison of two files, and the script that dhkd is compared with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.benchmarks.online import aligned_gradients, online
from dhkd.benchmarks.steps import random_images
from dhkd.data.stream.labels import Labels
from dhkd.stages.models import build_network
from dhkd.stages.models.student import Student, auxiliary_head
from dhkd.stages.train.gradients import Alignment, backward
from dhkd.stages.train.objectives import losses

from tests.e2e.command_line import dhkd, done


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "a.json"
    printed = done("bench", "--quick", "--only", "rendering,opening", "--out", out)
    assert "rendering / torchvision's transforms" in printed.out
    assert "far too small to measure anything" in printed.out
    return out


@pytest.mark.slow
def test_the_file_holds_every_figure(measured: Path) -> None:
    run = json.loads(measured.read_text())
    names = [figure["name"] for figure in run["figures"]]
    assert (names[0], names[-1]) == ("rendering / torchvision's transforms", "opening a cache, reading a view")
    assert {
        "crop-flip + randaugment / torchvision's",
        "random-resized-crop + randaugment / bare Pillow, one core",
    } <= set(names)
    assert run["quick"] is True
    assert {"hardware", "cores", "versions", "load_at_start", "date"} <= run.keys()
    assert all(figure["value"] > 0 for figure in run["figures"])


def changed(run: dict[str, Any], number: int, **values: object) -> dict[str, Any]:
    figures = [{**figure, **(values if at == number else {})} for at, figure in enumerate(run["figures"])]
    return {**run, "figures": figures}


@pytest.mark.slow
def test_two_files_are_compared(measured: Path, tmp_path: Path) -> None:
    run = json.loads(measured.read_text())
    run["figures"] = [run["figures"][0], run["figures"][-1]]
    run = changed(changed(run, 0, value=40.0, quartiles=[30.0, 50.0]), 1, value=0.5, quartiles=[0.4, 0.6])
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(run))
    second.write_text(json.dumps({**changed(run, 0, value=60.0, quartiles=[55.0, 70.0]), "cores": 999}))
    rendering, opening = done("bench", "--compare", first, second).out.splitlines()[1:3]
    assert rendering.split()[-7:] == ["40.0", "60.0", "×", "1.500", "beyond", "the", "noise"]
    assert opening.split()[-4:] == ["1.000", "within", "the", "noise"]
    assert "cores differ: A 2" not in (text := done("bench", "--compare", first, first).out)
    assert "differ" not in text
    assert f"cores differ: A {run['cores']}, B 999" in done("bench", "--compare", first, second).out
    second.write_text(json.dumps({**run, "figures": run["figures"][:1]}))
    assert "only in A: opening a cache, reading a view" in done("bench", "--compare", first, second).out


@pytest.mark.slow
@pytest.mark.parametrize("content", ["no JSON", "[]", '{"figures": [{"name": "x"}]}', '{"figures": 3}', None])
def test_another_kind_of_file_is_refused(content: str | None, measured: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    if content is not None:
        file.write_text(content)
    outcome = dhkd("bench", "--compare", measured, file)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert f"--compare {file}: " in outcome.err


def test_an_unknown_point(tmp_path: Path) -> None:
    outcome = dhkd("bench", "--quick", "--only", "renderin", "--out", tmp_path / "x.json")
    assert outcome.code == 2
    assert "unknown point 'renderin': did you mean 'rendering'" in outcome.err


def test_the_script_aligns_gradients_as_dhkd_does() -> None:
    torch.manual_seed(0)
    network = build_network("resnet8", 100)
    head = auxiliary_head("linear", network, 100)
    head.load_state_dict(network.head.state_dict())  # with equal heads, the losses pull in opposite directions
    student = Student(network, head).eval()
    images_BCHW, labels_B = torch.randn(6, 3, 32, 32), torch.arange(6)
    teacher_BK = student(images_BCHW).distill.detach() - 20 * torch.eye(100)[:6]  # the teacher contradicts the labels
    parameters = list(student.parameters())

    def terms() -> dict[str, torch.Tensor]:
        outputs = student(images_BCHW)
        against = losses.binary_kl_norm(outputs.distill, teacher_BK, 2.0)
        return {"ce": losses.cross_entropy(outputs.task, Labels(labels_B)), "bkl": against}

    report = backward(terms(), {"ce": 1.0, "bkl": 1.0}, parameters, alignment=Alignment(("ce",)))
    assert report is not None
    assert bool(report.conflict)
    gradients = aligned_gradients(*terms().values(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("teacher", "aligned"), [(None, False), ("resnet8", False), ("resnet8", True)])
def test_the_script_trains(teacher: str | None, aligned: bool) -> None:
    images = random_images(20, 100)
    steps = online(images, student="resnet8", teacher=teacher, aligned=aligned, batch_size=8)
    assert [next(steps) for _ in range(4)] == [None] * 4, (
        "the third batch is partial, the fourth is of the second epoch"
    )
