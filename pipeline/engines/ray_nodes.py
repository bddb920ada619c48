"""The nodes of a Ray cluster: their names, how many workers fit, and what is said while there is no room."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from dhkd.data.errors import ConfigError
from dhkd.pipeline.engines.base import Needs

log = logging.getLogger("dhkd")

SAY_SECONDS = (20.0, 60.0)  # a command that waits for room says so after this time, and then as often

Node = Mapping[str, Any]  # plain values, as Ray describes a node


class Waiting:
    """Says that a command waits for room, and ends it if there will be none."""

    def __init__(self, needs: Needs, patience: float) -> None:
        self._needs, self._patience = needs, patience
        self._since: float | None = None
        self._said = 0.0

    def say(self, placed: bool, room: bool, nodes: Sequence[Node], now: float) -> None:
        """Log a line if it is due; raise `ConfigError` if no node has been large enough for long."""
        if placed:
            self._since = None
            return
        if self._since is None:
            self._since, self._said = now, now + SAY_SECONDS[0] - SAY_SECONDS[1]
        lacks = f"one task needs {_text(self._needs)}; the largest node has {_largest(nodes)}"
        if not room and now - self._since >= self._patience:
            raise ConfigError(f"--on: expected a node with room for one task, got none: {lacks}; ask for less")
        if now - self._said >= SAY_SECONDS[1]:
            self._said = now
            log.info("ray: waiting for %s: %s", "room" if room else "a larger node", lacks)


def alive_nodes() -> list[Node]:
    """Return the nodes that can work."""
    return [node for node in ray.nodes() if node["Alive"]]


def room_of(node: Node, needs: Needs) -> int:
    """Return how many workers fit a node that does nothing else."""
    wanted = _resources(needs)
    return min((int(node["Resources"].get(name, 0) / amount + 1e-9) for name, amount in wanted.items()), default=0)


def _resources(needs: Needs) -> dict[str, float]:
    memory = 0.0 if needs.memory_gb is None else needs.memory_gb * 1e9
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": memory}
    return {name: amount for name, amount in wanted.items() if amount}


def _largest(nodes: Sequence[Node]) -> str:
    if not nodes:
        return "nothing, since there is none"
    of_nodes = [[node["Resources"].get(name, 0) for name in ("GPU", "CPU", "memory")] for node in nodes]
    gpus, cpus, memory = max(of_nodes)
    return _text(Needs(cpus, gpus, memory / 1e9))


def _text(needs: Needs) -> str:
    parts = [f"{needs.cpus:g} CPUs", f"{needs.gpus:g} GPUs"]
    return ", ".join(parts if needs.memory_gb is None else [*parts, f"{needs.memory_gb:.3g} GB of memory"])


def names_of(nodes: Sequence[Node]) -> dict[str, str]:
    """Name nodes by their names or hosts, with a part of the id where several have the same."""
    plain = {
        node["NodeID"]: node["NodeName"]
        if node["NodeName"] != node["NodeManagerAddress"]
        else node["NodeManagerHostname"]
        for node in nodes
    }
    numbers = Counter(plain.values())
    return {id: name if numbers[name] == 1 else f"{name}-{id[:6]}" for id, name in plain.items()}
