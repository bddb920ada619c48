"""What tests start as a fork is a process like any other, whatever the test's process has done before."""

from pathlib import Path

from dhkd.stages.processes import Processes

from tests.e2e.command_line import in_processes

SCRIPT = """
import sys
from pathlib import Path
from dhkd.stages.processes import Processes
processes = Processes("float32", cpu=True)
(Path(sys.argv[1]) / f"rank{processes.rank}").write_text(str(processes.world_size))
processes.end()
"""


def test_forks_find_each_other_though_the_test_has_an_accelerator(tmp_path: Path, processes: Processes) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    outcome = in_processes(2, tmp_path, script=script)
    assert outcome.code == 0, outcome.err
    assert processes.world_size == 1
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["2", "2"]
