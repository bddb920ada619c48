"""The parts of a run that went on with another number of processes, and what is said about it."""

import pytest
from dhkd.stages import watch
from dhkd.stages.train.parts import Part, change, with_epoch
from dhkd.stages.watch import Lost, Watch


def test_epochs_are_counted_by_the_number_of_processes() -> None:
    parts: list[Part] = []
    for processes in (2, 2, 1, 2, 2, 2):
        parts = with_epoch(parts, processes)
    assert parts == [Part(2, 2), Part(1, 1), Part(3, 2)]


def test_what_changes_is_said_once_it_changes() -> None:
    assert change([], 2, 64) is None
    assert change([Part(3, 2)], 2, 64) is None
    line = change([Part(1, 4), Part(3, 3)], 1, 64)
    assert line is not None
    assert line.startswith("goes on with 1 process instead of 3: a batch is still 64 samples in the same order, 64 in")
    assert "instead of 21 or 22" in line
    assert "2 processes instead of 1" in str(change([Part(1, 1)], 2, 64))


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "start all of them again"),
        ({"RESTART_COUNT": "0", "MAX_RESTARTS": "0"}, "start all of them again"),
        ({"RESTART_COUNT": "3", "MAX_RESTARTS": "3"}, "start all of them again"),
        ({"RESTART_COUNT": "1", "MAX_RESTARTS": "3"}, "torchrun starts all of them again (restart 2 of 3)"),
    ],
)
def test_who_starts_the_processes_again(variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESTART_COUNT", "MAX_RESTARTS"):
        monkeypatch.delenv(f"TORCHELASTIC_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    error = Watch(0, 2, "127.0.0.1", 1).error(Lost(1, "died"))
    assert str(error) == f"process 1 of 2 died; {says}"


def test_machines_that_joined_later_find_the_others_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """They count fewer restarts. Only torchrun's own store outlives restarts, and needs their number in its keys."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert watch._keys(0) == "dhkd/0/0/"
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert watch._keys(0) == "dhkd/2/0/"
