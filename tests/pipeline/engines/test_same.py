"""A worker must be the same program as the command; a difference is one line that names the node."""

import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from dhkd.data.errors import ConfigError, ProcessError
from dhkd.data.own_travel import own_code
from dhkd.pipeline.engines.base import Tell
from dhkd.pipeline.engines.packed import Packed, packed, portable
from dhkd.pipeline.engines.same import CODE, Program, differences_of, require_same, this_program

ROOT = Path(__file__).parents[3]


def test_a_process_is_the_same_program_as_itself() -> None:
    require_same(this_program())
    assert {CODE, "python", "dhkd", "torch", "torchvision", "numpy", "pillow"} <= this_program().parts.keys()


@pytest.mark.parametrize(
    ("name", "other", "line"),
    [
        ("torch", "1.0.0", "torch expected 1.0.0, got 2"),
        ("python", "2.7", "python expected 2.7, got 3"),
        ("a-library", "7", "a-library expected 7, got none"),
        (CODE, "0" * 64, "dhkd's code expected 000000000000…, got "),
    ],
)
def test_a_difference_names_the_node(name: str, other: str, line: str) -> None:
    expected = Program({**this_program().parts, name: other})
    with pytest.raises(ProcessError, match=f"^program on {socket.gethostname()}: ") as refused:
        require_same(expected)
    assert line in str(refused.value)
    assert str(refused.value).count(" expected ") == 1


def test_what_only_the_worker_has_changes_nothing() -> None:
    assert differences_of(Program({"torch": "2.11.0"}), Program({"torch": "2.11.0", "timm": "1.0"})) == []


def test_a_changed_copy_of_the_program_is_another_one(tmp_path: Path) -> None:
    for folder in ("pipeline", "stages", "data", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / "dhkd" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pipeline" / "package" / "__init__.py", tmp_path / "dhkd" / "__init__.py")
    script = "from dhkd.pipeline.engines.same import code_digest; print(code_digest())"

    def digest() -> str:
        command = [sys.executable, "-P", "-c", script]
        return subprocess.run(
            command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert digest() == this_program().parts[CODE]
    with (tmp_path / "dhkd" / "data" / "shown.py").open("a") as file:
        file.write("# changed\n")
    assert digest() != this_program().parts[CODE]


@dataclass(frozen=True)
class Doubles:
    """A work that doubles numbers."""

    factor: int = 2

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[int], int]]:
        tell("begun")
        yield lambda unit: unit * self.factor


def test_a_packed_work_does_what_the_work_does() -> None:
    told: list[object] = []
    sent: Packed[int, int] = pickle.loads(pickle.dumps(packed(Doubles())))
    with sent.begun(told.append) as done:
        assert (done(21), told) == (42, ["begun"])


def test_a_packed_work_is_not_unpickled_by_another_program() -> None:
    work = Packed[int, int](Program({CODE: "another"}), own_code(), b"not a pickle")
    with pytest.raises(ProcessError, match="dhkd's code expected another"), work.begun(print):
        pass


class Unknown(Exception):
    """Of a class that the command may not have."""


class Demanding(ConfigError):
    """Can't be unpickled, as it takes two arguments."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConfigError("views: expected 3"), ConfigError, "views: expected 3"),
        (FloatingPointError("nan"), FloatingPointError, "nan"),
        (Unknown("what"), ProcessError, "Unknown: what"),
        (Demanding("a", "b"), ProcessError, "Demanding: a: b"),
    ],
)
def test_an_exception_comes_home_with_its_text_and_traceback(error: Exception, kind: type, text: str) -> None:
    try:
        raise error
    except Exception as raised:
        home = pickle.loads(pickle.dumps(portable(raised)))
    assert type(home) is kind
    assert str(home) == text
    assert "raise error" in home.__notes__[0]
