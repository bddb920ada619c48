"""A run is trained near and lies at its home: whatever part of it got there, it is resumed with the same result."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import StorageError
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.lock import held
from dhkd.data.runs.mirror import Mirror
from dhkd.data.storage.folder import Folder

from tests.samples import files_of

CONFIG: dict[str, Any] = {"run": {"command": "train-student"}, "experiment": {"seed": 0}}
EPOCHS = 3


class Killed(BaseException):
    """Stands for the end of the process."""


class Home(Folder):
    """A home that can be out of reach; a given change of it ends the process."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.changes: list[str] = []
        self.killed_at: int | None = None  # the process ends when it would make this change
        self.reachable = True

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        if not self.reachable:
            raise StorageError(f"{self.location}/{key}: can't be reached")
        if self.killed_at == len(self.changes):
            raise Killed
        self.changes.append(key)
        return super().put(key, content, replace=replace)


def train(mirror: Mirror, attempt: str) -> None:
    """Train a run as the loop does; a student's weight is a hash of all epochs, the metrics also name the attempt."""
    mirror.fetch()
    run = RunFolder(mirror.folder, CONFIG, resume=True, saved=lambda folder: mirror.saved())
    if run.result is None:
        run.class_names = ("cat", "dog")
        state = run.load_checkpoint() or {"epochs": 0, "weight": 0, "bytes": 0}
        run.begin()
        run.cut_metrics(state["bytes"])
        for epoch in range(state["epochs"] + 1, EPOCHS + 1):
            weight = int.from_bytes(hashlib.sha256(f"{state['weight']} {epoch}".encode()).digest()[:4])
            length = run.append_metrics({"epoch": epoch, "top1": 1.0, "seconds": float(len(attempt))})
            run.keep_weights(epoch, {"w": torch.tensor([weight])})
            state = {"epochs": epoch, "weight": weight, "bytes": length}
            run.save_checkpoint(state)
        write_atomically(run.path / "student.safetensors", lambda stream: stream.write(str(state["weight"]).encode()))
        run.write_result({"weight": state["weight"]})
    mirror.send()


def weights_at(home: Home) -> dict[str, bytes]:
    """What training determines; the metrics, and so their checksum in the checkpoint, depend on the attempts."""
    varying = ("metrics.jsonl", "checkpoint/state.pt")
    return {name: content for name, content in files_of(home.path).items() if name not in varying}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Home:
    place = tmp_path_factory.mktemp("uninterrupted")
    train(Mirror(place / "near", home := Home(place / "home")), "once")
    return home


def test_the_home_has_every_file_of_the_run_after_what_it_depends_on(uninterrupted: Home, tmp_path: Path) -> None:
    assert uninterrupted.changes == [
        *("classes.txt", "config.yaml"),
        *[
            name
            for epoch in range(1, EPOCHS + 1)
            for name in ("metrics.jsonl", f"weights/epoch-000{epoch}.safetensors", "checkpoint/state.pt")
        ],
        *("student.safetensors", "result.json"),
    ]
    mirror = Mirror(tmp_path / "near", Home(tmp_path / "home"))
    with held(mirror.folder):
        (mirror.folder / "a.partial").write_bytes(b"half")
        train(mirror, "once")
    assert files_of(tmp_path / "home") == files_of(uninterrupted.path)


@pytest.mark.parametrize("point", range(2 + 3 * EPOCHS + 2))
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same machine", "another machine"])
def test_a_run_killed_at_any_change_of_its_home_ends_with_the_same_weights(
    point: int, elsewhere: bool, uninterrupted: Home, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    home.killed_at = point
    with pytest.raises(Killed):
        train(Mirror(tmp_path / "near", home), "first")
    home.killed_at = None
    train(Mirror(tmp_path / ("other" if elsewhere else "near"), home), "second")
    assert weights_at(home) == weights_at(uninterrupted)
    assert len(home.get("metrics.jsonl").splitlines()) == EPOCHS
    RunFolder(home.path, CONFIG, resume=True).load_checkpoint()  # which compares the metrics with its checksum


def test_a_run_goes_on_while_its_home_is_out_of_reach_and_keeps_what_it_trained(
    uninterrupted: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path / "home")
    home.killed_at = 5  # after the first epoch
    with pytest.raises(Killed):
        train(Mirror(tmp_path / "near", home), "first")
    home.killed_at, home.reachable = None, False
    with pytest.raises(StorageError, match="can't be reached"):
        train(Mirror(tmp_path / "near", home), "second")
    assert "training goes on, and sends its files later" in caplog.text
    home.reachable = True
    train(Mirror(tmp_path / "near", home), "the third, which trains nothing")
    assert weights_at(home) == weights_at(uninterrupted)
    assert b"31.0" not in home.get("metrics.jsonl")  # the third attempt's seconds


def test_an_attempt_that_another_machine_overtook_is_not_gone_on_with(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.killed_at = 5
    with pytest.raises(Killed):
        train(Mirror(tmp_path / "near", home), "first")
    shutil.copytree(tmp_path / "near", tmp_path / "ahead")
    train(Mirror(tmp_path / "ahead", Folder(tmp_path / "nowhere")), "first")  # it never got home
    home.killed_at = len(home.changes) + 5
    with pytest.raises(Killed):
        train(Mirror(tmp_path / "other", home), "another machine's")
    home.killed_at = None
    train(Mirror(tmp_path / "ahead", home), "last")
    lines = home.get("metrics.jsonl").decode().splitlines()
    assert [line.partition("seconds")[2] for line in lines] == ['": 5.0}', '": 17.0}', '": 4.0}']


def test_only_what_changed_is_sent_and_what_was_removed_is_removed(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.put("failed.txt", b"out of memory", replace=True)
    home.put("config.yaml", b"run: {}", replace=True)
    mirror = Mirror(tmp_path / "near", home)
    mirror.fetch()
    home.changes.clear()
    mirror.send()
    assert home.changes == []
    (mirror.folder / "failed.txt").unlink()
    (mirror.folder / "config.yaml").write_bytes(b"run: {seed: 1}")
    mirror.send()
    assert home.changes == ["config.yaml"]
    assert files_of(home.path) == {"config.yaml": b"run: {seed: 1}"}


def test_a_home_without_the_run_empties_the_folder(tmp_path: Path) -> None:
    train(Mirror(tmp_path / "near", Home(tmp_path / "home")), "first")
    Mirror(tmp_path / "near", Home(tmp_path / "empty")).fetch()
    assert files_of(tmp_path / "near") == {}
