"""The agreement of processes that work together: before they begin, all of them must have been told the same.

Otherwise, processes with different settings, data or versions would average gradients of different experiments.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dhkd.data.errors import ProcessError
from dhkd.stages.processes import Processes

LISTED = 3  # the number of differences that an error lists at most
ABSENT = "missing"


# Any: settings are nested plain values, as YAML and JSON store them.
def require_agreement(processes: Processes, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raise `ProcessError`, in every process, unless `facts` (nested plain values) are equal in all processes.

    A process that runs alone doesn't compute them. Only digests are exchanged if they are equal. The error names what
    differs, and the processes with each value.
    """
    if processes.world_size == 1:
        return
    own = dict(_flat("", facts()))
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    if len(set(processes.collect(digest))) == 1:
        return
    everyone = processes.collect(own)
    names = dict.fromkeys(name for values in everyone for name in values)
    differing = [
        _difference(name, values)
        for name in names
        if len(set(values := [facts_of_one.get(name, ABSENT) for facts_of_one in everyone])) > 1
    ]
    more = f"; and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
    raise ProcessError(
        f"processes: expected the same in all {processes.world_size}, got {'; '.join(differing[:LISTED])}{more};"
        f" start all of them with one command, from the same files and versions"
    )


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield each plain value as text, under the names that lead to it, joined by dots."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def _difference(name: str, values: list[str]) -> str:
    ranks: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(str(rank))
    parts = [
        f"{_short(value)} in process{'es' * (len(of_value) > 1)} {', '.join(of_value)}"
        for value, of_value in ranks.items()
    ]
    return f"{name} {' and '.join(parts)}"


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:12]}…"
