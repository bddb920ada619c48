"""The lock of a run's folder: one holder at a time, and free again however the holder ended."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from dhkd.data.errors import RunTaken
from dhkd.data.runs import lock
from dhkd.data.runs.lock import held

HOLDER = "import sys, time, pathlib; from dhkd.data.runs.lock import held\n"
HOLDER += "with held(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-P", "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds shorter than those for real machines."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.5)


def refusal(folder: Path) -> str:
    with pytest.raises(RunTaken) as caught, held(folder):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_holder_at_a_time_also_in_one_process(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    for _ in range(2):
        with held(run):
            assert os.listdir(run) == ["lock.1"]
            assert f"got process {os.getpid()} on" in refusal(run)
        assert not run.exists(), "an empty folder leaves nothing behind"


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with held(tmp_path):
        pass
    assert tmp_path.exists()
    assert os.listdir(tmp_path) == []


def test_what_a_run_writes_stays(tmp_path: Path) -> None:
    with held(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").touch()
    assert os.listdir(tmp_path / "run") == ["metrics.jsonl"]


def test_another_process_is_refused_until_it_ends(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    text = refusal(tmp_path)
    assert text.startswith(f"run at {tmp_path}: expected nobody to train there, got process {holder.pid} on ")
    assert text.endswith("; wait until it has ended, or choose another --out")


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_leaves_the_lock_free(reaped: bool, holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """At once, even while its parent has not asked what became of it."""
    holder.kill()
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert os.listdir(tmp_path) == ["lock.1"]
    with held(tmp_path):
        assert os.listdir(tmp_path) == ["lock.2"]
    assert os.listdir(tmp_path) == []


def signed(folder: Path, **changes: Any) -> Path:
    """Leave a lock of this process behind, with other values in what it says of itself."""
    with held(folder):
        content = json.loads((folder / "lock.1").read_text().splitlines()[0])
    path = folder / "lock.1"
    path.write_text(json.dumps({**content, **changes}) + "\n")
    return path


def test_the_number_of_a_dead_process_may_be_in_use_again(tmp_path: Path) -> None:
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()
    signed(tmp_path, started=1)
    with held(tmp_path):
        pass


# A container or a host with the same name and the same number of the process, and files that nobody finished.
STRANGERS: dict[str, str | None] = {
    "another machine": None,
    "an empty file": "",
    "half a line": '{"token": "3',
    "a list": "[1, 2]\n",
    "no number": '{"token": "a", "host": "b", "pid": "c", "machine": null, "started": null}\n',
    "every process": '{"token": "a", "host": "b", "pid": -1, "machine": null, "started": null}\n',
}


def left(folder: Path, content: str | None) -> Path:
    path = signed(folder, machine="another boot")
    if content is not None:
        path.write_text(content)
    return path


@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_that_is_silent_is_dead(content: str | None, quick: None, tmp_path: Path) -> None:
    left(tmp_path, content)
    with held(tmp_path):
        assert os.listdir(tmp_path) == ["lock.2"]


@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_that_goes_on_writing_lives(
    content: str | None, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 60)  # one byte ends the waiting, however late it comes
    path, ended = left(tmp_path, content), threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            with path.open("a") as stream:
                stream.write(".")

    beats = threading.Thread(target=beat)
    beats.start()
    try:
        assert "expected nobody to train there" in refusal(tmp_path)
    finally:
        ended.set()
        beats.join()


def test_a_holder_shows_that_it_lives(quick: None, tmp_path: Path) -> None:
    with held(tmp_path):
        before, waited = (tmp_path / "lock.1").read_bytes(), threading.Event()
        for _ in range(2400):
            waited.wait(0.05)
            if (now := (tmp_path / "lock.1").read_bytes()) != before:
                break
        assert now.startswith(before)
        assert len(now) > len(before)


def test_of_many_that_begin_at_once_one_gets_it(tmp_path: Path) -> None:
    for attempt in range(10):
        folder, barrier, won = tmp_path / str(attempt), threading.Barrier(8), []
        with ExitStack() as stack:

            def begin(folder: Path, barrier: threading.Barrier, won: list[int], stack: ExitStack) -> None:
                barrier.wait()
                try:
                    stack.enter_context(held(folder))
                except RunTaken:
                    return
                won.append(1)

            threads = [threading.Thread(target=begin, args=(folder, barrier, won, stack)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1


def test_a_holder_that_stood_still_too_long_writes_no_more(quick: None, tmp_path: Path) -> None:
    """Its machine was suspended, so that another machine took it for dead."""
    with held(tmp_path) as first:
        first.require()
        content = json.loads((tmp_path / "lock.1").read_text().splitlines()[0])
        (tmp_path / "lock.1").unlink()
        (tmp_path / "lock.2").write_text(json.dumps({**content, "token": "other"}))
        with pytest.raises(RunTaken, match=r"expected its lock lock\.1, found none: another process took the"):
            first.require()
    assert os.listdir(tmp_path) == ["lock.2"], "the other's lock stays"
