"""`dhkd sweep --on ray` on a cluster of three nodes: nodes and the command die, and every run is trained once.

The nodes share folders with the command, or each has a folder of its own and reads the cache from a bucket, which
refuses all requests for a minute.
"""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.command_line import ENVIRONMENT, SMALL, done, spawn
from tests.ray_clusters import Nodes, ray_cluster
from tests.samples import files_of
from tests.servers import Fault, Flaky, flaky, s3

pytestmark = pytest.mark.timeout(900)

GRID = ("--grid", "objective=ce,kd,dhkd", "--seeds", 8, "--track", "none")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_cluster() as cluster:
        yield cluster


def finished_in(out: Path) -> dict[Path, tuple[int, bytes]]:
    """Each finished run's files: when they were written, and their bytes."""
    files = [path for result in out.glob("*/result.json") for path in result.parent.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files if not path.name.startswith("lock.")}


def until_finished(process: subprocess.Popen[str], out: Path, number: int) -> None:
    while len(list(out.glob("*/result.json"))) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def weights_in(out: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_bytes())["sha256"] for path in out.glob("*/result.json")}


def refuse(proxy: Flaky, seconds: float) -> list[str]:
    """Let the proxy refuse all requests for this long; return those that it has refused, in a list that grows."""
    end, refused = time.monotonic() + seconds, list[str]()

    def fault(request: str) -> Fault | None:
        if time.monotonic() > end:
            return None
        refused.append(request)
        return Fault("status", 503)

    proxy.faults = fault
    return refused


@pytest.mark.slow
def test_a_sweep_on_a_cluster_of_its_own_is_that_of_here(cache: Path, tmp_path: Path) -> None:
    words = ["sweep", "digits", *SMALL, "--cache", cache, "--grid", "objective=ce,dhkd", "--track", "none"]
    done(*words, "--out", tmp_path / "here")
    options = ("--on", "ray", "--tasks", 1, "--on-option", "num_cpus=1", "--on-option", f"object_store_memory={10**8}")
    # In a process of its own, because Ray ends the one that is connected if the cluster fails.
    process = spawn(*words, "--out", tmp_path / "on", *options, "--json", env=ENVIRONMENT)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(json.loads(output)["finished"]) == 2
    assert weights_in(tmp_path / "on") == weights_in(tmp_path / "here")


@pytest.mark.soak
@pytest.mark.parametrize("shared", [True, False])
def test_nodes_and_the_command_die(shared: bool, nodes: Nodes, cache: Path, tmp_path: Path) -> None:
    words = ["sweep", "digits", *SMALL, *GRID]
    done(*words, "--cache", cache, "--out", tmp_path / "here")
    environment, refused = {**ENVIRONMENT, "RAY_ADDRESS": nodes.address}, list[str]()
    names = [f"{name} {shared}" for name in ("one", "two", "lost", "new")]
    places: dict[str, dict[str, str]] = {name: {} for name in names}
    with ExitStack() as servers:
        if not shared:
            bucket = servers.enter_context(s3())
            bucket.fill({f"c.zarr/{key}": content for key, content in files_of(cache).items()})
            proxy = servers.enter_context(flaky(bucket.endpoint))
            way = bucket.env(proxy.url)
            folders = {name: tmp_path / name for name in names}
            places = {
                name: {**way, "DHKD_SCRATCH": str(folder / "runs"), "XDG_CACHE_HOME": str(folder / "caches")}
                for name, folder in folders.items()
            }
            environment |= {**way, "XDG_CACHE_HOME": str(tmp_path / "caches")}
        *first, new = names
        for name in first:
            nodes.add(name, **places[name])
        out = tmp_path / "on"
        command = (*words, "--cache", cache if shared else f"{bucket.url}/c.zarr", "--out", out, "--on", "ray")

        process = spawn(*command, env=environment)
        until_finished(process, out, 3)
        before = finished_in(out)
        if not shared:
            refused = refuse(proxy, 60)
        nodes.kill(first[2])
        nodes.add(new, **places[new])
        until_finished(process, out, 8)
        process.send_signal(signal.SIGKILL)
        process.communicate()

        process = spawn(*command, env=environment)
        until_finished(process, out, 14)
        before |= finished_in(out)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert process.returncode == 130, errors
        assert "run the same command again to continue" in errors.splitlines()[-1]

        process = spawn(*command, "--json", env=environment)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        result = json.loads(output)
        assert (len(result["finished"]), result["failed"]) == (24, {})
        after = finished_in(out)
        assert {path: after[path] for path in before} == before
        assert weights_in(out) == weights_in(tmp_path / "here")
        assert shared or refused
        for name in (*first[:2], new):
            nodes.remove(name)
