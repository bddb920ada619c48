"""Several real processes, and what happens when they are killed."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.disks import small_disk
from tests.e2e import joint_training
from tests.e2e.command_line import SMALL, Outcome, dhkd, done, in_processes, spawn, under_torchrun
from tests.e2e.interrupted import MANY_BLOCKS, wait_until
from tests.runs import read_metrics
from tests.samples import files_of

pytestmark = pytest.mark.slow


def chunks_of(cache: Path) -> dict[Path, int]:
    """Every finished chunk and when it was written."""
    return {f: f.stat().st_mtime_ns for f in cache.rglob("c/**/*") if f.is_file() and not f.name.endswith(".partial")}


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of one uninterrupted process."""
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    done("cache-teacher", "digits", *MANY_BLOCKS, "--teacher", teacher, "--out", out)
    return out


def test_two_processes_write_the_cache_of_one(whole: Path, teacher: Path, tmp_path: Path) -> None:
    words = ["cache-teacher", "digits", *MANY_BLOCKS, "--teacher", teacher, "--out", tmp_path / "c.zarr", "--json"]
    outcome = under_torchrun(2, *words)
    assert outcome.code == 0, outcome.err
    result = outcome.result  # only one of the two prints
    assert result["processes"] == 2
    assert result["blocks_written"] == len(list((whole / "witness" / "c").rglob("*/*")))
    assert outcome.err.count("the teacher's test accuracy") == 1
    assert files_of(tmp_path / "c.zarr") == files_of(whole)


