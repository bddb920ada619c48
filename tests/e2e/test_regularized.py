"""What regularizes a training, in two processes: equal in both, other dropout in each, and resumed to the bit."""

import json
from pathlib import Path

import pytest

from tests.e2e import joint_regularized
from tests.e2e.command_line import in_processes

pytestmark = pytest.mark.slow


def trained(out: Path, epochs: int) -> list[dict[str, object]]:
    out.mkdir(exist_ok=True)
    outcome = in_processes(2, out, epochs, script=Path(joint_regularized.__file__))
    assert outcome.code == 0, outcome.err
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs timm")
    first, second = trained(tmp_path / "whole", 4)
    assert first["drops"] != second["drops"], "each process has its own dropout"
    trained(tmp_path / "cut", 2)
    resumed = trained(tmp_path / "cut", 4)
    for name in ("weights", "average", "top1"):
        assert len({str(result[name]) for result in (first, second, *resumed)}) == 1, name
    assert first["weights"] != first["average"]
