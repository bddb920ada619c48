"""Ray clusters of several nodes on this machine, each with a number of CPUs that Ray believes."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Ray's workers have a lower priority by default, so they would wait for all other tests of the machine.
os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"})

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

MEMORY = 100 * 2**20  # of the object store of a node
HEAD = "head"


class Nodes:
    """The nodes of a cluster by name. The head has no CPUs, so that no worker runs there."""

    def __init__(self, cluster: "Cluster", folder: str) -> None:
        self._cluster, self._folder = cluster, folder
        self._nodes: dict[str, Any] = {}  # Any: Ray's nodes have no types

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, name: str, cpus: int = 1, **variables: str) -> None:
        """Start a node, whose workers get these environment variables."""
        arguments: dict[str, Any] = {"temp_dir": self._folder, "include_dashboard": False} if name == HEAD else {}
        self._nodes[name] = self._cluster.add_node(
            num_cpus=cpus, object_store_memory=MEMORY, node_name=name, env_vars=variables, **arguments
        )

    def remove(self, name: str) -> None:
        """End the node."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def kill(self, name: str) -> None:
        """Kill the node's raylet as a crash would; the workers find out for themselves."""
        (process,) = self._nodes[name].all_processes["raylet"]
        os.kill(process.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def ray_cluster() -> Iterator[Nodes]:
    """Start a cluster that has only a head, without connecting to it; end what was started there."""
    import ray  # late, so that only processes of these tests load it
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # short, because the paths of sockets may have 107 characters
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = folder  # where Ray notes the address of this machine's cluster, which is not to be found
    Path(folder, "ray").mkdir()
    cluster = Cluster()
    try:
        nodes = Nodes(cluster, folder)
        nodes.add(HEAD, cpus=0)
        yield nodes
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("RAY_TMPDIR")
        if before is not None:
            os.environ["RAY_TMPDIR"] = before