@pytest.mark.soak  # in CI: random kills of stage one, and a kill of caching photographs
@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_of_caching_then_the_same_command(processes: int, whole: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    words = ["cache-teacher", "digits", *MANY_BLOCKS, "--teacher", teacher, "--out", out, "--json"]
    total = len(chunks_of(whole))
    for wanted in (5, total // 3)[: 3 - processes]:  # the exact moment differs from run to run
        process = spawn(*words)
        wait_until(lambda wanted=wanted: len(chunks_of(out)) >= wanted, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = chunks_of(out)
    assert len(before) < total
    refused = dhkd("train-student", "digits", *MANY_BLOCKS, "--cache", out, "--out", tmp_path / "run")
    assert refused.code == 1
    assert "blocks are there" in refused.err

    outcome = in_processes(2, *words) if processes == 2 else done(*words)
    assert outcome.code == 0, outcome.err
    after = chunks_of(out)
    # A block is a chunk of logits and a chunk of witnesses; it counts when both exist.
    finished = sum((out / "witness" / "c" / b.parent.parent.name / b.parent.name) in before for b in before)
    assert outcome.result["blocks_written"] == total // 2 - finished
    rewritten = [f for f, written in before.items() if after[f] != written]
    assert len(rewritten) <= 2, "only blocks that were half written are computed twice"
    kept = {name: content for name, content in files_of(out).items() if not name.endswith(".partial")}
    assert kept == files_of(whole)


def test_ctrl_c_of_caching_is_one_line(whole: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    words = ["cache-teacher", "digits", *MANY_BLOCKS, "--teacher", teacher, "--out", out]
    process = spawn(*words)
    wait_until(lambda: len(chunks_of(out)) >= 5, process)
    process.send_signal(signal.SIGINT)
    printed, reported = process.communicate(timeout=120)
    assert process.returncode == 130
    assert printed == ""
    assert [line for line in reported.splitlines() if "error" in line] == [
        "error: interrupted; run the same command again to continue (training needs --resume)"
    ]
    assert "Traceback" not in reported
    assert not list(out.rglob("*.partial"))
    done(*words)
    assert files_of(out) == files_of(whole)


def training(cache: Path, out: Path, objective: str) -> list[object]:
    settings = [*SMALL, "--set", "student.epochs=6", "--set", f"objective={objective}"]
    return ["train-student", "digits", *settings, "--cache", cache, "--out", out]


@pytest.mark.parametrize("objective", ["dhkd", pytest.param("crd + reviewkd", marks=pytest.mark.soak)])
def test_kill_9_of_training_then_resume(objective: str, cache: Path, teacher: Path, tmp_path: Path) -> None:
    """The final weights are the same, bit for bit.

    Their state must come back too: dhkd's head has dropout and batch norm, crd a memory of every sample, reviewkd
    convolutions.
    """
    live = ["--teacher", teacher, "--set", "teacher.live=true", "--set", "objectives.crd.negatives=200"]
    done(*training(cache, tmp_path / "whole", objective), *live)
    words = [*training(cache, tmp_path / "cut", objective), *live]
    for epochs in (1, 3):
        process = spawn(*words, "--resume")
        metrics = tmp_path / "cut" / "metrics.jsonl"
        wait_until(lambda n=epochs, m=metrics: m.exists() and len(m.read_text().splitlines()) >= n, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "cut" / "result.json").exists()
    # A line without its checkpoint, as a kill between the two writes leaves it.
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 99}\n')
    done(*words, "--resume")
    whole, cut = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "cut"))
    assert cut == whole
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for uninterrupted, resumed in zip(*lines, strict=True):
        assert {**uninterrupted, **timings(uninterrupted)} == {**resumed, **timings(uninterrupted)}


def timings(line: dict[str, float]) -> dict[str, float]:
    return {name: line[name] for name in ("seconds", "train_seconds", "samples_per_second")}


CASES = ("dhkd:31", "kd:31", "kd:50", "dist:31", "rkd:31", "crd:31", "dhkd + dist:31", "dhkd:31:3", "kd:31:5")


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The weights of every case, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("joint")
    joint_training.main(cache, folder / "1", list(CASES))
    outcome = in_processes(2, cache, folder / "2", *CASES, script=Path(joint_training.__file__))
    assert outcome.code == 0, outcome.err[-3000:]
    return {number: folder / str(number) for number in (1, 2)}


@pytest.mark.parametrize("case", CASES)
def test_two_training_processes_take_the_steps_of_one(case: str, trained: dict[int, Path]) -> None:
    """150 samples in batches of 31 make shares of 15 and 16, and a last batch of 26. Batch norm is frozen."""
    alone = torch.load(trained[1] / case / "rank0.pt", weights_only=True)
    first, second = (torch.load(trained[2] / case / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, weights in alone.items():
        assert torch.equal(first[name], second[name]), "both processes hold the same weights and the same memory"
        torch.testing.assert_close(first[name], weights, rtol=1e-3, atol=2e-5)
    one, two = (read_metrics(trained[number] / case)[-1] for number in (1, 2))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert one["train_top1"] == pytest.approx(two["train_top1"], abs=1)
    assert one["top1"] == pytest.approx(two["top1"], abs=0.6), "one or two of 360 images may be classified otherwise"
    assert one["top1"] > 5


@pytest.mark.parametrize(("whole", "parts"), [("dhkd:31", "dhkd:31:3"), ("kd:31", "kd:31:5")])
def test_the_parts_of_a_batch_take_the_steps_of_the_whole(whole: str, parts: str, trained: dict[int, Path]) -> None:
    one, other = (torch.load(trained[2] / case / "rank0.pt", weights_only=True) for case in (whole, parts))
    for name, weights in one.items():
        torch.testing.assert_close(other[name], weights, rtol=1e-3, atol=2e-5)


@pytest.mark.soak  # in CI two processes cache through the command line, and train through a script
def test_two_processes_train_through_the_command_line(cache: Path, tmp_path: Path) -> None:
    words = ["train-student", "digits", *SMALL, "--cache", cache, "--out", tmp_path / "run", "--json"]
    outcome = in_processes(2, *words)
    assert outcome.code == 0, outcome.err
    result = outcome.result
    assert result["processes"] == 2
    again = done("evaluate", tmp_path / "run", "--cpu", "--set", "student.precision=float32", "--json").result
    assert again["top1"] == result["last_top1"], "two processes counted every test image once"


LEAVES_A_LAYER_OUT = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc, self.unused = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, num_classes), nn.Linear(3, 3)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean((2, 3)))
"""


def test_a_network_that_leaves_a_layer_out_trains_in_two_processes_as_in_one(tmp_path: Path) -> None:
    file = tmp_path / "my_nets.py"
    file.write_text(LEAVES_A_LAYER_OUT)
    words = ["train-teacher", "digits", *SMALL, "--import", file, "--set", f"teacher={file}:Net", "--json"]
    outcomes = [in_processes(number, *words, "--out", tmp_path / str(number)) for number in (1, 2)]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[1].err
    losses = [json.loads((tmp_path / number / "metrics.jsonl").read_text().splitlines()[0]) for number in "12"]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)
    assert "find_unused_parameters" not in outcomes[1].err


def test_a_full_disk_loses_nothing(whole: Path, teacher: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "256k"):
        out = disk / "c.zarr"
        words = ["cache-teacher", "digits", *MANY_BLOCKS, "--teacher", teacher, "--out", out]
        outcome = dhkd(*words)
        assert_full(outcome)
        assert not list(out.rglob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        done(*words)
        assert files_of(out) == files_of(whole)


def test_a_full_disk_while_training(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "400k"):
        words = [*training(cache, disk / "run", "ce"), "--resume"]
        outcome = dhkd(*words)
        assert_full(outcome)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        done(*words)
        done(*training(cache, tmp_path / "whole", "ce"))
        assert (disk / "run" / "student.safetensors").read_bytes() == (
            tmp_path / "whole" / "student.safetensors"
        ).read_bytes()


def assert_full(outcome: Outcome) -> None:
    lines = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert outcome.code == 1
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert "Traceback" not in outcome.err
