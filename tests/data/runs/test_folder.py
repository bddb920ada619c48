"""A run's folder is claimed once, is resumed only with the same settings, and reports what is wrong in one line."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.data.errors import RunExists, RunMismatch
from dhkd.data.runs.config import read_config
from dhkd.data.runs.folder import RunFolder

from tests.disks import small_disk
from tests.runs import read_metrics

CONFIG: dict[str, Any] = {
    "run": {"command": "train-student", "cache": "3f" * 32, "precision": "float32"},
    "experiment": {"seed": 0, "student": {"lr": 1e-05, "milestones": [60, 80], "clip_norm": None}, "objectives": {}},
}


def config_with(**student: object) -> dict[str, Any]:
    experiment = {**CONFIG["experiment"], "student": {**CONFIG["experiment"]["student"], **student}}
    return {**CONFIG, "experiment": experiment}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a run that has begun."""
    path = tmp_path / "runs" / "r"
    RunFolder(path, CONFIG, resume=False).begin()
    return path


def mismatch(call: Callable[[], object]) -> str:
    """The message of the `RunMismatch` that `call` raises, which must be one line."""
    with pytest.raises(RunMismatch) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_new_folder_is_claimed_when_the_run_begins(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    run = RunFolder(path, CONFIG, resume=False)
    assert not path.exists()
    RunFolder(path, CONFIG, resume=False)  # nobody has it yet
    run.begin()
    assert read_config(path) == CONFIG
    assert os.listdir(path) == ["config.yaml"]
    with pytest.raises(RunExists, match=r"already holds a run; continue it with --resume or choose another --out$"):
        RunFolder(path, CONFIG, resume=False)


def test_the_configuration_can_be_read_by_a_person(out: Path) -> None:
    text = (out / "config.yaml").read_text()
    assert text.splitlines()[:2] == ["run:", "  command: train-student"]


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_other_things_is_not_a_run(resume: bool, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path, CONFIG, resume=resume).begin()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("resume", [True, False])
def test_a_file_in_place_of_the_folder_is_refused(resume: bool, tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_text("mine")
    with pytest.raises(RunExists, match=r"/r: expected a folder, got a file; choose another --out$"):
        RunFolder(path, CONFIG, resume=resume)
    assert path.read_text() == "mine"


def test_the_same_configuration_resumes(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    run.save_checkpoint({"epoch": 3})
    run.begin()
    assert RunFolder(out, CONFIG, resume=True).load_checkpoint() == {"epoch": 3}


def test_resuming_an_empty_folder_starts_a_new_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r", CONFIG, resume=True)
    assert run.load_checkpoint() is None
    assert run.result is None


@pytest.mark.parametrize(
    ("config", "differing"),
    [
        (config_with(lr=0.1), ["experiment.student.lr expected 1e-05, got 0.1"]),
        (config_with(milestones=[60]), ["experiment.student.milestones expected [60, 80], got [60]"]),
        (config_with(clip_norm=1.0), ["experiment.student.clip_norm expected null, got 1.0"]),
        (
            {**config_with(lr=0.1), "run": {**CONFIG["run"], "cache": "9a" * 32}},
            ["run.cache expected 3f3f3f3f3f3f…, got 9a9a9a9a9a9a…", "experiment.student.lr expected 1e-05, got 0.1"],
        ),
        ({"run": CONFIG["run"]}, ['experiment expected {"seed": 0', "got nothing"]),
        ({**CONFIG, "more": 1}, ["more expected nothing, got 1"]),
        pytest.param(
            config_with(nesterov=True),
            ["experiment.student.nesterov expected nothing, got true"],
        ),
        pytest.param(
            {**CONFIG, "experiment": {**CONFIG["experiment"], "objectives": {"dhkd": {"kl_weight": 2.0}}}},
            ["experiment.objectives.dhkd expected nothing, got", "2.0"],
        ),
    ],
    ids=["float", "list", "null", "two", "missing", "new", "new nested", "new option of an objective"],
)
def test_another_configuration_is_refused_with_what_differs(
    config: dict[str, Any], differing: list[str], out: Path
) -> None:
    text = mismatch(lambda: RunFolder(out, config, resume=True))
    assert text.startswith(f"run at {out}: ")
    for part in differing:
        assert part in text
    assert text.endswith("; resume it with its own settings or choose another --out")
    assert read_config(out) == CONFIG


DAMAGED_CONFIGS = {
    "empty": b"",
    "a list": b"- 1\n",
    "a word": b"word",
    "cut off": b"a: [1,",
    "no text": b"\xff\xfe\x00",
    "latin-1": "a: \xe9".encode("latin-1"),
    "code": b"!!python/object/apply:os.mkdir [was_run]",
    "impossible date": b"a: 2001-99-99",
    "impossible number": b"a: 0x_",
}


@pytest.mark.parametrize("content", DAMAGED_CONFIGS.values(), ids=DAMAGED_CONFIGS)
@pytest.mark.parametrize("resume", [True, False])
def test_a_damaged_configuration_is_reported_and_never_overwritten(resume: bool, content: bytes, out: Path) -> None:
    (out / "config.yaml").write_bytes(content)
    text = mismatch(lambda: RunFolder(out, CONFIG, resume=resume))
    assert str(out / "config.yaml") in text
    assert (out / "config.yaml").read_bytes() == content
    assert not Path("was_run").exists()


def test_a_folder_in_place_of_the_configuration_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    assert "config.yaml" in mismatch(lambda: read_config(tmp_path))


def test_a_file_below_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert read_config(tmp_path / "file") is None
    assert read_config(tmp_path / "nowhere") is None


def test_a_result_is_read_as_written(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    assert run.result is None
    result = {"last_top1": 71.25, "versions": {"torch": "2"}, "cache": None, "name": "σ"}
    run.write_result(result)
    assert run.result == result == json.loads((out / "result.json").read_text())
    assert sorted(os.listdir(out)) == ["config.yaml", "result.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"3",
        b'"text"',
        b"\xff",
        b'{"a": 1',
        b"[]",
        b'[["a", 1]]',
    ],
)
def test_a_damaged_result_is_reported(content: bytes, out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    (out / "result.json").write_bytes(content)
    text = mismatch(lambda: run.result)
    assert text.startswith(f"{out / 'result.json'}: expected a result in JSON")
    assert text.endswith("; delete it and run again with --resume")


def test_metrics_have_one_line_for_each_epoch(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    lengths = [run.append_metrics({"epoch": epoch, "loss": 1 / epoch}) for epoch in (1, 2, 3)]
    assert read_metrics(out) == [{"epoch": epoch, "loss": 1 / epoch} for epoch in (1, 2, 3)]
    assert lengths[-1] == (out / "metrics.jsonl").stat().st_size
    assert lengths == sorted(set(lengths))


def test_metrics_are_cut_back_to_the_checkpoint(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    kept = [run.append_metrics({"epoch": epoch}) for epoch in (1, 2)][-1]
    run.append_metrics({"epoch": 3})
    with (out / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"epo')  # a kill in the middle of a line
    run.cut_metrics(kept)
    assert read_metrics(out) == [{"epoch": 1}, {"epoch": 2}]
    run.append_metrics({"epoch": 3})
    assert [line["epoch"] for line in read_metrics(out)] == [1, 2, 3]
    run.cut_metrics(0)
    assert read_metrics(out) == []


def test_cutting_never_makes_metrics_longer_and_never_creates_the_file(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    run.cut_metrics(100)
    assert os.listdir(out) == ["config.yaml"]
    length = run.append_metrics({"epoch": 1})
    run.cut_metrics(length + 100)
    assert (out / "metrics.jsonl").stat().st_size == length


def state_of(epoch: int) -> dict[str, Any]:
    """A state as large as a small network, so that torch has written part of it before it fails."""
    weights = torch.full((20_000,), float(epoch))
    return {"cursor": {"epochs_done": epoch, "seconds": 1.5}, "student": {"fc.weight": weights}}


def assert_checkpoint(run: RunFolder, epoch: int) -> None:
    state = run.load_checkpoint()
    assert state is not None
    assert state["cursor"] == {"epochs_done": epoch, "seconds": 1.5}
    assert torch.equal(state["student"]["fc.weight"], torch.full((20_000,), float(epoch)))
    assert os.listdir(run.path / "checkpoint") == ["state.pt"]


class CannotBeWritten:
    """Raises when it is pickled."""

    def __reduce__(self) -> str:
        raise KeyboardInterrupt


def test_a_checkpoint_is_replaced_as_a_whole(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    assert run.load_checkpoint() is None
    for epoch in (1, 2):
        run.save_checkpoint(state_of(epoch))
        assert_checkpoint(RunFolder(out, CONFIG, resume=True), epoch)


def test_an_interrupt_while_a_checkpoint_is_written_leaves_the_old_one(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint({**state_of(1), "last": CannotBeWritten()})
    assert run.load_checkpoint() is None
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["config.yaml"]
    run.save_checkpoint(state_of(1))
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint({**state_of(2), "last": CannotBeWritten()})
    assert_checkpoint(run, 1)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint."""
    with small_disk(tmp_path / "disk", "128k") as folder:
        yield folder


def test_a_full_disk_leaves_the_old_checkpoint(tiny_disk: Path) -> None:
    run = RunFolder(tiny_disk / "r", CONFIG, resume=False)
    run.begin()
    run.save_checkpoint(state_of(1))
    with pytest.raises(OSError, match="No space left"):
        run.save_checkpoint(state_of(2))
    assert_checkpoint(run, 1)


def checkpoint_refusal(run: RunFolder) -> str:
    path = run.path / "checkpoint" / "state.pt"
    text = mismatch(run.load_checkpoint)
    assert text.startswith(f"checkpoint {path} can't be read (")
    assert text.endswith("; delete it to train from the start")
    return text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff" * 10,
        b"hello\n",
    ],
)
def test_a_damaged_checkpoint_is_reported(content: bytes, out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    run.save_checkpoint(state_of(1))
    (out / "checkpoint" / "state.pt").write_bytes(content)
    checkpoint_refusal(run)


def test_a_truncated_checkpoint_is_reported(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    run.save_checkpoint(state_of(1))
    path = out / "checkpoint" / "state.pt"
    whole = path.read_bytes()
    for length in (1, 100, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        checkpoint_refusal(run)


@pytest.mark.parametrize(
    "content",
    [
        "ab",
        None,
        [1, 2],
        [],
        torch.zeros(2),
    ],
    ids=str,
)
def test_something_else_in_place_of_a_checkpoint_is_reported(content: object, out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    run.save_checkpoint(state_of(1))
    torch.save(content, out / "checkpoint" / "state.pt")
    checkpoint_refusal(run)


class MakesAFile:
    """A pickle of this creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(out: Path, tmp_path: Path) -> None:
    run, trace = RunFolder(out, CONFIG, resume=True), tmp_path / "was_run"
    run.save_checkpoint({**state_of(1), "last": MakesAFile(trace)})
    checkpoint_refusal(run)
    assert not trace.exists()


def test_no_message_explains_how_to_run_a_checkpoints_code(out: Path) -> None:
    run = RunFolder(out, CONFIG, resume=True)
    run.save_checkpoint(state_of(1))
    (out / "checkpoint" / "state.pt").write_bytes(b"{")
    assert "weights_only" not in checkpoint_refusal(run)
