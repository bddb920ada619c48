"""One student trained by torchrun on two nodes, of which one is lost: two agents on this machine, one killed."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import psutil
import pytest
import torch
from dhkd.data.runs.names import CHECKPOINT

from tests.e2e.command_line import COMMAND, ENVIRONMENT, SMALL
from tests.e2e.interrupted import wait_until
from tests.runs import read_metrics

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

# torchrun waits so long for further nodes once the least number has come, and for signs of life of each.
RENDEZVOUS = "last_call_timeout=10,keep_alive_interval=1,keep_alive_max_attempt=3"


class Nodes:
    """The agents of torchrun, each of which starts one process of the same command."""

    def __init__(self, words: list[object]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [
            *(sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"),
            *(
                "--max-restarts",
                "2",
                "--rdzv-backend",
                "c10d",
                "--rdzv-endpoint",
                f"127.0.0.1:{self.port}",
                "--rdzv-id",
                "test",
            ),
            *("--rdzv-conf", RENDEZVOUS, "--local-addr", "127.0.0.1", "--no-python", *COMMAND, *map(str, words)),
        ]
        self._environment = {**ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.agents: list[subprocess.Popen[str]] = []
        self._reported: list[IO[str]] = []
        self._ends = ExitStack()

    def start(self) -> subprocess.Popen[str]:
        reported = self._ends.enter_context(TemporaryFile("w+"))  # noqa: SIM115 - open until the end
        self._reported.append(reported)
        agent = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.PIPE, stderr=reported, text=True
        )
        self.agents.append(agent)
        return agent

    def meet(self) -> bool:
        """Whether somebody listens where the nodes meet."""
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self, agent: subprocess.Popen[str]) -> None:
        """End an agent and its process without a chance to say anything, as a lost machine does."""
        lost = [psutil.Process(agent.pid), *psutil.Process(agent.pid).children(recursive=True)]
        for process in lost:
            process.kill()
        agent.wait()

    def reported(self, number: int) -> str:
        self._reported[number].seek(0)
        return self._reported[number].read()

    def end(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                self.kill(agent)
        self._ends.close()


@pytest.fixture
def nodes(cache: Path, tmp_path: Path) -> Iterator[Nodes]:
    settings = ["--set", "objective=kd", "--set", "student.epochs=60"]
    words = ["train-student", "digits", *SMALL, *settings, "--cache", cache, "--out", tmp_path / "run"]
    nodes = Nodes([*words, "--resume", "--json"])
    yield nodes
    nodes.end()


def processes_of(run: Path) -> int:
    """Return how many processes trained the last epoch before the latest checkpoint."""
    checkpoint = run / CHECKPOINT
    return torch.load(checkpoint, weights_only=True)["parts"][-1]["processes"] if checkpoint.exists() else 0


def test_a_lost_node(nodes: Nodes, tmp_path: Path) -> None:
    """The run goes on from its checkpoint with the process that is left, says what changes, and records it."""
    stays = nodes.start()
    wait_until(nodes.meet, stays)  # the node where all meet must be the one that stays
    lost = nodes.start()
    # If it comes late, the other one begins alone, and begins again with it.
    wait_until(lambda: processes_of(tmp_path / "run") == 2, lost)
    nodes.kill(lost)
    printed, _ = stays.communicate(timeout=300)
    reported = nodes.reported(0)
    assert stays.returncode == 0, reported
    assert (
        "error (process 0): process 1 of 2 died (it was killed, or ran out of memory); torchrun starts all" in reported
    )
    assert "Traceback" not in reported
    assert "goes on with 1 process instead of 2: a batch is still 64 samples in the same order" in reported
    result: dict[str, Any] = json.loads(printed)
    first, second = result["parts"][-2:]
    assert (first["processes"], second["processes"], result["processes"]) == (2, 1, 1)
    assert sum(part["epochs"] for part in result["parts"]) == result["epochs"] == 60
    assert [epoch["epoch"] for epoch in read_metrics(tmp_path / "run")] == list(range(1, 61))
