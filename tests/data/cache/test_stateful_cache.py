"""Random sequences of writers, deaths, damage, repair, conversion and readers; the soak runs many more."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.cache.stateful import TEACHERS, CacheMachine


@pytest.mark.slow
def test_readers_are_right_or_refuse_whatever_happens() -> None:
    # In a new process, since zarr's event loop must not be one that other tests have forked from.
    words = ["-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("few_sequences.py"))]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "1 passed" in done.stdout


def test_damage_of_two_teachers_is_repaired_by_their_commands() -> None:
    machine = CacheMachine()
    for teacher in TEACHERS:
        machine.a_writer_that_lives(teacher=teacher, views=1)
    for teacher in TEACHERS:
        (path,) = machine.path.glob(f"signals/{teacher}/c/0/0/0")
        path.write_bytes(path.read_bytes()[::-1])
    machine.repair()
    machine.teardown()
