"""Records come through a file in order and whole, whatever happens to their writers."""

import threading
from pathlib import Path

import pytest
from dhkd.pipeline.engines.mail import Inbox, complete_bytes, create, repair, send


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return create(tmp_path / "mail")


def test_records_are_read_once_and_in_order(file: Path) -> None:
    inbox = Inbox(file)
    assert inbox.new() == []
    send(file, "a")
    send(file, ("b", 1))
    assert inbox.new() == ["a", ("b", 1)]
    send(file, None)
    assert inbox.new() == [None]
    assert inbox.new() == []
    assert Inbox(file).new() == ["a", ("b", 1), None]
    assert Inbox(file, skip=True).new() == []


@pytest.mark.parametrize("written", [1, 7, 8, 9, 20])
def test_a_record_that_is_half_written_waits_or_is_cut_off(file: Path, written: int) -> None:
    send(file, "first")
    whole = complete_bytes(file)
    send(file, "x" * 100)
    content = file.read_bytes()
    file.write_bytes(content[: whole + written])
    inbox = Inbox(file)
    assert inbox.new() == ["first"]
    assert complete_bytes(file) == whole
    file.write_bytes(content)
    assert inbox.new() == ["x" * 100]
    file.write_bytes(content[: whole + written])
    repair(file)
    send(file, "second")
    assert Inbox(file).new() == ["first", "second"]


def test_records_of_several_threads_do_not_mix(file: Path) -> None:
    def write(letter: str) -> None:
        for number in range(100):
            send(file, letter * number * 10)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = Inbox(file).new()
    assert sorted(map(str, records)) == sorted(letter * number * 10 for letter in "abcd" for number in range(100))


def test_nothing_is_written_of_what_cannot_be_pickled_nor_to_a_file_that_is_gone(file: Path) -> None:
    with pytest.raises((AttributeError, TypeError)):
        send(file, lambda: None)
    assert file.read_bytes() == b""
    file.unlink()
    with pytest.raises(FileNotFoundError):
        send(file, "a")
    assert not file.exists()
