"""`cache-teacher --on ray` on a cluster: a node or the command itself is killed half-way; the bytes stay the same."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dhkd.data.storage.places import storage_of
from dhkd.pipeline import caching_on
from dhkd.pipeline.engines.base import Ended, Engine, Hear, Needs, Tell
from dhkd.pipeline.engines.choice import EngineOptions, engine_of

from tests import servers
from tests.conformance.places import s3_endpoint
from tests.e2e.command_line import ENVIRONMENT, dhkd, done, spawn
from tests.ray_clusters import Nodes, ray_cluster
from tests.samples import files_of

__all__ = ["s3_endpoint"]

# 200 blocks.
BLOCKS = [
    *("--set", "data.limit=250", "--set", "cache.views=8", "--set", "cache.block_mb=0.0002"),
    *("--set", "teacher=resnet8", "--cpu", "--precision", "float32"),
]
NODE = "DHKD_TEST_NODE"  # the name of a worker's node
HALF = 25  # units of four blocks


@dataclass(frozen=True)
class Halting:
    """A work whose workers stop half-way, each with a unit, until one node is killed and another has joined."""

    work: Any  # any work
    folder: Path

    @contextlib.contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[Any], Any]]:
        with self.work.begun(tell) as function:
            (self.folder / f"begun-{os.environ[NODE]}").touch()

            def halting(unit: Any) -> Any:
                if (self.folder / "half").exists():
                    (self.folder / f"halted-{os.environ[NODE]}").touch()
                    wait_for(self.folder / "killed", self.folder / "begun-four")
                return function(unit)

            yield halting


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 200
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass(frozen=True)
class Disturbed:
    """A Ray engine on whose cluster a node is killed, and another joins, when half of the blocks are computed."""

    engine: Engine
    nodes: Nodes
    folder: Path
    has_gpus: bool = False

    def run(self, work: Any, units: Sequence[Any], needs: Needs, hear: Hear) -> Iterator[Ended[Any, Any]]:
        if not isinstance(work, caching_on.ComputeWork):
            yield from self.engine.run(work, units, needs, hear)
            return
        for number, ended in enumerate(self.engine.run(Halting(work, self.folder), units, needs, hear), 1):
            if number == HALF:
                (self.folder / "half").touch()
                self.nodes.add("four", **{NODE: "four"})
                threading.Thread(target=self.kill, args=(ended.node,)).start()
            yield ended

    def kill(self, node: str) -> None:
        wait_for(self.folder / f"halted-{node}")
        self.nodes.kill(node)
        (self.folder / "killed").touch()


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> servers.S3:
    return servers.make_bucket(s3_endpoint)


@pytest.fixture(scope="module")
def nodes(bucket: servers.S3) -> Iterator[Nodes]:
    with ray_cluster() as cluster:
        for name in ("one", "two"):
            cluster.add(name, **bucket.env(), **{NODE: name})
        yield cluster


@pytest.fixture(scope="module")
def alone(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that one process writes."""
    out = tmp_path_factory.mktemp("alone") / "c"
    done(*words_of(teacher, out))
    return out


def words_of(teacher: Path, out: object) -> list[object]:
    return ["cache-teacher", "digits", *BLOCKS, "--teacher", teacher, "--out", out]


def on(nodes: Nodes) -> list[str]:
    return ["--on", "ray", "--on-option", f"address={nodes.address}", "--json"]


@pytest.mark.soak
@pytest.mark.timeout(500)
def test_a_killed_command_is_given_again(
    nodes: Nodes, bucket: servers.S3, teacher: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache lies in a bucket. Ray ends the workers of a command that is gone."""
    for name, value in bucket.env().items():
        monkeypatch.setenv(name, value)
    url = f"{bucket.url}/c"
    words = [*words_of(teacher, url), *on(nodes)]
    storage = storage_of(url)

    def blocks() -> int:
        return sum("logits/c/" in key for key in storage.sizes() or ())

    killed = spawn(*words, env={**ENVIRONMENT, **bucket.env()})
    try:
        deadline = time.monotonic() + 240
        while blocks() <= 20:
            assert killed.poll() is None, killed.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        killed.kill()
        killed.communicate()
    assert blocks() < 200
    outcome = dhkd(*words)
    assert outcome.code == 0, outcome.err
    assert (outcome.result["complete"], outcome.result["blocks_left_to_others"]) == (True, 0)
    assert 0 < outcome.result["blocks_written"] < 180
    assert {key: storage.get(key) for key in storage.sizes() or ()} == files_of(alone)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_verify_on_ray(nodes: Nodes, alone: Path) -> None:
    outcome = dhkd("verify", alone, *on(nodes))
    assert outcome.code == 0, outcome.err
    assert {**outcome.result, "seconds": 0} == {**done("verify", alone, "--json").result, "seconds": 0}


@pytest.mark.soak
@pytest.mark.timeout(500)
def test_a_node_is_killed_and_another_joins(
    nodes: Nodes, teacher: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def disturbed(options: EngineOptions) -> Iterator[Disturbed]:
        with engine_of(options) as engine:
            yield Disturbed(engine, nodes, tmp_path)

    monkeypatch.setattr(caching_on, "engine_of", disturbed)
    outcome = dhkd(*words_of(teacher, tmp_path / "c"), *on(nodes))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "killed").exists()
    assert outcome.err.count("a worker was lost") == 1
    result = outcome.result
    assert (result["complete"], result["blocks_written"], result["blocks_repaired"]) == (True, 200, 0)
    assert files_of(tmp_path / "c") == files_of(alone)
